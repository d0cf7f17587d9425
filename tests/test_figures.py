"""The pictures say what the numbers say: who is on a sheet, what is on the map, which way an arrow points."""

import itertools
import json
import math
import os

import numpy as np
import pytest
from conftest import tool
from PIL import Image

from tools import figures, gradient_figure, plots, tsne_map
from tools.features import save_features
from tools.figures import Neighbours, choose, nearest_neighbours
from tools.metrics import recall_at_k
from tools.runs import finished_runs


@pytest.fixture
def no_caffe(tmp_path):
    """An environment in which neither Caffe nor its messages can be imported."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    for module in ("caffe", "caffe_pb2"):
        (folder / f"{module}.py").write_text("raise ImportError('no Caffe on this machine')")
    return {**os.environ, "PYTHONPATH": str(folder)}


# --- retrieval sheets --------------------------------------------------------------------------------------------------


def test_neighbours_against_a_loop():
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 5)).astype(np.float32) + 100  # far from zero: distances stay
    features[7] = features[8]  # a duplicate is a neighbour, the query itself is not
    labels = random.integers(0, 12, 40)
    labels[3] = 99  # alone in its class: no query
    found = nearest_neighbours(features, labels, 4)
    assert 3 not in found.queries
    for query, rows, right, near in zip(*found[:4]):
        order = sorted(
            (float(np.linalg.norm(features[query] - features[other])), bool(labels[other] == labels[query]), other)
            for other in range(40)
            if other != query
        )
        assert rows.tolist() == [other for *_, other in order[:4]]
        assert right.tolist() == [labels[other] == labels[query] for other in rows]
        assert near == pytest.approx(order[0][0])
    assert sorted(found.queries) == [row for row in range(40) if np.sum(labels == labels[row]) > 1]


@pytest.mark.parametrize("places", [1, 3, 12, 200])
def test_a_sheet_and_the_table_tell_the_same(places):
    """Of many images at one place, more than a sheet looks at: a tie counts against the query in both."""
    random = np.random.default_rng(places)
    features = random.normal(size=(places, 3)).astype(np.float32)[random.integers(0, places, 90)]
    labels = np.concatenate([random.integers(0, 9, 88), [100, 101]])  # two that are alone in their class
    found = nearest_neighbours(features, labels, 4)
    share = recall_at_k(features, labels, [1, 4])
    assert found.right[:, 0].sum() / 90 == share[1] and found.right.any(axis=1).sum() / 90 == share[4]
    assert f"of all 90 queries ({share[1]:.1%}) have a right first neighbour" in figures.caption("random", found, [0])


def test_neighbours_of_equal_features():
    found = nearest_neighbours(np.ones((9, 3), np.float32), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2]), 5)
    for query, rows in zip(found.queries, found.rows):
        assert len(set(rows)) == 5 and query not in rows
    assert (found.nearest == 0).all()
    with pytest.raises(ValueError, match="no class has two images"):
        nearest_neighbours(np.ones((3, 2)), np.arange(3))
    assert nearest_neighbours(np.eye(3), np.zeros(3), 5).rows.shape == (3, 2)  # fewer images than neighbours asked for


def invented(seed, classes=30, queries=120, count=5):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, queries)
    rows = np.array([random.choice(np.delete(np.arange(queries), query), count, replace=False) for query in range(queries)])
    right = labels[rows] == labels[:, None]
    right |= random.random(right.shape) < 0.15  # more successes than chance
    return Neighbours(np.arange(queries), rows, right, random.random(queries), queries), labels


@pytest.mark.parametrize("seed", range(5))
def test_failures_against_a_loop(seed):
    found, labels = invented(seed)
    expected, shown = [], set()
    for place in sorted(range(120), key=lambda place: found.nearest[place]):
        pair = {labels[place], labels[found.rows[place][0]]}
        if not any(found.right[place]) and not pair & shown and len(expected) < 8:
            expected.append(place)
            shown |= pair
    assert choose("failures", found, labels, 8).tolist() == expected and len(expected) > 3


@pytest.mark.parametrize("seed", range(5))
def test_successes_against_a_loop(seed):
    found, labels = invented(seed)

    def worth(place):  # how many are right, then whether the first is, the second ...
        return (sum(found.right[place]), *found.right[place].tolist())

    best = {}
    for place in range(120):
        best[labels[place]] = max(best.get(labels[place], (0,)), worth(place))
    chosen = choose("successes", found, labels, 8)
    assert [worth(place) for place in chosen] == sorted(best.values(), reverse=True)[:8]
    assert len({labels[place] for place in chosen}) == 8


def test_a_sheet_is_chosen_by_its_seed():
    found, labels = invented(0)
    found.right[:] = True  # all are ties
    for rule in ("random", "successes"):
        one = choose(rule, found, labels, seed=1).tolist()
        assert one == choose(rule, found, labels, seed=1).tolist() != choose(rule, found, labels, seed=2).tolist()
        assert len(set(one)) == 12
    assert choose("failures", found, labels).size == 0
    assert figures.caption("failures", found, []) == "Every query has a right one among its 5 nearest."
    found.right[:] = False
    assert choose("successes", found, labels).size == 0
    assert figures.caption("successes", found, []) == "No query has a right one among its 5 nearest."
    found.right[:30, 2] = True
    assert "30 of all 120 queries (25.0%) have a right one among 5" in figures.caption("successes", found, [0, 1])
    assert "90 of all 120 queries (75.0%) have no right one" in figures.caption("failures", found, [0, 1])


def test_sheets_and_map_without_caffe(small_set, tmp_path, no_caffe):
    paths = [row.split(",")[0] for row in (small_set / "test.csv").read_text().splitlines()[1:]]
    labels = np.unique([path.split("/")[0] for path in paths], return_inverse=True)[1]
    features = np.random.default_rng(0).normal(size=(len(paths), 6)).astype(np.float32)
    save_features(tmp_path / "features.npz", features, labels, np.array(paths), {})
    given = ("--set", small_set, "--features", tmp_path / "features.npz", "--out")
    for script, *options in (("figures.py", "--choose", "failures"), ("figures.py", "--choose", "successes"), ("tsne_map.py",)):
        done = tool(f"tools/{script}", *given, tmp_path / "picture.png", *options, env=no_caffe)
        assert done.returncode == 0, done.stderr
        Image.open(tmp_path / "picture.png").verify()
        (tmp_path / "picture.png").unlink()


# --- the map -----------------------------------------------------------------------------------------------------------


def in_cells(points, cells):
    """{(column, row from the top): [(distance to the cell's centre, point)]}, a point at a time."""
    (left, bottom), (right, top) = points.min(axis=0), points.max(axis=0)
    side = max(right - left, top - bottom)
    left, top = (left + right - side) / 2, (top + bottom + side) / 2
    found = {}
    for place, (x, y) in enumerate(points):
        across, down = (x - left) / side * cells, (top - y) / side * cells
        cell = (min(int(across), cells - 1), min(int(down), cells - 1))
        found.setdefault(cell, []).append((math.dist((across, down), (cell[0] + 0.5, cell[1] + 0.5)), place))
    return found


@pytest.mark.parametrize("shape", [(1, 1), (1, 0.3), (0.05, 1)])
def test_a_cell_shows_the_image_nearest_to_its_centre(shape):
    points = np.random.default_rng(0).normal(size=(900, 2)) * shape + (5, -3)
    shown, cell, crowd = tsne_map.thin(points, 17)
    expected = in_cells(points, 17)
    assert {tuple(place) for place in cell} == set(expected) and len(cell) == len(expected)  # each cell once: none overlap
    for place, where, here in zip(shown, cell, crowd):
        members = expected[tuple(where)]
        assert place == min(members)[1] and here == len(members)
    assert crowd.sum() == 900 and cell.min() >= 0 and cell.max() == 16


def test_thumbnails_lie_in_their_cells_and_do_not_overlap(monkeypatch):
    monkeypatch.setattr(tsne_map, "GRIDS", {5: 8})
    points = np.array([[0, 0], [10, 10], [0, 10], [4.9, 5.1]])
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [0, 0, 0]], np.uint8)
    shown, cell, _ = tsne_map.thin(points, 5)
    canvas = np.asarray(tsne_map.paint(lambda row: np.broadcast_to(colours[row], (20, 20, 3)), shown, cell, 5))
    assert canvas.shape == (40, 40, 3)
    for where, colour in (((36, 4), 0), ((4, 36), 1), ((4, 4), 2), ((20, 20), 3)):  # upwards is up
        assert canvas[where].tolist() == colours[colour].tolist()
    assert (canvas != 255).any(axis=2).sum() == 4 * 6 * 6


def test_tight_groups_get_the_finer_grid():
    random = np.random.default_rng(0)
    assert tsne_map.cells_for(random.uniform(size=(6000, 2))) == 64
    tight = random.uniform(size=(40, 1, 2)) + random.normal(0, 0.005, (40, 150, 2))
    assert tsne_map.cells_for(tight.reshape(-1, 2)) == 96


def test_a_map_keeps_groups_together_and_is_a_function_of_its_seed():
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(3), 25)
    features = (random.normal(size=(3, 8))[group] * 5 + random.normal(size=(75, 8))).astype(np.float32)
    points = tsne_map.embed(features)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(75)
    assert (group[distance.argmin(axis=1)] == group).all()
    np.testing.assert_array_equal(points, tsne_map.embed(features))


@pytest.mark.parametrize("features", [np.ones((20, 4)), np.eye(8)[[0, 1, 2, 3] * 3], np.random.default_rng(0).normal(size=(8, 2))])
def test_a_map_of_a_collapsed_or_tiny_embedding(features):
    points = tsne_map.embed(features.astype(np.float32))
    assert points.shape == (len(features), 2) and np.isfinite(points).all()
    with pytest.raises(ValueError, match="a map of 7 images shows nothing"):
        tsne_map.embed(np.eye(7))
    line = tsne_map.embed(np.random.default_rng(0).normal(size=(40, 1)))  # an embedding of one number has a map too
    assert line.shape == (40, 2) and np.isfinite(line).all()


def test_places_are_kept_until_the_features_change(tmp_path, monkeypatch):
    calls = []

    def embed(features, seed):
        calls.append(len(features))
        return features[:, :2]

    monkeypatch.setattr(tsne_map, "embed", embed)
    monkeypatch.setattr(tsne_map, "MOST", 30)
    features, path = np.random.default_rng(0).normal(size=(50, 4)), tmp_path / "features.npz"
    path.write_bytes(b"one")
    rows, points = tsne_map.places(path, features)
    again = tsne_map.places(path, features)
    np.testing.assert_array_equal(rows, again[0])
    np.testing.assert_array_equal(points, again[1])
    assert calls == [30] and len(set(rows)) == 30  # too many are sampled
    np.testing.assert_array_equal(points, features[rows][:, :2])
    path.write_bytes(b"two")
    tsne_map.places(path, features)
    (tmp_path / "tsne.npz").write_bytes(b"damaged")
    tsne_map.places(path, features)
    tsne_map.places(path, features, seed=2)
    assert calls == [30] * 4


# --- the gradients -----------------------------------------------------------------------------------------------------


def equation_1(x):
    total = 0.0
    for i, j, same in gradient_figure.PAIRS:
        distance = math.dist(x[i], x[j])
        total += distance**2 if same else max(0.0, 1 - distance) ** 2
    return total / (2 * len(gradient_figure.PAIRS))  # m images make m/2 pairs


def equation_2(x):
    total = 0.0
    for a, p, n in gradient_figure.TRIPLETS:
        total += max(0.0, math.dist(x[a], x[p]) ** 2 - math.dist(x[a], x[n]) ** 2 + 1)
    return 3 / (2 * 3 * len(gradient_figure.TRIPLETS)) * total  # m images make m/3 triplets


def equation_4(x):
    labels, total, pairs = gradient_figure.LABELS, 0.0, 0
    for i, j in itertools.combinations(range(len(x)), 2):
        if labels[i] == labels[j]:
            others = [math.exp(1 - math.dist(x[end], x[k])) for end in (i, j) for k in range(len(x)) if labels[k] != labels[end]]
            total += max(0.0, math.log(sum(others)) + math.dist(x[i], x[j])) ** 2
            pairs += 1
    return total / (2 * pairs)


@pytest.mark.parametrize("panel, loss", [(0, equation_1), (1, equation_2), (2, equation_4)])
def test_arrows_are_negative_gradients(panel, loss):
    points, arrows = gradient_figure.POINTS, gradient_figure.panels()[panel].arrows
    expected = np.zeros_like(points)
    for place in np.ndindex(points.shape):
        step = np.zeros_like(points)
        step[place] = 1e-6
        expected[place] = -(loss(points + step) - loss(points - step)) / 2e-6
    np.testing.assert_allclose(arrows, expected, atol=1e-8)


def test_the_losses_of_the_picture_have_these_values():
    assert gradient_figure.contrastive_loss(gradient_figure.POINTS, gradient_figure.PAIRS)[0] == pytest.approx(
        equation_1(gradient_figure.POINTS)
    )
    assert gradient_figure.by_triplets(gradient_figure.POINTS, gradient_figure.TRIPLETS)[0] == pytest.approx(
        equation_2(gradient_figure.POINTS)
    )
    far = np.array([[0.0, 0], [0.1, 0], [9, 0]])  # beyond the margin nothing pulls or pushes
    assert gradient_figure.by_triplets(far, [(0, 1, 2)]) == (0, pytest.approx(np.zeros((3, 2))))
    assert gradient_figure.contrastive_loss(far, [(0, 2, 0)]) == (0, pytest.approx(np.zeros((3, 2))))


def test_the_picture_of_the_gradients_is_true():
    """Contrastive and triplet move the positive nearer to every point of the third class, the lifted loss farther from each."""
    points, labels, positive = gradient_figure.POINTS, gradient_figure.LABELS, gradient_figure.POSITIVE
    third = points[labels == 2]
    mates = np.flatnonzero((labels == labels[positive]) & (np.arange(len(labels)) != positive))
    contrastive, triplet, lifted = gradient_figure.panels()

    def change(panel, others):  # of the distance to each, when the positive takes a small step along its arrow
        step = panel.arrows[positive] * 1e-4
        return [math.dist(points[positive] + step, other) - math.dist(points[positive], other) for other in others]

    assert max(change(contrastive, third)) < 0 and max(change(triplet, third)) < 0
    assert min(change(lifted, third)) > 0
    assert min(change(lifted, points[labels == 1])) > 0  # nor is it pushed towards the second class
    assert sum(change(lifted, points[mates])) < 0  # it nears its own
    for panel in (contrastive, triplet):
        assert (gradient_figure.towards_third(panel.arrows[positive]) > 0.8).all()
    assert (gradient_figure.towards_third(lifted.arrows[positive]) < -0.15).all()
    drawn = {place for panel in (contrastive, triplet) for edge in panel.edges for place in edge}
    assert not drawn & set(np.flatnonzero(labels == 2))  # the drawn edges have none of the third class
    assert len(lifted.edges) == math.comb(len(points), 2)


def test_the_picture_of_the_gradients_is_written(tmp_path):
    gradient_figure.draw(tmp_path / "deep" / "gradients.png")
    assert Image.open(tmp_path / "deep" / "gradients.png").size[0] > 1500


# --- curves ------------------------------------------------------------------------------------------------------------


def score_run(home, kind, run, recall, nmi=0.5, f1=0.2, official=True, **training):
    """A metrics.json below `home`, with the same baseline in each."""
    clustering = {"method": "kmeans", "clusters": 10}
    row = {"recall_at": recall, "nmi": nmi, "f1": f1, "n": 100, "classes": 10, "clustering": clustering}
    training = {"solver": f"prototxt/cub/{kind}/solver.prototxt", "seed": 1, "iterations": 20000, "base_lr": 1e-6, "batch": None,
                "weights": {"bvlc_googlenet": True, "sha1": "4" * 40}, **training}  # fmt: skip
    about = {"training": training, "set": {"name": "cub", "official": official, "doubts": ["drawn"], "content": "c" * 64}}
    (home / kind / run).mkdir(parents=True)
    metrics = {**row, "about": about, "baselines": {"untrained": {**row, "recall_at": {"1": 0.1, "8": 0.3}}}}
    (home / kind / run / "metrics.json").write_text(json.dumps(metrics))


PUBLISHED = {"set": "cub", "method": "lifted", "network": "GoogLeNet", "dimensions": 512, "batch": 128, "recall_at": {"1": 47.2},
             "nmi": None, "f1": 21.0, "source": "a paper", "read": "first hand"}  # fmt: skip


def test_curves_are_means_over_seeds(tmp_path):
    for seed, nmi in ((1, 0.50), (2, 0.54)):
        score_run(tmp_path, "lifted_64", f"seed{seed}", {"1": 0.4 + seed / 100, "8": 0.8}, nmi, seed=seed)
    score_run(tmp_path, "lifted_128", "seed1", {"1": 0.45, "8": 0.85}, 0.55)
    score_run(tmp_path, "lifted_64_m32", "seed1", {"1": 0.3, "8": 0.6}, batch=32)  # of another batch: for the table
    score_run(tmp_path, "triplet_64", "seed1", {"1": 0.35, "8": 0.7}, 0.45, batch=120)
    rows = [PUBLISHED, {**PUBLISHED, "batch": 32, "source": "b"}, {**PUBLISHED, "method": "n-pairs", "source": "c"},
            {**PUBLISHED, "read": "independent re-run", "source": "d"},
            {**PUBLISHED, "dimensions": None, "network": "Inception-BN", "nmi": 56.5, "source": "e"}]  # fmt: skip
    found = plots.gather(finished_runs(tmp_path, "cub"), rows, 64)
    nmi = {line.label: line.points for line in found.nmi}
    assert nmi == {"ours: lifted": {64: pytest.approx([50, 54]), 128: pytest.approx([55])},
                   "ours: triplet": {64: pytest.approx([45])},
                   "published: lifted, Inception-BN, size not stated [2]": {None: [56.5]}}  # fmt: skip
    recall = {line.label: line.points for line in found.recall}
    assert recall["ours: lifted"] == {1: pytest.approx([41, 42]), 8: pytest.approx([80, 80])}
    assert recall["the net, untrained"] == {1: pytest.approx([10]), 8: pytest.approx([30])}
    assert recall["published: lifted, GoogLeNet, 512 dimensions [1]"] == {1: [47.2]}
    assert [line.split(" (")[0] for line in found.sources] == ["a paper", "e"] and found.official
    assert plots.panels_of(found) == ["F1", "NMI", "Recall@K"]
    largest = plots.gather(finished_runs(tmp_path, "cub"), [])
    assert largest.dimensions == 128 and "ours: triplet" not in {line.label for line in largest.recall}
    plots.draw_curves(found, tmp_path / "curves.png")
    Image.open(tmp_path / "curves.png").verify()


def test_two_recipes_are_two_lines(tmp_path):
    score_run(tmp_path, "lifted_64", "seed1", {"1": 0.4}, 0.5)
    score_run(tmp_path, "lifted_64", "short", {"1": 0.2}, 0.3, iterations=60, official=False)
    found = plots.gather(finished_runs(tmp_path, "cub"), [])
    assert len(found.nmi) == 2 and all(len(line.points[64]) == 1 for line in found.nmi)
    assert len({line.label for line in found.nmi}) == 2 and len({line.style["linestyle"] for line in found.nmi}) == 2
    assert not found.official
    assert plots.panels_of(found) == ["Recall@K"]  # one size and nothing published: no panel against the size


def test_whiskers_reach_from_the_lowest_to_the_highest_seed(monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.errorbar", lambda axis, x, y, yerr=None, **_: drawn.append((x, y, yerr)))
    line = plots.Series("ours", {64: [50.0, 54.0, 55.0], 128: [60.0]}, {"color": "k"})
    plots.svg(lambda axis: plots.draw_panel(axis, "NMI", plots.Curves([], [line], [], None, [], True)))
    (x, middle, ends) = drawn[0]
    assert x.tolist() == [64, 128] and middle.tolist() == [53, 60]
    assert ends.tolist() == [[3, 0], [2, 0]]


def test_the_log_of_a_training(tmp_path):
    path = tmp_path / "log.csv"
    assert plots.read_log(path) == {}
    head = ",".join(plots.LOGGED)
    path.write_text(f"{head}\n")
    assert plots.read_log(path) == {}
    path.write_text(f"{head}\n1,2.5,,,,,\n2,1.5,0,0.25,1,1,1\n")
    log = plots.read_log(path)
    assert log["loss"].tolist() == [2.5, 1.5] and np.isnan(log["positive_mean"][0]) and log["positive_mean"][1] == 0.25
    ends = ("2,half", "2,1\0,,,,,", "a,1,,,,,", "2,nan,,,,,", "2,1,,,,,,9")
    for damaged in (b"\xff\xfe\0", b"loss\n1\n", *(f"{head}\n1,2.5,,,,,\n{end}".encode() for end in ends)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="log.csv: is damaged"):
            plots.read_log(path)
    done = tool("tools/plots.py", "--log", tmp_path / "none.csv", "--out", tmp_path / "training.png")
    assert done.returncode == 1 and "none.csv: is missing or empty; tools/train.py writes it" in done.stderr


@pytest.mark.parametrize("count, window", [(1, 1), (2, 2), (7, 3), (50, 10), (101, 101)])
def test_smoothing_against_a_loop(count, window):
    values = np.random.default_rng(0).normal(size=count)
    expected = []
    for middle in range(count):
        first = middle - (window - 1 - window // 2)
        expected.append(np.mean([values[place] for place in range(first, first + window) if 0 <= place < count]))
    np.testing.assert_allclose(plots.smooth(values, window), expected)
