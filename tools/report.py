"""A run as one page: its numbers, curves, retrieved images, map and recipe -> report.html.

    .venv/bin/python tools/report.py --set data/demo --run runs/demo/lifted_64/seed1 --out runs/demo/lifted_64/seed1/report.html

The page holds all its pictures and fetches nothing. It is made from what lies in the run's folder, without Caffe:
features.npz, metrics.json, report.md, run.json, log.csv; from the set's images; and, for the curves, from the other
finished runs of the set.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import base64
import html
import io
import json
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean

import matplotlib
import numpy as np
from PIL import Image

from data_prep.files import require_writable, sha256, written_aside
from tools import figures, plots, tsne_map
from tools.features import TooFew, load_features
from tools.published import METHODS, cite, is_paper_s_own, read_published
from tools.runs import describe, finished_runs, grouped, pretrained_of, read_metrics, read_run, set_of
from tools.table import percent

TEMPLATE = Path(__file__).with_name("report_template.html")
SETS = {"cub": "CUB-200-2011", "cars196": "Cars196", "sop": "Stanford Online Products", "demo": "emoji drawings",
        "demo_holdout": "emoji drawings, held-out classes"}  # fmt: skip
THUMBNAIL = 128  # pixels of an image on a sheet
QUALITY = 80  # of WebP


# --- HTML --------------------------------------------------------------------------------------------------------------


def escape(text):
    return html.escape(str(text))


def inline(text):
    """Markdown's **bold** and `code` in one line of text."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def markdown(text):
    """The HTML of a report.md: headings, paragraphs, lists, tables that scroll in their own box.

    A line that ends a sentence ends in the page too; others are only broken to fit a terminal.
    """
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.split("\n")
        if lines[0].startswith("#"):
            level = min(len(lines[0]) - len(lines[0].lstrip("#")), 6)
            blocks.append(f"<h{level}>{inline(lines.pop(0).lstrip('# '))}</h{level}>")
        if len(lines) > 1 and lines[0].startswith("|") and re.fullmatch(r"[|:\- ]+", lines[1]):
            blocks.append(markdown_table(lines))
            continue
        items = []  # of the list that is open
        while lines:
            line = lines.pop(0)
            while lines and line.startswith("- ") and lines[0].startswith("  "):
                line += " " + lines.pop(0).strip()
            if line.startswith("- "):
                items.append(f"<li>{inline(line[2:])}</li>")
                if not lines or not lines[0].startswith("- "):
                    kind = ' class="sources"' if items[0].startswith("<li>[") else ""
                    blocks.append(f"<ul{kind}>{''.join(items)}</ul>")
                    items = []
            else:
                while lines and not lines[0].startswith("- "):
                    line += ("\n" if line.endswith((".", ":")) else " ") + lines.pop(0).strip()
                blocks.append(f"<p>{inline(line).replace(chr(10), '<br>')}</p>")
    return "\n".join(blocks)


def markdown_table(lines):
    """The lines of a Markdown table, the rule second, as HTML; a column whose rule ends in a colon is one of numbers."""
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines]
    return table(rows[0], rows[2:], [rule.endswith(":") for rule in rows[1]], inline)


def table(head, rows, numbers, text=escape):
    """A table in a box of its own; `numbers` says which columns are set right."""

    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}{' class=number' if number else ''}>{text(cell)}</{tag}>"
                                for cell, number in zip(cells, numbers)) + "</tr>"  # fmt: skip

    return (f'<div class="wide" tabindex="0"><table class="table"><thead>{line(head, "th")}</thead>'
            f"<tbody>{''.join(line(row, 'td') for row in rows)}</tbody></table></div>")  # fmt: skip


def facts(pairs):
    """A table of names and values."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in pairs)
    return f'<div class="wide" tabindex="0"><table class="facts"><tbody>{rows}</tbody></table></div>'


def cited(sources):
    """The sources that [1], [2] ... stand for."""
    lines = "".join(f"<li>[{number}] {escape(source)}</li>" for number, source in enumerate(sources, 1))
    return f'<ul class="sources">{lines}</ul>' if lines else ""


def picture(content, kind, alt):
    """An image that is part of the page."""
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def webp(image):
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=QUALITY)
    return stream.getvalue()


def drawing(draw, alt, size=(4.1, 3.0)):
    """A panel of tools/plots.py as a picture of the page."""
    return picture(plots.svg(draw, size), "svg+xml", alt)


# --- the sections ------------------------------------------------------------------------------------------------------


def heading(metrics, folder, name, method, dimensions):
    """Title, what it is of, and the chief numbers."""
    recall = sorted(metrics["recall_at"].items(), key=lambda pair: int(pair[0]))
    tiles = [(f"Recall@{k}", share) for k, share in (recall[0], recall[-1])[: len(recall)]]
    tiles = [(measure, f"{100 * share:.1f}", "") for measure, share in tiles]
    for measure in ("NMI", "F1"):
        figure, several, deviation = percent([metrics])[measure].partition("±")
        tiles.append((measure, figure, f" {several}{deviation}" if several else ""))
    title = f"{METHODS.get(method, method).capitalize()}: {SETS.get(name, name)}"
    size = f"{dimensions} dimension{'s' * (dimensions > 1)}, " if dimensions else ""
    body = [f"<h1>{escape(title)}</h1>",
            f'<p class="lede">{size}{metrics["n"]:,} test images of {metrics["classes"]:,} classes, none of them seen in training. '
            f"Run <code>{escape(folder)}</code>.</p>"]  # fmt: skip
    if set_of(metrics).get("official") is False:
        doubts = "".join(f"<li>{escape(doubt)}</li>" for doubt in set_of(metrics).get("doubts") or ())
        body.append(f'<div class="doubt"><strong>This is not the official set: no number here is to be compared with a published '
                    f"one.</strong><ul>{doubts}</ul></div>")  # fmt: skip
    tiles = "".join(f"<div><b>{figure}</b><span>{measure}, %{more}</span></div>" for measure, figure, more in tiles)
    body.append(f'<div class="tiles">{tiles}</div>')
    return title, "\n".join(body)


def numbers(path):
    """report.md, without its first heading and the doubts about the set, which stand at the top of the page."""
    try:
        text = re.sub(r"\A# .*\n+", "", path.read_text())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not what tools/compare.py writes ({error}); call it again") from None
    return "<h2>Numbers</h2>\n" + markdown(re.sub(r"\A\*\*This is not the official set.*\n(- .*\n)*", "", text))


def curves(runs, published, dimensions):
    """F1 and NMI against the size, Recall@K against K."""
    found = plots.gather(runs, published, dimensions)
    pictures = []
    for name in plots.panels_of(found):
        lines = {"F1": found.f1, "NMI": found.nmi, "Recall@K": found.recall}[name]
        said = "; ".join(f"{line.label}: " + ", ".join(f"{mean(values):.1f} at {x or 'a size not stated'}" for x, values in
                                                      line.points.items()) for line in lines)  # fmt: skip
        pictures.append(drawing(lambda axis, name=name: plots.draw_panel(axis, name, found), f"{name} in percent. {said}"))
    lines = "\n".join(plots.labels(found)).split("\n")
    pictures.append(drawing(lambda axis: plots.draw_legend(axis, found, notes=False), "What the lines of the curves stand for",
                            (4.1, 0.3 + 0.23 * len(lines))))  # fmt: skip
    several = "Whiskers go from the lowest to the highest seed. " if any(len(one["runs"]) > 1 for one in grouped(runs)) else ""
    marks = "Open and half-filled marks are published figures. " if found.sources else ""
    return (f'<h2>Curves</h2>\n<div class="panels pairs">{"".join(pictures)}</div>\n'
            f'<p class="soft">All finished runs of this set with their method\'s own batch. {several}{marks}</p>\n'
            + cited(found.sources))  # fmt: skip


def batch_sizes(runs, published, method, dimensions):
    """The paper's tables 1 and 2, with ours beside them; nothing where there are not two sizes of a batch."""
    ours = [one for one in grouped(runs) if one["method"] == method and one["dimensions"] == dimensions]
    theirs = [row for row in published if is_paper_s_own(row) and row["method"] == method]
    if len({one["batch"] for one in (*ours, *theirs)}) < 2:
        return ""
    sources, rows = [], []
    for batch in sorted({one["batch"] for one in (*ours, *theirs)}):
        for row in (row for row in theirs if row["batch"] == batch):
            found = ["–" if figure is None else figure for figure in (row["f1"], row["nmi"], row["recall_at"].get("1"))]
            rows.append([f"batch {batch}, paper, size not stated {cite(row, sources)}", *found])
        for one in (one for one in ours if one["batch"] == batch):
            found = [[100 * metrics[name] for metrics in one["runs"]] for name in ("f1", "nmi")]
            found.append([100 * metrics["recall_at"].get("1", np.nan) for metrics in one["runs"]])
            rows.append([f"batch {batch}, ours: {one['title'].replace(f', batch {batch}', '')}", *map(_spread, found)])
    return ("<h2>Batch size</h2>\n" + table(["", "F1", "NMI", "Recall@1"], rows, [False, True, True, True])
            + '<p class="soft">Percent; of several runs the mean, and the lowest to the highest.</p>' + cited(sources))  # fmt: skip


def _spread(values):
    return f"{mean(values):.1f}" + (f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else "")


def or_why_not(section, heading, *arguments):
    """A section of the page; of a set with too few images for it, the reason in its place."""
    try:
        return section(*arguments)
    except TooFew as why:
        return f'<h2>{heading}</h2>\n<p class="soft">None: {escape(why)}.</p>'


def sheets(features, labels, paths, image, seed):
    """Queries and their nearest neighbours: at random, successes, failures."""
    found = figures.nearest_neighbours(features, labels)
    body = ["<h2>Retrieved images</h2>",
            '<p class="soft">Each row: a query, then its nearest neighbours, the nearest first. A right one has a blue frame and a '
            "tick, a wrong one a dashed orange frame and a cross.</p>"]  # fmt: skip

    def thumbnail(row, what):
        shown = Image.fromarray(np.ascontiguousarray(image(row)))
        shown.thumbnail((THUMBNAIL, THUMBNAIL))
        return picture(webp(shown), "webp", f"{what}: {paths[row]}")

    for rule, title in (("random", "At random"), ("successes", "Successes"), ("failures", "Failures")):
        chosen = figures.choose(rule, found, labels, seed=seed)
        body.append(f'<h3>{title}</h3>\n<p class="soft">{escape(figures.caption(rule, found, chosen))}</p>\n<div class="sheet">')
        for place in chosen:
            cells = [f"<span>{thumbnail(found.queries[place], 'query')}</span>"]
            for number, (row, right) in enumerate(zip(found.rows[place], found.right[place]), 1):
                word, mark = ("right", "✓") if right else ("wrong", "✗")
                shown = thumbnail(row, f"neighbour {number}, {word}")
                cells.append(f'<span class="{word}">{shown}<i aria-hidden="true">{mark}</i></span>')
            body.append(f'<div class="query">{"".join(cells)}</div>')
        body.append("</div>")
    return "\n".join(body)


def tsne(features_path, features, paths, image, seed):
    """The map, which a few lines of JavaScript in the template enlarge."""
    rows, points = tsne_map.places(features_path, features, seed)
    cells = tsne_map.cells_for(points)
    shown, cell, crowd = tsne_map.thin(points, cells)
    drawn = tsne_map.paint(image, rows[shown], cell, cells)
    at = {f"{column},{row}": [str(paths[rows[place]]), int(here)] for place, (column, row), here in zip(shown, cell, crowd)}
    legend = json.dumps({"cells": cells, "at": at}).replace("<", "\\u003c")
    part = f" of {len(rows):,} taken by chance from {len(features):,}" if len(rows) < len(features) else ""
    said = f"Map of the embedding with {len(shown):,} thumbnails; images that the net finds alike lie together"
    return f"""<h2>Map of the embedding</h2>
<p class="soft">Barnes-Hut t-SNE of {len(rows):,} test images{part}, perplexity {tsne_map.SETTINGS["perplexity"]}, seed {seed}.
The map is cut into {cells} x {cells} cells; each shows the one image that lies nearest to its centre, {len(shown):,} in all.
Enlarge it with the buttons, a double click, the keys + - 0, a pinch, or Ctrl and the wheel; move it by dragging or with the arrow
keys.</p>
<div class="map" tabindex="0" role="group" aria-label="Map of the embedding, can be enlarged">
{picture(webp(drawn), "webp", said)}
<div class="buttons"><button type="button" data-do="in" aria-label="enlarge">+</button><button type="button" data-do="out"
aria-label="make smaller">−</button><button type="button" data-do="whole" aria-label="the whole map">⤢</button></div>
<output></output>
<script type="application/json">{legend}</script>
</div>"""


def training(log):
    """How the training went, from log.csv."""
    if not log:
        return '<h2>Training</h2>\n<p class="soft">There is no log.csv in the folder of the run: it was trained elsewhere.</p>'
    loss = log["loss"]
    part = max(1, len(loss) // plots.SMOOTHED)
    panels = {f"Loss by iteration: a mean of {loss[:part].mean():.3g} over the first {part} of {len(loss)} iterations logged, "
              f"{loss[-part:].mean():.3g} over the last": plots.draw_loss}  # fmt: skip
    if np.isfinite(log["positive_mean"]).any():
        panels["Distances of positive and of the nearest negative pairs in the batch, by iteration"] = plots.draw_distances
    if np.isfinite(log["active"]).any():
        panels["Share of positive pairs that the loss still works on, by iteration"] = plots.draw_active
    pictures = "".join(drawing(lambda axis, draw=draw: draw(axis, log), said) for said, draw in panels.items())
    return f'<h2>Training</h2>\n<div class="panels">{pictures}</div>'


def recipe(folder, record, again, pretrained=None):
    """Settings, versions, and the commands that make it again; of weights that were not trained here, where they are from."""
    if not record:
        known = facts([(f"weights: {name}", value) for name, value in (pretrained or {}).items() if value is not None])
        why = (
            "Nothing was trained here: these are the weights as they were pretrained." if pretrained else "Not known: no run.json."
        )
        command = f'<p>All of it:</p><pre class="command">{escape(again)}</pre>' if again else ""
        return f"<h2>Recipe</h2>\n<p>{why}</p>\n{known}\n{command}"
    settings, versions = dict(record["settings"]), record["versions"]
    pairs = [(name, value) for name, value in settings.items() if not isinstance(value, dict) and value is not None]
    pairs = [(name, f"{value:g}" if isinstance(value, float) else value) for name, value in pairs]
    for name in ("data", "weights"):
        pairs += [(f"{name}: {key}", value) for key, value in (settings.get(name) or {}).items() if value is not None]
    pairs += [("starting weights", "random")] if not settings.get("weights") else []
    found = [(name, ", ".join(map(str, value)) if isinstance(value, list) else value) for name, value in versions.items()]
    solver = folder / "solver.prototxt"
    threads = f"OPENBLAS_NUM_THREADS={versions['caffe_blas'][-1]} " if (versions.get("caffe_blas") or [None])[-1] else ""
    body = ["<h2>Recipe</h2>", "<h3>Settings</h3>", facts(pairs)]
    if solver.exists():
        ran = solver.read_text(errors="backslashreplace")
        body.append(f"<details><summary>The solver as it ran</summary><pre>{escape(ran)}</pre></details>")
    body += ["<h3>Versions</h3>", '<p class="soft">When the training began:</p>', facts(found),
             f'<p class="soft">When this page was made: Python {platform.python_version()}, matplotlib {matplotlib.__version__}, '
             f"{tsne_map.SETTINGS['library']}, {escape(checkout())}.</p>",
             "<h3>To make it again</h3>"]  # fmt: skip
    python = ".venv/bin/python"
    alone = threads + shlex.join([python, *map(str, record["command"])])
    page = shlex.join([python, *sys.argv])
    commands = [
        ("All of it:", again),
        ("The training alone:", alone),
        ("This page, from what lies in the folder of the run:", page),
    ]
    body += [f'<p>{words}</p><pre class="command">{escape(command)}</pre>' for words, command in commands if command]
    return "\n".join(body)


def checkout():
    """The commit of this checkout, in words."""
    command = ["git", "-C", str(TEMPLATE.parent), "describe", "--always", "--dirty=, with changes"]
    try:
        return f"commit {subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()}"
    except (OSError, subprocess.CalledProcessError):
        return "no git checkout"


# --- the page ----------------------------------------------------------------------------------------------------------


def check_folder(folder):
    """ValueError names what the folder of a run lacks, and the command that makes it."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; tools/train.py makes it (make demo)")
    for name, maker in (("features.npz", "tools/extract.py"), ("metrics.json", "tools/evaluate.py"),
                        ("report.md", "tools/compare.py")):  # fmt: skip
        if not (folder / name).exists():
            raise ValueError(f"{folder / name}: is missing; {maker} makes it (make demo, make train-<set>)")
    return read_run(folder)


def page(folder, data_set, seed, again):
    """The HTML of a run's report."""
    record = check_folder(folder)
    metrics = read_metrics(folder / "metrics.json")
    of = (metrics.get("made_from") or {}).get("features")
    if of and of != sha256(folder / "features.npz"):
        raise ValueError(f"{folder}/metrics.json: was made from other features than those beside it; call tools/evaluate.py again")
    features, labels, paths, _ = load_features(folder / "features.npz")
    log = plots.read_log(folder / "log.csv")
    image = figures.image_reader(data_set, paths)
    name = set_of(metrics).get("name") or folder.parent.parent.name
    published = read_published(name)
    mine = describe(folder, name, metrics)
    method, dimensions = mine["method"], mine["dimensions"]
    # Of a run that lies elsewhere it is not known which other runs belong to it.
    runs = finished_runs(folder.parent.parent, name) if dimensions else [mine]
    title, top = heading(metrics, folder, name, method, dimensions)
    body = "\n".join([numbers(folder / "report.md"), curves(runs, published, dimensions),
                      batch_sizes(runs, published, method, dimensions),
                      or_why_not(sheets, "Retrieved images", features, labels, paths, image, seed),
                      or_why_not(tsne, "Map of the embedding", folder / "features.npz", features, paths, image, seed),
                      training(log), recipe(folder, record, again, pretrained_of(metrics))])  # fmt: skip
    links = "".join(f'<a href="#{words.split()[0].lower()}">{words}</a>' for words in re.findall(r"<h2>(.+?)</h2>", body))
    body = re.sub(r"<h2>(\w+)", lambda words: f'<h2 id="{words[1].lower()}">{words[1]}', body)
    fields = {"title": escape(title), "body": f"{top}\n<nav>{links}</nav>\n{body}", "columns": str(figures.NEIGHBOURS + 1)}
    return re.sub(r"\{\{(\w+)\}\}", lambda field: fields[field[1]], TEMPLATE.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, runs/<set>/<method>_<dim>/<run>")
    parser.add_argument("--set", type=Path, required=True, help="folder of the set, data/<set>")
    parser.add_argument("--out", type=Path, required=True, help="report.html to write")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of queries and of the map (default 1)")
    parser.add_argument("--again", help="the command that makes all of it, to be shown on the page")
    arguments = parser.parse_args()
    require_writable(arguments.out)
    text = page(arguments.run, arguments.set, arguments.seed, arguments.again).encode("utf-8", "backslashreplace")
    with written_aside(arguments.out) as aside:
        aside.write_bytes(text)
    print(f"{arguments.out}: written, {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    run("report", main)
