"""The report is one file that fetches nothing, says what the run's files say, and is whole or not there."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import ROOT, tool
from PIL import Image

from tools import check_report, extract, report
from tools.features import save_features


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of style and script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def content_of(address):
    return base64.b64decode(address.partition("base64,")[2])


def call(run, data_set, out, **options):
    return tool("tools/report.py", "--run", run, "--set", data_set, "--out", out, **options)


@pytest.fixture(scope="module")
def run(small_set, tmp_path_factory):
    """runs/small/lifted_6/seed1, scored and compared; its features are invented."""
    folder = tmp_path_factory.mktemp("report") / "runs" / "small" / "lifted_6" / "seed1"
    paths = [row.split(",")[0] for row in (small_set / "test.csv").read_text().splitlines()[1:]]
    labels = np.unique([path.split("/")[0] for path in paths], return_inverse=True)[1]
    random = np.random.default_rng(0)
    features = (random.normal(size=(labels.max() + 1, 6))[labels] + random.normal(0, 0.8, (len(labels), 6))).astype(np.float32)
    settings = {"solver": "net/<solver>.prototxt", "seed": 7, "iterations": 60, "base_lr": 0.0125, "batch": None, "data": {},
                "weights": None}  # fmt: skip
    about = {
        "set": {"name": "small", "official": False, "doubts": ["drawn by <conftest>"]},
        "training": {**settings, "iteration": 60},
    }
    folder.mkdir(parents=True)
    save_features(folder / "features.npz", features, labels, np.array(paths), about)
    command = ["tools/train.py", "--run", "a folder/seed1"]
    record = {"settings": settings, "versions": {"python": "3.99", "caffe_blas": ["openblas", "Tiny", 3]}, "command": command}
    (folder / "run.json").write_text(json.dumps(record))
    rows = [f"{iteration},{10 / iteration},1,2,3,1.5,0.{iteration % 10},80" for iteration in range(1, 61)]
    head = "iteration,loss,positive_min,positive_mean,positive_max,negative_min,active,images_per_second"
    (folder / "log.csv").write_text("\n".join([head, *rows]) + "\n")
    given = ("--features", folder / "features.npz", "--out", folder / "metrics.json", "--ks", "1,5")
    done = tool("tools/evaluate.py", *given)
    assert done.returncode == 0, done.stderr
    done = tool("tools/compare.py", "--metrics", folder / "metrics.json", "--out", folder / "report.md")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def made(run, small_set):
    """(HTML, Page) of the run's report, made where neither Caffe nor its messages can be imported."""
    blocked = run.parent / "blocked"
    blocked.mkdir()
    for module in ("caffe", "caffe_pb2"):
        (blocked / f"{module}.py").write_text("raise ImportError('no Caffe on this machine')")
    done = call(run, small_set, run / "report.html", env={**os.environ, "PYTHONPATH": str(blocked)})
    assert done.returncode == 0, done.stderr
    text = (run / "report.html").read_text()
    return text, Page(text)


def test_nothing_is_fetched(made):
    text, page = made
    assert not page.open  # every tag is closed
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]!r}>"
            assert name == "content" or not re.search(r"https?:|url\(|//\w", (value or "").partition("base64,")[0]), (
                f"<{tag} {name}>"
            )
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    script = text[text.rindex("<script>") :]
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?:", script)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "http" not in policy


def test_every_image_is_there_and_has_a_text(made):
    _, page = made
    images = page.all("img")
    for image in images:
        assert len(image["alt"]) > 5
        content = content_of(image["src"])
        if image["src"].startswith("data:image/svg+xml;"):
            root = xml.etree.ElementTree.fromstring(content)
            links = [value for part in root.iter() for name, value in part.attrib.items() if name.endswith("href")]
            assert all(link.startswith(("#", "data:")) for link in links)
        else:
            assert image["src"].startswith("data:image/webp;")
            Image.open(io.BytesIO(content)).load()
    kinds = [image["alt"].partition(":")[0] for image in images]
    assert "query" in kinds and "neighbour 1, right" in kinds and "neighbour 5, wrong" in kinds
    for start in ("Recall@K in percent", "Map of the embedding", "Loss by iteration", "Distances of positive", "Share of positive"):
        assert any(image["alt"].startswith(start) for image in images), start


def test_right_and_wrong_are_told_apart_without_colour(made):
    text, page = made
    frames = re.findall(
        r'<span class="(right|wrong)"><img alt="neighbour \d, (right|wrong): .*?<i aria-hidden="true">(.)</i>', text
    )
    assert frames and {(frame, word, mark) for frame, word, mark in frames} == {("right", "right", "✓"), ("wrong", "wrong", "✗")}
    assert re.search(r"\.wrong \{ border: 3px dashed", text) and re.search(r"\.right \{ border-color", text)
    assert len(frames) == sum(image["alt"].startswith("neighbour") for image in page.all("img"))


def test_the_page_says_what_the_files_say(made, run):
    text, page = made
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"{100 * metrics['recall_at']['1']:.1f}Recall@1, %" in page.text and f"{100 * metrics['f1']:.1f}F1, %" in page.text
    for line in (run / "report.md").read_text().splitlines():
        for cell in line.strip("|").split("|") if line.startswith("|") and "--" not in line else []:
            assert cell.strip() in page.text
    assert "This is not the official set" in page.text and "drawn by <conftest>" in page.text
    assert page.text.count("drawn by <conftest>") == 1  # once, at the top
    trained = "OPENBLAS_NUM_THREADS=3 .venv/bin/python tools/train.py --run 'a folder/seed1'"
    for said in ("net/<solver>.prototxt", "seed7", "base_lr0.0125", "python3.99", "openblas, Tiny, 3", trained):
        assert said in page.text, said
    assert "<solver>" not in text and "<conftest>" not in text  # escaped
    titles = re.findall(r'<h2 id="(\w+)">', text)
    assert titles == ["numbers", "curves", "retrieved", "map", "training", "recipe"]
    assert "<h1>Lifted structured embedding: small</h1>" in text
    assert [link["href"] for link in page.all("a")] == [f"#{title}" for title in titles]


def test_the_map_knows_its_images(made, run, small_set):
    text, _ = made
    legend = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    paths = [row.split(",")[0] for row in (small_set / "test.csv").read_text().splitlines()[1:]]
    assert sum(crowd for _, crowd in legend["at"].values()) == len(paths)
    assert {path for path, _ in legend["at"].values()} <= set(paths)
    assert (run / "tsne.npz").exists()


def test_a_report_is_replaced_whole_or_not_at_all(made, run, small_set, tmp_path):
    for name, message in (
        ("report.md", "report.md: is missing; tools/compare.py makes it"),
        ("features.npz", "features.npz: is missing; tools/extract.py makes it"),
        ("metrics.json", "metrics.json: is missing; tools/evaluate.py makes it"),
    ):
        (run / name).rename(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            report.page(run, small_set, 1, None)
        (tmp_path / name).rename(run / name)
    with pytest.raises(ValueError, match="no_run: no such folder"):
        report.page(tmp_path / "no_run", small_set, 1, None)
    page = tmp_path / "report.html"
    page.write_text("an earlier one")
    done = call(run, tmp_path / "nowhere", page)
    assert done.returncode == 1 and "nowhere/set.json: is missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert page.read_text() == "an earlier one" and sorted(path.name for path in tmp_path.iterdir()) == ["report.html"]
    os.link(page, tmp_path / "who reads the earlier one")
    done = call(run, small_set, page)
    assert done.returncode == 0 and page.read_text().startswith("<!doctype html>")
    assert (tmp_path / "who reads the earlier one").read_text() == "an earlier one"  # it was not written over


def test_a_run_without_a_log_and_damaged_files(run, small_set, made, tmp_path):
    copy = tmp_path / "somewhere"  # not below runs/<set>/<method>_<dim>/
    shutil.copytree(run, copy)
    (copy / "log.csv").unlink()
    text = report.page(copy, small_set, 1, "make it so")
    assert "There is no log.csv" in text and "make it so" in text
    assert text.count("data:image/svg") == 2  # the curve of Recall@K and its legend
    # Weights that were not trained here, as GoogLeNet's pool5, have no run.json.
    (copy / "run.json").unlink()
    metrics = json.loads((copy / "metrics.json").read_text())
    pretrained = {"sha1": "0123abcd", "bvlc_googlenet": False}
    about = {**metrics["about"], "training": None, "pretrained": pretrained}
    (copy / "metrics.json").write_text(json.dumps({**metrics, "about": about}))
    text = report.page(copy, small_set, 1, "make it so")
    assert "0123abcd" in text and "Nothing was trained here" in text and "make it so" in text
    shutil.copy(run / "metrics.json", copy)
    (copy / "run.json").write_text('{"settings": 3}')
    with pytest.raises(ValueError, match="somewhere/run.json: is damaged"):
        report.page(copy, small_set, 1, None)
    with pytest.raises(ValueError, match="somewhere/run.json: is damaged"):
        extract.describe(small_set, "test", "net", copy / "model.caffemodel", "fc_embedding", None)
    shutil.copy(run / "run.json", copy)
    (copy / "report.md").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="somewhere/report.md: "):
        report.page(copy, small_set, 1, None)
    shutil.copy(run / "report.md", copy)
    (copy / "solver.prototxt").write_bytes(b"\xff")
    other = shutil.copytree(small_set, tmp_path / "set")
    record = json.loads((other / "set.json").read_text())
    for change in ({"images": 5}, {"size": "x"}, {"size": -1}):
        (other / "set.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(ValueError, match="set/set.json: is missing or damaged"):
            report.page(copy, other, 1, None)
    made_from = np.load(copy / "tsne.npz")["made_from"]
    for damage in ({"rows": np.arange(30) + 9}, {"rows": np.zeros(30)}, {"points": np.full((30, 2), np.nan)}):
        np.savez(copy / "tsne.npz", **{"rows": np.arange(30), "points": np.zeros((30, 2)), "made_from": made_from, **damage})
        assert "Map of the embedding" in report.page(copy, small_set, 1, None)  # made again
        with np.load(copy / "tsne.npz") as kept:
            assert kept["rows"].tolist() == list(range(30)) and kept["points"].any()
    with np.load(run / "features.npz") as archive:
        save_features(copy / "features.npz", archive["features"] * 2, archive["labels"], archive["paths"], {})
    with pytest.raises(ValueError, match="metrics.json: was made from other features"):
        report.page(copy, small_set, 1, None)


def test_markdown():
    text = """# Title & more

One **bold** line with `code`
that goes on <b>.
And a second.

**Doubts:**
- first
  goes on
- second

| name | Recall@1 |  F1 |
|------|---------:|----:|
| a|b  |      1.0 | –   |
"""
    found = report.markdown(text.replace("a|b", "a <i>"))
    assert "<h1>Title &amp; more</h1>" in found
    assert "<p>One <strong>bold</strong> line with <code>code</code> that goes on &lt;b&gt;.<br>And a second.</p>" in found
    assert "<p><strong>Doubts:</strong></p>\n<ul><li>first goes on</li><li>second</li></ul>" in found
    assert '<div class="wide" tabindex="0"><table' in found  # scrolls in its own box
    assert "<th>name</th><th class=number>Recall@1</th><th class=number>F1</th>" in found
    assert "<td>a &lt;i&gt;</td><td class=number>1.0</td><td class=number>–</td>" in found
    Page(found)
    assert report.markdown("- [1] a source") == '<ul class="sources"><li>[1] a source</li></ul>'


def test_file_names_cannot_break_out_of_the_page(tmp_path):
    paths = np.array([f'"</script><b>{number}\udcff' for number in range(9)])
    save_features(tmp_path / "features.npz", np.random.default_rng(0).normal(size=(9, 3)), np.arange(9), paths, {})
    text = report.tsne(tmp_path / "features.npz", np.random.default_rng(0).normal(size=(9, 3)), paths,
                       lambda row: np.zeros((4, 4, 3), np.uint8), 1)  # fmt: skip
    assert text.count("</script>") == 1 and "<b>" not in text
    text.encode("utf-8", "backslashreplace")
    legend = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    assert {path for path, _ in legend["at"].values()} <= set(paths)
    assert '"' not in report.picture(b"", "webp", 'a "quoted" <name>').split('alt="')[1].split('" src')[0]


def test_the_table_of_batch_sizes():
    def one(batch, f1):
        words = {"recipe": "r"}
        return {"method": "lifted", "network": "GoogLeNet", "dimensions": 64, "batch": batch, "words": words,
                "metrics": {"f1": f1, "nmi": 0.5, "recall_at": {"1": 0.4}}}  # fmt: skip

    paper = {"method": "lifted", "batch": 32, "f1": 18.4, "nmi": 53.2, "recall_at": {"1": 42.4}, "read": "first hand",
             "source": "Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016, Table 1"}  # fmt: skip
    runs = [one(32, 0.20), one(32, 0.24), one(128, 0.25)]
    text = Page(report.batch_sizes(runs, [paper], "lifted", 64)).text
    assert "batch 32, paper, size not stated [1]18.453.242.4" in text
    assert "batch 32, ours: lifted 64, 2 runs22.0 (20.0–24.0)50.0 (50.0–50.0)40.0 (40.0–40.0)" in text
    assert "batch 128, ours: lifted 6425.050.040.0" in text and "[1] Song et al." in text
    assert report.batch_sizes(runs[2:], [], "lifted", 64) == "" and report.batch_sizes(runs, [], "lifted", 512) == ""


# --- the browser check -------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, check_report.BROWSERS)), None)


def test_what_is_missing_without_a_browser(tmp_path):
    (tmp_path / "report.html").write_text("<p>a page")
    command = [sys.executable, str(ROOT / "tools/check_report.py"), str(tmp_path / "report.html")]
    done = subprocess.run(command, env={**os.environ, "PATH": str(tmp_path)}, text=True, capture_output=True)
    assert done.returncode == 1 and "no browser here" in done.stderr and "apt-get install chromium" in done.stderr
    done = tool("tools/check_report.py", tmp_path / "none.html")
    assert done.returncode == 1 and "none.html: no such file" in done.stderr


@pytest.mark.skipif(not BROWSER, reason="no browser here")
def test_the_browser_check_sees_what_is_broken(made, run, tmp_path):
    dot = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    pages = {
        "fine": (f"<p>text<img alt=dot src='{dot}'>", None),
        "script": ("<script>nothing.at.all</script>", "an error in its script"),
        "console": ("<script>console.error('oh')</script>", "the console says"),
        "fetches": ("<img alt=remote src='http://127.0.0.1:9/picture.png'>", "fetches http://127.0.0.1:9/picture.png"),
        "beside": ("<img alt=beside src='picture.png'>", "fetches file:"),
        "sideways": ("<div style='width:3000px'>wide</div>", "scrolls sideways"),
        "broken": ("<img alt=nothing src='data:image/png;base64,AAAA'>", "shows nothing for the image 'nothing'"),
        "nameless": (f"<img src='{dot}'>", "1 images have no alternative text"),
        "map": (f"<div class=map><img alt=dot src='{dot}'><button data-do=in>+</button></div>", "does not enlarge"),
    }
    browser = check_report.Browser(BROWSER, tmp_path / "home")
    try:
        for name, (body, complaint) in pages.items():
            (tmp_path / f"{name}.html").write_text(f"<!doctype html><meta charset=utf-8><body>{body}")
            wrong = check_report.look(browser, tmp_path / f"{name}.html", 400, None)
            assert bool(wrong) == bool(complaint), (name, wrong)
            assert not complaint or any(complaint in line for line in wrong), (name, wrong)
        for width in check_report.WIDTHS:
            assert check_report.look(browser, run / "report.html", width, tmp_path / f"{width}.png") == []
            assert Image.open(tmp_path / f"{width}.png").width == width
    finally:
        browser.close()
