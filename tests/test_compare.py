"""The published figures, and our runs beside them: figures worked by hand, and what must not stand side by side."""

import json
from decimal import Decimal

import pytest
from conftest import ROOT, tool

from tools.compare import all_runs, one_run
from tools.published import PUBLISHED, read_published
from tools.table import table

SETS = ("cub", "cars196", "sop")
KEYS = {"set", "method", "network", "dimensions", "batch", "recall_at", "nmi", "f1", "source", "read"}
OFFICIAL = {"name": "cub", "content": "c0ffee00" * 8, "official": True, "doubts": [], "part": "test"}
UNOFFICIAL = {**OFFICIAL, "content": "badbad00" * 8, "official": False, "doubts": ["train: 18 images, published 5,864"]}
BVLC = {"sha1": "405fc5ac", "bvlc_googlenet": True}
KMEANS = {"method": "kmeans", "library": "faiss 1", "seed": 1, "clusters": 100}
AFFINITY = {"method": "affinity propagation", "clusters": 100, "wanted": 100, "converged": True}


def write_run(place, recalls, nmi=0.5, f1=0.2, data=OFFICIAL, training=None, name="metrics.json", **fields):
    """A metrics.json of the run runs/<set>/<method>_<dim>/<run> (below the current folder), as tools/evaluate.py writes it."""
    place.mkdir(parents=True, exist_ok=True)
    home = place.parent
    known = {"solver": f"prototxt/{home.parent.name}/{home.name}/solver.prototxt", "seed": 1, "iterations": 20000, "base_lr": 1e-6,
             "batch": None, "weights": BVLC}  # fmt: skip
    known = None if training is False else {**known, "iteration": 20000, **(training or {})}
    ks = ("1", "10", "100", "1000") if home.parent.name == "sop" else ("1", "2", "4", "8")
    metrics = {"recall_at": dict(zip(ks, recalls)), "nmi": nmi, "f1": f1, "n": 5924, "classes": 100, "clustering": KMEANS,
               "about": {"set": data, "training": known}, "baselines": {}, "made_from": {}, **fields}  # fmt: skip
    (place / name).write_text(json.dumps(metrics))
    return place / name


@pytest.fixture
def cub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return (tmp_path / "runs/cub").relative_to(tmp_path)


def report(folder, name="cub"):
    return "\n\n".join(paragraph for paragraph in all_runs(folder, name) if paragraph)


def cells(text, number=0):
    """{title: {column: text}} of the table `number` in a report; titles are unique but for those of differences."""
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    head, _, *rows = ([part.strip() for part in line.strip("|").split("|")] for line in tables[number])
    found, last = {}, ""
    for title, *values in rows:
        last = f"{last}: difference" if title == "ours - published" else title
        found[last] = dict(zip(head[1:], values))
    return found


# --- the published figures ---------------------------------------------------------------------------------------------


def test_published_rows_are_whole():
    rows = json.loads(PUBLISHED.read_text(), parse_float=Decimal)
    assert len(PUBLISHED.read_text().splitlines()) == len(rows) + 2  # one a line
    for row in rows:
        assert row.keys() - {"note"} == KEYS
        assert row["set"] in SETS and row["read"] in ("first hand", "second hand", "independent re-run")
        assert row["network"] in (None, "GoogLeNet", "Inception-BN", "ResNet-50")
        assert row["dimensions"] in (None, 64, 128, 384, 512) and row["batch"] in (None, 32, 48, 64, 120, 128)
        assert ("as quoted by" in row["source"]) == (row["read"] == "second hand")
        figures = list(row["recall_at"].values())
        assert figures == sorted(figures) and "1" in row["recall_at"]
        for figure in (*figures, *(row[key] for key in ("nmi", "f1") if row[key] is not None)):
            assert isinstance(figure, Decimal) and 10 < figure < 100 and figure.as_tuple().exponent in (-1, -2)
    assert len({json.dumps(row, default=str, sort_keys=True) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("name", "method", "network", "dimensions", "batch", "recalls", "nmi", "f1"),
    [
        ("cub", "lifted", "GoogLeNet", None, 32, {"1": "42.4"}, "53.2", "18.4"),
        ("cub", "lifted", "GoogLeNet", None, 128, {"1": "42.8"}, "54.1", "19.7"),
        ("cub", "lifted", "GoogLeNet", 512, 128, {"1": "47.2", "2": "58.9", "4": "70.2", "8": "80.2"}, None, None),
        ("cub", "lifted", "Inception-BN", 64, None, {"1": "43.57", "2": "56.55", "4": "68.59", "8": "79.63"}, "56.50", None),
        ("cub", "contrastive", "GoogLeNet", 512, 128, {"1": "26.4", "2": "37.7", "4": "49.8", "8": "62.3"}, None, None),
        ("cub", "triplet", "GoogLeNet", 512, 120, {"1": "36.1", "2": "48.6", "4": "59.3", "8": "70.0"}, None, None),
        ("cub", "HDC", "GoogLeNet", 384, None,
         {"1": "53.6", "2": "65.7", "4": "77.0", "8": "85.6", "16": "91.5", "32": "95.5"}, None, None),
        ("cub", "facility location", "Inception-BN", 64, 128,
         {"1": "48.18", "2": "61.44", "4": "71.83", "8": "81.92"}, "59.23", None),
        ("cub", "divide and conquer", "ResNet-50", 128, None, {"1": "65.9", "2": "76.6", "4": "84.4", "8": "90.6"}, "69.60", None),
        ("cars196", "lifted", "GoogLeNet", None, 64, {"1": "50.3"}, "56.6", "22.7"),
        ("cars196", "lifted", "GoogLeNet", None, 128, {"1": "49.5"}, "56.7", "22.8"),
        ("cars196", "lifted", "Inception-BN", 64, None, {"1": "52.98", "2": "65.70", "4": "76.01", "8": "84.27"}, "56.88", None),
        ("cars196", "divide and conquer", "ResNet-50", 128, None, {"1": "84.6", "2": "90.7", "4": "94.1", "8": "96.5"}, None, None),
        ("sop", "lifted", "GoogLeNet", 512, 128, {"1": "62.1", "10": "79.8", "100": "91.3", "1000": "97.4"}, None, None),
        ("sop", "lifted", "Inception-BN", 64, None, {"1": "62.5", "10": "80.8", "100": "91.9"}, None, None),
        ("sop", "triplet", "GoogLeNet", 512, 120, {"1": "42.1", "10": "63.5", "100": "82.5", "1000": "94.8"}, None, None),
        ("sop", "facility location", "Inception-BN", 64, 128, {"1": "67.0", "10": "83.7", "100": "93.2"}, None, None),
    ],
)  # fmt: skip
def test_published_spot_values(name, method, network, dimensions, batch, recalls, nmi, f1):
    """Typed in by hand from shared/reference/published.md, not from the file."""
    same = (method, network, dimensions, batch)
    rows = [row for row in read_published(name) if tuple(row[key] for key in ("method", "network", "dimensions", "batch")) == same]
    assert len([row for row in rows if row["read"] != "independent re-run"]) == 1
    figures = {key: None if rows[0][key] is None else str(rows[0][key]) for key in ("nmi", "f1")}
    assert {k: str(value) for k, value in rows[0]["recall_at"].items()} == recalls and figures == {"nmi": nmi, "f1": f1}


@pytest.mark.parametrize(
    ("name", "method", "from_memory"),
    [
        ("cub", "lifted", "89.3 93.2 46.9 59.8 71.2 81.5 56.4 22.6 55.3 60.6 61.9 62.6"),  # the last four: read off a curve
        ("cars196", "lifted", "49.0 60.3 72.1 81.5 89.2 92.8 59.9 70.4 79.6 87.0 57.8 25.1"),
        ("cars196", "contrastive", "21.7 32.3 46.1 58.9 72.2 83.4"),
        ("cars196", "triplet", "39.1 50.4 63.3 74.5 84.1 89.8"),
        ("cars196", "divide and conquer", "70.3"),
        ("sop", "lifted", "88.65 62.46 80.81 91.93 62.6 80.9 91.2 87.4 24.7"),
        ("sop", "triplet semi-hard", "89.46 66.67 82.39 91.85"),
        ("sop", "facility location", "89.48 67.02 83.65 93.23"),
        ("sop", "divide and conquer", "90.2"),
    ],
)
def test_no_published_figure_is_from_memory(name, method, from_memory):
    rows = [row for row in read_published(name) if row["method"] == method]
    figures = {str(figure) for row in rows for figure in (*row["recall_at"].values(), row["nmi"], row["f1"])}
    assert not figures & set(from_memory.split())
    if (name, method) in (("cars196", "lifted"), ("cars196", "contrastive"), ("cars196", "triplet")):
        assert not any(row["dimensions"] == 512 for row in rows)


# --- all runs of a set -------------------------------------------------------------------------------------------------


def test_means_deviations_and_differences_by_hand(cub):
    for seed, recall, nmi in ((1, 0.40, 0.50), (2, 0.42, 0.51), (3, 0.44, 0.53)):
        write_run(cub / f"lifted_512/seed{seed}", (recall, 0.6, 0.7, 0.8), nmi, training={"seed": seed})
    write_run(cub / "contrastive_512/seed1", (0.2718, 0.3766, 0.4984, 0.6226))
    rows = cells(report(cub))
    ours = rows["ours (a): lifted 512, 3 runs"]
    assert ours["Recall@1"] == "42.0±2.0"  # squares of -2, 0, 2 over 2
    assert ours["NMI"] == "51.3±1.5"  # (16 + 1 + 25)/9 over 2 is 2.33; over 3 its root were 1.2
    assert ours["Recall@2"] == "60.0±0.0"
    published = rows["published: lifted 512, GoogLeNet [2]"]
    assert [published[f"Recall@{k}"] for k in (1, 2, 4, 8)] == ["47.2", "58.9", "70.2", "80.2"] and published["NMI"] == "–"
    difference = rows["published: lifted 512, GoogLeNet [2]: difference"]
    assert [difference[f"Recall@{k}"] for k in (1, 2, 4, 8)] == ["-5.2", "+1.1", "-0.2", "-0.2"]
    assert difference["NMI"] == difference["F1"] == "–"
    assert rows["ours (b): contrastive 512"]["Recall@1"] == "27.2"  # alone: no deviation
    difference = rows["published: contrastive 512, GoogLeNet [2]: difference"]
    assert [difference[f"Recall@{k}"] for k in (1, 2, 4, 8)] == ["+0.8", "+0.0", "+0.0", "+0.0"]  # 27.18 - 26.4; never -0.0
    assert list(rows)[4:] == ["ours (a): lifted 512, 3 runs", "published: lifted 512, GoogLeNet [2]",
                              "published: lifted 512, GoogLeNet [2]: difference", "ours (b): contrastive 512",
                              "published: contrastive 512, GoogLeNet [2]",
                              "published: contrastive 512, GoogLeNet [2]: difference"]  # fmt: skip
    assert "did not converge" not in report(cub) and "were wanted" not in report(cub)  # nothing of the kind is in these files
    assert "seeds 1, 2, 3" in report(cub) and "Several runs: mean±sample standard deviation" in report(cub)


def test_only_the_same_size_network_and_batch_has_a_difference(cub):
    write_run(cub / "lifted_64/seed1", (0.41, 0.5, 0.6, 0.7))
    write_run(cub / "lifted_512_m64/seed1", (0.46, 0.5, 0.6, 0.7))
    write_run(cub / "lifted_512/other", (0.6, 0.7, 0.8, 0.9), training={"solver": "prototxt/cub/resnet_50/solver.prototxt"})
    text = report(cub)
    assert "ours - published" not in text
    assert "(a), (b), (c): no published number" in text
    assert list(cells(text))[4:] == ["ours (a): lifted 64, GoogLeNet", "ours (b): lifted 512, batch 64, GoogLeNet",
                                     "ours (c): lifted 512, ResNet-50"]  # fmt: skip
    # The published row of 512 dimensions stands below, under a heading that says why.
    above, heading, below = text.partition("**Another network, size or batch than ours, or a re-run by others")
    assert heading and "lifted, GoogLeNet, 512 dimensions" in below and "published: lifted 512" not in above


def test_the_methods_own_batches(cub):
    """Triplet's published batch is 120, also where a run's file does not say its own; a stated batch of 128 is another one."""
    write_run(cub / "triplet_512/seed1", (0.37, 0.5, 0.6, 0.71))
    rows = cells(report(cub))
    assert rows["published: triplet 512, GoogLeNet [2]: difference"]["Recall@1"] == "+0.9"
    write_run(cub / "triplet_512/seed1", (0.37, 0.5, 0.6, 0.71), training={"batch": 128})
    text = report(cub)
    assert "ours (a): triplet 512, batch 128" in text and "ours - published" not in text


def test_the_paper_s_own_tables_are_always_shown(cub):
    write_run(cub / "contrastive_64/seed1", (0.2, 0.3, 0.4, 0.5))
    write_run(cub.with_name("cars196") / "lifted_64/seed1", (0.5, 0.6, 0.7, 0.8), data={**OFFICIAL, "name": "cars196"})
    write_run(cub.with_name("sop") / "lifted_64/seed1", (0.6, 0.7, 0.8, 0.9), data={**OFFICIAL, "name": "sop"})
    for name, expected in (("cub", ["42.4", "42.1", "42.4", "42.8"]), ("cars196", ["46.9", "49.4", "50.3", "49.5"]), ("sop", [])):
        text = report(cub.with_name(name), name)
        own = {title: row for title, row in cells(text).items() if title.startswith("paper's own: lifted, size not stated, batch ")}
        assert [row["Recall@1"] for row in own.values()] == expected and "ours - published" not in text
        assert ("do not state the size" in text) == bool(expected)
        assert list(own) == list(cells(text))[: len(expected)]
        if expected:
            assert "- [1] Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016, Table " in text
            assert "(first hand)" in text


def test_every_published_row_stands_in_its_block_once(cub):
    write_run(cub / "lifted_512/seed1", (0.46, 0.5, 0.6, 0.7))
    text = report(cub)
    main, like, others = (cells(text, number) for number in range(3))
    assert {title.split(",")[0].removeprefix("re-run: ") for title in like} == {"lifted"}
    assert like["lifted, Inception-BN, 64 dimensions [3]"]["NMI"] == "56.50"
    assert sum(title.startswith("re-run: ") for title in like) == 3
    assert not any(title.startswith(("lifted", "re-run: lifted")) for title in others)
    assert [row["Recall@1"] for title, row in others.items() if title.startswith("margin, ResNet-50, 128 dimensions [")] == ["63.8"]
    assert any(title.startswith("improved divide and conquer, network and size not stated") for title in others)
    assert len(main) == 4 + 3 and 4 + 1 + len(like) + len(others) == len(read_published("cub"))
    assert text.index("**Another network") < text.index("**Other methods") < text.index("- [1] ")
    numbers = {title.rsplit(" [", 1)[1] for title in (*main, *like, *others) if title.endswith("]")}
    assert all(f"\n- [{number} " in f"\n{text}" for number in numbers)


def test_an_independent_re_run_is_no_published_figure(cub):
    """DMLPlayground's lifted of 64 dimensions and batch 128 is of the same kind as this run, and yet no difference is taken."""
    write_run(cub / "lifted_64/seed1", (0.5, 0.6, 0.7, 0.8), training={"network": "Inception-BN", "batch": 128})
    text = report(cub)
    assert "(a) Inception-BN, base_lr 1e-06" in text
    assert "re-run: lifted, Inception-BN, 64 dimensions" in text and "ours - published" not in text


def test_no_difference_where_the_set_is_not_official(cub):
    write_run(cub / "lifted_512/seed1", (0.46, 0.5, 0.6, 0.7), data=UNOFFICIAL)
    text = report(cub)
    above, table_and_below = text.split("\n|", 1)
    assert "not the official set" in above
    assert "- train: 18 images, published 5,864" in above and "ours - published" not in table_and_below
    assert "published: lifted 512, GoogLeNet" in table_and_below and "No difference is taken" in table_and_below


def test_official_and_other_runs_of_a_set_are_told_apart(cub):
    write_run(cub / "lifted_512/seed1", (0.46, 0.5, 0.6, 0.7), data=UNOFFICIAL)
    write_run(cub / "lifted_512/seed2", (0.48, 0.5, 0.6, 0.7), training={"seed": 2})
    text = report(cub)
    assert text.startswith("**Some rows are 'not official'. Their numbers are not to be compared with published ones:**")
    rows = cells(text)
    assert list(rows)[4:] == ["ours (a): lifted 512, not official, set badbad00", "published: lifted 512, GoogLeNet [2]",
                              "ours (b): lifted 512, official, set c0ffee00",
                              "published: lifted 512, GoogLeNet [2]: difference"]  # fmt: skip
    assert text.count("ours - published") == 1
    assert rows["published: lifted 512, GoogLeNet [2]: difference"]["Recall@1"] == "+0.8"


@pytest.mark.parametrize("data", [None, {}, {**OFFICIAL, "official": None}, {**OFFICIAL, "name": "sop"}])
def test_no_difference_where_the_set_is_not_known_or_another_one(cub, data):
    write_run(cub / "lifted_512/seed1", (0.46, 0.5, 0.6, 0.7), data=data)
    text = report(cub)
    assert "ours - published" not in text and "(a): not the official set cub" in text


@pytest.mark.parametrize(
    ("change", "titles"),
    [
        ({}, ["lifted 64, 2 runs"]),
        ({"training": {"iterations": 40000}}, ["lifted 64, lr 1e-06, 20,000 it", "lifted 64, lr 1e-06, 40,000 it"]),
        ({"training": {"base_lr": 1e-5}}, ["lifted 64, lr 1e-05, 20,000 it", "lifted 64, lr 1e-06, 20,000 it"]),
        ({"training": {"weights": None}}, ["lifted 64, random start", "lifted 64, start BVLC"]),
        ({"training": {"weights": {"sha1": "0123456789", "bvlc_googlenet": False}}},
         ["lifted 64, start 01234567", "lifted 64, start BVLC"]),
        ({"data": {**OFFICIAL, "content": "0123456789"}}, ["lifted 64, set 01234567", "lifted 64, set c0ffee00"]),
        ({"clustering": AFFINITY}, ["lifted 64, affinity propagation", "lifted 64, kmeans"]),
        ({"training": False},
         ["lifted 64, lr 1e-06, 20,000 it, start BVLC", "lifted 64, recipe of seed2 not known"]),
    ],
)  # fmt: skip
def test_only_seeds_of_one_experiment_are_averaged(cub, change, titles):
    write_run(cub / "lifted_64/seed1", (0.4, 0.5, 0.6, 0.7))
    write_run(cub / "lifted_64/seed2", (0.42, 0.5, 0.6, 0.7), **{"training": {"seed": 2}, **change})
    found = [title.partition(": ")[2] for title in cells(report(cub)) if title.startswith("ours")]
    assert found == titles


def test_recipes_and_cautions_name_their_rows(cub):
    write_run(cub / "lifted_64/seed1", (0.4, 0.5, 0.6, 0.7))
    write_run(cub / "lifted_64/seed2", (0.4, 0.5, 0.6, 0.7))  # another folder, the same seed
    write_run(cub / "lifted_64/authors", (0.4, 0.5, 0.6, 0.7), training={"iterations": 40000})
    text = report(cub)
    assert "- (a) GoogLeNet, base_lr 1e-06, 20,000 iterations, seeds 1, 1 (prototxt/cub/lifted_64/solver.prototxt)." in text
    assert "no second experiment" in " ".join(text.split())
    assert "- (b) GoogLeNet, base_lr 1e-06, 40,000 iterations, seed 1 (" in text
    assert "\n(a): Nobody published this recipe" in text and text.count("Nobody published") == 1


def test_columns_and_sentences_of_newer_metrics(cub):
    write_run(cub / "lifted_64/seed1", (0.4, 0.5, 0.6, 0.7), map_at_r=0.182, lone_queries=0, clustering=AFFINITY)
    write_run(cub / "lifted_64/seed2", (0.4, 0.5, 0.6, 0.7), training={"seed": 2}, map_at_r=0.2, lone_queries=1234,
              clustering={**AFFINITY, "clusters": 97, "converged": False})  # fmt: skip
    text = report(cub)
    assert cells(text)["ours (a): lifted 64, 2 runs"]["MAP@R"] == "19.1±1.3"  # (0.9^2 + 0.9^2) over 1 is 1.62
    assert "(a, 1 of 2 runs): NMI and F1 of 100 clusters by affinity propagation.\n" in text
    assert "- (a, 1 of 2 runs): NMI and F1 of 97 clusters by affinity propagation. 100 were wanted. The clustering did not" in text
    assert "1,234 queries" in text
    write_run(cub / "lifted_64/seed2", (0.4, 0.5, 0.6, 0.7), training={"seed": 2}, clustering=AFFINITY)  # as older ones
    text = report(cub)
    assert "MAP@R" not in text and "queries have" not in text and "- NMI and F1 of 100 clusters by affinity propagation." in text


def test_snapshots_and_unfinished_runs_are_not_in_the_table(cub):
    write_run(cub / "lifted_64/seed1", (0.4, 0.5, 0.6, 0.7))
    write_run(cub / "lifted_64/seed1", (0.3, 0.4, 0.5, 0.6), training={"iteration": 10000}, name="metrics_iter_10000.json")
    for run in ("lifted_64/seed1", "lifted_128/seed1"):
        (cub / run).mkdir(parents=True, exist_ok=True)
        (cub / run / "run.json").write_text("{}")
    (cub / "lifted_64/caffe").mkdir()
    text = report(cub)
    assert [title for title in cells(text) if title.startswith("ours")] == ["ours (a): lifted 64"]
    assert "Not finished" in text


def test_a_set_without_published_rows(cub):
    demo = cub.with_name("demo")
    write_run(demo / "lifted_64/seed1", (0.4, 0.5, 0.6, 0.7), data={"name": "demo", "official": None}, training={"weights": None})
    write_run(demo / "pool5/seed1", (0.3, 0.4, 0.5, 0.6), data={"name": "demo"}, training=False)
    text = report(demo, None)
    titles = [
        "ours (a): lifted 64, demo net, lr 1e-06, 20,000 it, random start",
        "ours (b): pool5, network not known, recipe of seed1 not known",
    ]
    assert list(cells(text)) == titles
    assert "published" not in text and "GoogLeNet" not in text
    assert "(a), (b): no published number" in report(demo, "demo")


def test_pretrained_features_and_baselines(cub):
    metrics = {"set": OFFICIAL, "training": None, "pretrained": BVLC}
    write_run(cub / "pool5_1024/pretrained", (0.3, 0.4, 0.5, 0.6), about=metrics)
    other = {**metrics, "pretrained": {"sha1": "0123456789", "bvlc_googlenet": False}}
    write_run(cub / "pool5_1024/other", (0.2, 0.3, 0.4, 0.5), about=other)
    beside = {"recall_at": {"1": 0.1, "2": 0.2, "4": 0.3, "8": 0.4}, "nmi": 0.5, "f1": 0.1}
    for seed, recall in ((1, 0.1), (2, 0.2), (3, 0.1)):  # two runs have the same row: it counts once
        row = {**beside, "recall_at": {**beside["recall_at"], "1": recall}}
        write_run(cub / f"triplet_64/seed{seed}", (0.4, 0.5, 0.6, 0.7), baselines={"raw_pixels": beside, "untrained": row})
    text = report(cub)
    rows = cells(text)
    assert rows["ours (c): pool5 1024, not fine-tuned, start BVLC"]["Recall@1"] == "30.0"
    assert rows["ours (b): pool5 1024, not fine-tuned, start 01234567"]["Recall@1"] == "20.0"
    assert rows["beside them: raw pixels, 16x16"]["Recall@1"] == "10.0"
    assert rows["beside them: the net, untrained"]["Recall@1"] == "15.0±7.1"
    assert "- (c) GoogLeNet, as it was pretrained, not fine-tuned." in text
    assert "SHA-1 0123456789" in text
    assert "(a): The authors published no solver" in text
    assert "Nobody published this recipe" not in text  # which is about the lifted loss's own


def test_lines_fit_a_terminal(cub):
    long = {"training": {"iterations": 40000}, "map_at_r": 0.2}
    for name in SETS:
        folder = cub.with_name(name)
        for run in ("lifted_64/seed1", "lifted_512/seed1", "contrastive_512_m64/seed1", "triplet_512/seed1"):
            write_run(folder / run, (0.4, 0.5, 0.6, 0.7), map_at_r=0.2, data={**OFFICIAL, "name": name})
        write_run(folder / "lifted_512/seed2", (0.5, 0.6, 0.7, 0.9), data={**OFFICIAL, "name": name}, **long)
        write_run(folder / "lifted_512/seed3", (0.4, 0.5, 0.6, 0.7), data={**OFFICIAL, "name": name}, **long)
        assert max(map(len, report(folder, name).splitlines())) <= 150


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "[" * 100_000, '{"n": 1}', b"\x89PNG", {"nmi": float("nan")}, {"f1": 2}, {"recall_at": {}},
     {"recall_at": {"one": 0.5}}, {"recall_at": {"1": 41.0}}, {"clustering": None}, {"clustering": {"method": "kmeans"}},
     {"clustering": {"method": "kmeans", "clusters": 3, "library": 5}}, {"about": None}, {"about": {"set": 1}},
     {"about": {"set": {"content": 5}}}, {"about": {"set": {"doubts": 7}}}, {"about": {"pretrained": {"x": 1}}},
     {"about": {"training": {"solver": 5, "seed": [], "iterations": "x", "base_lr": "y"}}}, {"made_from": [1]},
     {"about": {"training": {"weights": {"sha1": "405fc5ac"}}}}, {"n": "x"}, {"baselines": []},
     {"map_at_r": "high"}, {"n": 0}, {"baselines": {"raw_pixels": {}}}],
)  # fmt: skip
def test_a_damaged_file_among_many_is_named(cub, damage):
    write_run(cub / "lifted_64/seed1", (0.4, 0.5, 0.6, 0.7))
    path = write_run(cub / "lifted_64/seed2", (0.4, 0.5, 0.6, 0.7), **(damage if isinstance(damage, dict) else {}))
    if isinstance(damage, (str, bytes)):
        path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    with pytest.raises(ValueError, match="^runs/cub/lifted_64/seed2/metrics.json: is not what tools/evaluate.py writes;") as error:
        all_runs(cub, "cub")
    assert str(error.value).endswith("remove it, and have this run scored again (make train-cub with its own variables)")


def test_all_damaged_files_are_listed(cub):
    for seed in (1, 2, 3):
        write_run(cub / f"lifted_64/seed{seed}", (0.4, 0.5, 0.6, 0.7), nmi=7 if seed > 1 else 0.5)
    with pytest.raises(ValueError) as error:
        all_runs(cub, "cub")
    named = [line.split("/metrics.json: is not")[0] for line in str(error.value).splitlines()]
    assert named == ["runs/cub/lifted_64/seed2", "runs/cub/lifted_64/seed3"]


def test_no_runs(cub):
    for prepare in (lambda: None, lambda: (cub / "lifted_64/caffe").mkdir(parents=True)):
        prepare()
        with pytest.raises(ValueError, match="^runs/cub: no finished run; make train-cub$"):
            all_runs(cub, "cub")


# --- the commands ------------------------------------------------------------------------------------------------------


def test_a_run_with_its_snapshots(cub):
    """What `make train-cub` ends with: the published rows of the paper's methods above ours, and no difference."""
    run, scratch = cub / "lifted_64_m48/seed1", {"weights": None, "batch": 48, "solver": "prototxt/cub/lifted_64/solver.prototxt"}
    final = write_run(run, (0.4101, 0.5, 0.6, 0.7), data=UNOFFICIAL, training=scratch)
    early = write_run(run, (0.3, 0.4, 0.5, 0.6), training={**scratch, "iteration": 10000}, name="metrics_iter_10000.json")
    text = "\n\n".join(one_run([final, early], "cub"))
    rows = cells(text)
    assert list(rows) == [
        "published: lifted, GoogLeNet, size not stated, batch 48 [1]", "published: lifted, GoogLeNet, size not stated [1]",
        "published: lifted, GoogLeNet, 512 dimensions [2]", "published: lifted, Inception-BN, 64 dimensions [3]",
        "published: contrastive, GoogLeNet, 512 dimensions [2]", "published: triplet, GoogLeNet, 512 dimensions [2]",
        "here: after 10,000 iterations", "here: after 20,000 iterations"]  # fmt: skip
    assert rows["here: after 20,000 iterations"]["Recall@1"] == "41.0" and "ours - published" not in text
    assert text.startswith("**This is not the official set.") and "Nobody published this recipe" in text
    assert "Recipe: base_lr 1e-06, 20,000 iterations, batch 48, seed 1 (prototxt/cub/lifted_64/solver.prototxt)." in text
    assert "random weights" in text


def test_a_run_with_its_baselines(cub):
    path = write_run(cub.with_name("demo") / "lifted_64/seed1", (0.4, 0.5, 0.6, 1.0), data={"name": "demo"})
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps({**metrics, "baselines": {"raw_pixels": {"recall_at": {"1": 0.154}, "nmi": 0.8, "f1": 0.1}}}))
    text = "\n\n".join(one_run([path], None))
    rows = cells(text)
    assert list(rows) == ["raw pixels, 16x16", "lifted structured embedding"]
    assert list(rows["raw pixels, 16x16"].values()) == ["15.4", "–", "–", "–", "80.0", "10.0"]
    assert list(rows["lifted structured embedding"].values()) == ["40.0", "50.0", "60.0", "100.0", "50.0", "20.0"]
    assert "published" not in text


def test_the_table_in_a_terminal():
    ours = {"NMI": "5.0", "Recall@10": "9.1±0.1", "Recall@2": "8.0"}
    assert table([("ours", ours), ("published", {"Recall@2": Decimal("7.50")})]) == (
        "|           | Recall@2 | Recall@10 | NMI |\n"
        "|-----------|---------:|----------:|----:|\n"
        "| ours      |      8.0 |   9.1±0.1 | 5.0 |\n"
        "| published |     7.50 |         – |   – |"
    )


def test_the_command_prints_what_it_writes(tmp_path):
    cub = tmp_path / "runs/cub"
    write_run(cub / "lifted_512/seed1", (0.46, 0.5, 0.6, 0.7))
    call = ("--runs", "runs/cub", "--published", "cub", "--out", "runs/cub/report.md")
    environment = {"cwd": tmp_path, "env": {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}}
    done = tool("tools/compare.py", *call, **environment)
    assert done.returncode == 0, done.stderr
    written = (cub / "report.md").read_text()
    assert written.startswith("# runs/cub\n\n5,924 images of 100 classes") and written.split("\n", 2)[2] in done.stdout
    (cub / "report.md").unlink()
    (cub / "lifted_512/seed1/metrics.json").write_text("{")
    for arguments, status, message in (
        (call, 1, "compare: runs/cub/lifted_512/seed1/metrics.json: is not what tools/evaluate.py writes"),
        (("--runs", "runs/sop", "--published", "sop", *call[-2:]), 1, "compare: runs/sop: no finished run; make train-sop"),
        (("--runs", "runs/shoes", *call[-2:]), 1, "compare: runs/shoes: no finished run; tools/train.py"),
        (("--metrics", "none.json", *call[-2:]), 1, "none.json: no such file; tools/evaluate.py makes it"),
        ((*call, "--metrics", "none.json"), 2, "not allowed with"),
        (call[-2:], 2, "one of the arguments --metrics --runs is required"),
    ):
        done = tool("tools/compare.py", *arguments, **environment)
        assert done.returncode == status and message in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert not (cub / "report.md").exists()
