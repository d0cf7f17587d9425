"""Recall@K, NMI and F1 against literal second implementations and examples worked by hand."""

import json
import math
import os
from itertools import combinations

import faiss
import numpy as np
import pytest
from conftest import tool
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.cluster import KMeans

from tools.evaluate import evaluate, kmeans, score
from tools.features import load_features, save_features
from tools.metrics import nmi, pairwise_f1, purity, rand_index, recall_at_k, retrieval
from tools.table import percent
from tools.verdict import verdict


def literal_recall(features, labels, k):
    """Sort the others of each query by distance, those of other classes first among equals."""
    hits = 0
    for q in range(len(labels)):
        others = [(math.dist(features[q], features[i]), labels[i] == labels[q]) for i in range(len(labels)) if i != q]
        hits += any(same for _, same in sorted(others)[:k])
    return hits / len(labels)


def literal_map_at_r(features, labels):
    """Musgrave et al. 2020, query by query; others of other classes first among equals."""
    scores = []
    for q in range(len(labels)):
        others = sorted((math.dist(features[q], features[i]), labels[i] == labels[q]) for i in range(len(labels)) if i != q)
        hits = [same for _, same in others]
        r = sum(hits)
        scores.append(sum(sum(hits[: i + 1]) / (i + 1) for i in range(r) if hits[i]) / r if r else 0.0)
    return sum(scores) / len(scores)


def literal_rand_index(labels, clusters):
    pairs = list(combinations(range(len(labels)), 2))
    return sum((labels[i] == labels[j]) == (clusters[i] == clusters[j]) for i, j in pairs) / len(pairs) if pairs else 1.0


def literal_purity(labels, clusters):
    right = 0
    for cluster in set(clusters):
        members = [label for label, own in zip(labels, clusters) if own == cluster]
        right += max(members.count(label) for label in members)
    return right / len(labels)


def literal_f1(labels, clusters):
    pairs = list(combinations(range(len(labels)), 2))
    true = {p for p in pairs if labels[p[0]] == labels[p[1]]}
    predicted = {p for p in pairs if clusters[p[0]] == clusters[p[1]]}
    if not true & predicted:
        return 0.0
    precision, recall = len(true & predicted) / len(predicted), len(true & predicted) / len(true)
    return 2 * precision * recall / (precision + recall)


def literal_nmi(labels, clusters):
    n = len(labels)

    def entropy(values):
        return -sum(values.count(v) / n * math.log(values.count(v) / n) for v in set(values))

    mutual = sum(
        both / n * math.log(n * both / (labels.count(a) * clusters.count(b)))
        for a in set(labels)
        for b in set(clusters)
        if (both := sum(x == a and y == b for x, y in zip(labels, clusters)))
    )
    total = entropy(labels) + entropy(clusters)
    return 2 * mutual / total if total else 1.0


small = st.integers(2, 14).flatmap(
    lambda n: st.tuples(
        arrays(np.float32, (n, 2), elements=st.integers(-3, 3).map(float)),  # a grid: full of ties and duplicates
        st.lists(st.integers(0, 4), min_size=n, max_size=n),
    )
)


@settings(max_examples=150, deadline=None)
@given(small)
def test_recall_on_grids_full_of_ties(batch):
    features, labels = batch
    ks = range(1, len(labels))
    found = retrieval(features, labels, ks)
    assert found.recall_at == recall_at_k(features, labels, ks) == {k: literal_recall(features, labels, k) for k in ks}
    assert found.map_at_r == pytest.approx(literal_map_at_r(features, labels), abs=1e-12)
    assert found.lone_queries == sum(labels.count(label) == 1 for label in labels)


@settings(max_examples=60, deadline=None)
@given(small, st.integers(0, 1000), st.sampled_from([1e-150, 0.5, 3.0, 1e30]))
def test_retrieval_does_not_depend_on_order_names_or_scale(batch, seed, scale):
    features, labels = batch
    ks = range(1, len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    other = retrieval(features[order].astype(float) * scale, [f"class {10 - labels[i]}" for i in order], ks)
    found = retrieval(features, labels, ks)
    assert other.recall_at == found.recall_at and other.map_at_r == pytest.approx(found.map_at_r, abs=1e-12)


def test_map_at_r_by_hand():
    #            0    1    2    3    4
    features = [[0], [1], [3], [4], [9]]
    labels = ["a", "b", "a", "a", "b"]
    # 0: 1b 2a of its two nearest: (1/2) / 2. 1: 0a: 0. 2: 3a 1b: 1 / 2. 3: 2a 1b: 1/2. 4: 3a: 0.
    assert retrieval(features, labels, [1]).map_at_r == pytest.approx((0.25 + 0 + 0.5 + 0.5 + 0) / 5)


def test_recall_on_more_rows_than_a_block():
    random = np.random.default_rng(0)
    labels = random.integers(0, 200, 1300)
    features = (random.normal(size=(200, 6))[labels] + random.normal(size=(1300, 6))).astype(np.float32)
    found = recall_at_k(features, labels, [1, 10, 100])
    distance = np.linalg.norm(features[:, None].astype(float) - features[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = labels[np.argsort(distance, axis=1)]
    for k, value in found.items():
        assert value == np.mean((nearest[:, :k] == labels[:, None]).any(axis=1))
    assert 0.05 < found[1] < found[10] < found[100] < 1


def test_recall_by_hand():
    #            0    1    2    3      4
    features = [[0], [1], [3], [3.5], [10]]
    labels = ["a", "b", "a", "b", "c"]
    # Nearest first: 0: 1b 2a; 1: 0a 2a 3b; 2: 3b 1b 0a; 3: 2a 1b; 4: nothing of its class.
    assert recall_at_k(features, labels, [1, 2, 3, 4]) == {1: 0, 2: 0.4, 3: 0.8, 4: 0.8}


def test_recall_of_duplicate_embeddings():
    """An exact duplicate elsewhere counts; one of another class at the same place counts first."""
    features = [[0, 0], [0, 0], [5, 5], [5, 5], [5, 5]]
    assert recall_at_k(features, [1, 1, 2, 2, 3], [1, 2]) == {1: 0.4, 2: 0.8}


def test_recall_of_a_collapsed_embedding_is_not_luck():
    assert recall_at_k(np.ones((50, 8)), np.arange(50) // 2, [1, 48, 49]) == {1: 0, 48: 0, 49: 1}


def test_recall_is_exact_far_from_the_origin():
    random = np.random.default_rng(1)
    features = random.integers(-3, 4, (60, 3)).astype(np.float64)
    labels = random.integers(0, 12, 60)
    ks = [1, 3, 10]
    assert recall_at_k(features + 2.0**30, labels, ks) == recall_at_k(features, labels, ks)


def test_nan_features_do_not_score_100_percent():
    features = np.full((10, 4), np.nan, np.float32)
    labels = np.arange(10) // 2
    own, match = np.abs(features[:, None] - features[None]).sum(2), labels[:, None] == labels[None]
    closer = (own < np.where(match, own, np.inf).min(1)[:, None]) & ~match
    assert np.mean(closer.sum(1) < 1) == 1.0  # naive: no image of another class is closer, so each query is a hit
    with pytest.raises(ValueError, match="10 of 10 feature rows are not finite"):
        recall_at_k(features, labels, [1])


@pytest.mark.parametrize("k", [0, -1, 4, 100])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"K must be 1 to 3 for 4 images, not {k}"):
        recall_at_k(np.eye(4), [0, 0, 1, 1], [1, k])


def test_labels_of_another_length():
    with pytest.raises(ValueError, match="expected features"):
        recall_at_k(np.eye(4), [0, 1, 2], [1])
    for metric in (nmi, pairwise_f1, rand_index, purity):
        with pytest.raises(ValueError, match="expected labels"):
            metric([0, 1, 2], [0, 1])


partitions = st.integers(1, 12).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n)] * 2))


@settings(max_examples=150, deadline=None)
@given(partitions)
def test_nmi_and_f1_equal_their_definitions(both):
    labels, clusters = both
    assert nmi(labels, clusters) == pytest.approx(literal_nmi(labels, clusters), abs=1e-9)
    assert pairwise_f1(labels, clusters) == pytest.approx(literal_f1(labels, clusters), abs=1e-12)
    assert rand_index(labels, clusters) == pytest.approx(literal_rand_index(labels, clusters), abs=1e-12)
    assert purity(labels, clusters) == pytest.approx(literal_purity(labels, clusters), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(partitions)
def test_names_of_clusters_do_not_matter(both):
    labels, clusters = both
    renamed = [10 - c for c in clusters]
    assert nmi(labels, renamed) == pytest.approx(nmi(labels, clusters), abs=1e-12)
    assert nmi(clusters, renamed) == pytest.approx(1, abs=1e-12)
    for metric in (pairwise_f1, rand_index, purity):
        assert metric(labels, renamed) == metric(labels, clusters)


def test_nmi_of_equal_partitions_is_never_above_1():
    random = np.random.default_rng(0)
    for _ in range(200):  # unbounded, scikit-learn's is 1.0000000000000002 for about 1 in 8 of such
        labels = random.integers(0, 40, 300)
        assert 1 - 1e-12 < nmi(labels, 99 - labels) <= 1


def test_nmi_and_f1_by_hand():
    # Classes {0,1,2} {3,4,5}, clusters {0,1} {2,3,4,5}.
    labels, clusters = [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]
    # Pairs: 6 true, 7 predicted, 4 both, 15 in all.
    assert rand_index(labels, clusters) == pytest.approx((4 + 15 - 6 - 7 + 4) / 15) and purity(labels, clusters) == pytest.approx(
        5 / 6
    )
    assert pairwise_f1(labels, clusters) == pytest.approx(8 / 13)
    information = 1 / 3 * math.log(2) + 1 / 6 * math.log(0.5) + 1 / 2 * math.log(1.5)
    entropies = math.log(2) - (1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3))
    assert nmi(labels, clusters) == pytest.approx(2 * information / entropies)
    assert nmi(labels, labels) == pairwise_f1(labels, labels) == pytest.approx(1)
    assert pairwise_f1([0, 0, 0], [0, 1, 2]) == 0


def spread(features, clusters):
    """What k-means makes small: the squared distances to the mean of each one's cluster. And which mean is nearest, (N,)."""
    means = np.stack([features[clusters == cluster].mean(axis=0) for cluster in np.unique(clusters)])
    square = np.square(features[:, None].astype(float) - means).sum(axis=2)
    return square[np.arange(len(features)), np.unique(clusters, return_inverse=True)[1]].sum(), square.argmin(axis=1)


def test_kmeans_on_clusters_that_overlap():
    """Each is nearest to its own mean, the spread is that of scikit-learn's single runs, and the seed decides where it starts."""
    random = np.random.default_rng(0)
    features = (random.normal(size=(12, 6))[random.integers(0, 12, 400)] + 0.7 * random.normal(size=(400, 6))).astype(np.float32)
    found = [kmeans(features, 12, seed) for seed in range(1, 6)]
    for clusters in found:
        assert (spread(features, clusters)[1] == np.unique(clusters, return_inverse=True)[1]).mean() > 0.99
    theirs = [KMeans(12, n_init=1, init="random", random_state=seed).fit(features).inertia_ for seed in range(10)]
    assert min(theirs) * 0.99 < min(spread(features, clusters)[0] for clusters in found) < max(theirs)
    np.testing.assert_array_equal(found[0], kmeans(features, 12, 1))
    whole = faiss.Kmeans(6, 12, niter=100, seed=1, min_points_per_centroid=1, max_points_per_centroid=400)  # without a look
    whole.train(features)
    np.testing.assert_array_equal(found[0], whole.index.search(features, 1)[1][:, 0])
    assert len({clusters.tobytes() for clusters in found}) == 5


def test_nmi_and_f1_are_means_of_five_seeds():
    random = np.random.default_rng(1)
    labels = random.integers(0, 12, 400)
    features = (random.normal(size=(12, 6))[labels] + 0.7 * random.normal(size=(400, 6))).astype(np.float32)
    scores = score(features, labels, [1])
    each = scores["clustering"]["of_seeds"]
    assert scores["clustering"]["seeds"] == [1, 2, 3, 4, 5] and scores["clustering"]["clusters"] == 12
    by_hand = [kmeans(features, 12, seed) for seed in range(1, 6)]
    assert each["f1"] == [pairwise_f1(labels, clusters) for clusters in by_hand]
    assert each["nmi"] == [nmi(labels, clusters) for clusters in by_hand]
    assert scores["f1"] == pytest.approx(np.mean(each["f1"])) and scores["nmi"] == pytest.approx(np.mean(each["nmi"]))
    shown = percent([scores])
    assert shown["F1"] == f"{100 * np.mean(each['f1']):.1f}±{100 * np.std(each['f1'], ddof=1):.1f}" and "±" not in shown["Recall@1"]
    both = percent([scores, {**scores, "f1": 0.5}])  # over several runs it is the runs that differ
    assert both["F1"] == f"{50 * (scores['f1'] + 0.5):.1f}±{100 * abs(scores['f1'] - 0.5) / np.sqrt(2):.1f}"


CLUSTERED = {"cub": "affinity propagation", "cars196": "affinity propagation", "sop": "kmeans", "x": "kmeans"}


@pytest.mark.parametrize("name, method", CLUSTERED.items())
def test_how_each_set_is_clustered(tmp_path, name, method):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 5)
    features = (random.normal(size=(4, 3))[labels] * 5 + random.normal(size=(20, 3))).astype(np.float32)
    save_features(tmp_path / "f.npz", features, labels, [str(row) for row in range(20)], {"set": {"name": name}})
    evaluate(tmp_path / "f.npz", tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["clustering"]["method"] == method


@pytest.mark.parametrize("labels", [np.zeros(9), np.arange(9)])
def test_a_number_that_means_nothing_is_not_made(tmp_path, labels):
    """With one class every answer is right, with no two images of one none is."""
    features = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    save_features(tmp_path / "f.npz", features, labels.astype(int), [str(row) for row in range(9)], {})
    with pytest.raises(ValueError, match="nothing can be measured"):
        evaluate(tmp_path / "f.npz", tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize(
    "count, ours, untrained, raw, said",
    [
        (
            1000,
            0.50,
            0.45,
            0.40,
            ["500 of 1,000", "450 with the same net untrained", "400 with raw pixels", "The training helped."],
        ),
        (1000, 0.40, 0.45, 0.30, ["did not help", "MIRRORED=no", "ITERS=", "RUN="]),
        (1000, 0.40, 0.30, 0.45, ["The training helped, but raw pixels"]),
        (1000, 0.40, 0.40, 0.30, ["did not help"]),
        (40, 0.875, 0.80, 0.85, ["35 of 40", "did not help, or too few images"]),
        (1000, 0.40, None, None, ["400 of 1,000"]),
    ],
)
def test_verdict(count, ours, untrained, raw, said):
    beside = {"untrained": untrained, "raw_pixels": raw}
    baselines = {name: {"recall_at": {"1": share}} for name, share in beside.items() if share is not None}
    text = " ".join(verdict({"n": count, "recall_at": {"1": ours}, "baselines": baselines}))
    assert all(words in text for words in said) and ("help" in text) == bool(baselines)


def test_features_files(tmp_path):
    features, labels, paths = np.eye(3, dtype=np.float32), np.arange(3), ["a/1.png", "b/2.png", "c/3.png"]
    save_features(tmp_path / "f.npz", features, labels, paths, {"set": {"name": "x"}})
    loaded = load_features(tmp_path / "f.npz")
    np.testing.assert_array_equal(loaded[0], features)
    assert loaded[2].tolist() == paths
    with pytest.raises(ValueError, match=r"1 of 3 feature rows are not finite, first row 1 \(b/2.png\)"):
        save_features(tmp_path / "nan.npz", features * [[1], [np.nan], [1]], labels, paths, {})
    assert not (tmp_path / "nan.npz").exists()
    np.savez(tmp_path / "nan.npz", features=features * np.nan, labels=labels, paths=paths)
    np.savez(tmp_path / "pickle.npz", features=np.array([{}]), labels=labels, paths=paths)
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "f.npz").read_bytes()[:200])
    whole = {"features": features, "labels": labels, "paths": np.array(paths)}
    for number, (damage, message) in enumerate([
        ({"features": features.astype(complex)}, "expected features .N, c. that are numbers, found complex128"),
        ({"features": features > 0}, "that are numbers, found bool"), ({"features": features.astype(str)}, "found <U32"),
        ({"features": features[0]}, r"found float32 \(3,\)"), ({"features": features[:, :0]}, r"found float32 \(3, 0\)"),
        ({"features": features.astype(float) * 1e300}, r"holds numbers beyond 1e\+15"),
        ({"features": np.float32(3)}, r"found float32 \(\)"),
        ({"labels": labels + 0.5}, "expected 3 labels, whole numbers, .*; found float64"),
        ({"labels": labels * np.nan}, "found float64"),
        ({"labels": labels[:, None]}, r"found int64 \(3, 1\)"), ({"labels": np.int64(3)}, r"found int64 \(\)"),
        ({"labels": labels[1:]}, r"found int64 \(2,\)"), ({"labels": labels.astype(str)}, "found <U21"),
        ({"paths": labels}, "expected 3 paths, texts, .*; found int64"), ({"about": "[1]"}, "cannot be read as features"),
        ({"about": "[" * 100_000}, "brackets nested"), ({"about": '{"set": 5}'}, "about: other than what extraction writes"),
    ]):  # fmt: skip
        np.savez(tmp_path / f"{number}.npz", **{**whole, **damage})
        with pytest.raises(ValueError, match=rf"/{number}\.npz: .*{message}"):
            load_features(tmp_path / f"{number}.npz")
    messages = {"nan": "not finite", "pickle": "cannot be read", "damaged": "cannot be read", "none": "no such file"}
    for name, message in messages.items():
        with pytest.raises(ValueError, match=message):
            load_features(tmp_path / f"{name}.npz")


def test_evaluate_and_compare_commands(tmp_path):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 12)
    paths = [f"{label}/{i}.png" for i, label in enumerate(labels)]
    good = (np.eye(10)[labels] * 3 + random.normal(size=(120, 10)) * 0.1).astype(np.float32)
    save_features(tmp_path / "good.npz", good, labels, paths, {})
    save_features(tmp_path / "bad.npz", random.normal(size=(120, 10)).astype(np.float32), labels, paths, {})
    save_features(tmp_path / "other.npz", good, labels, [f"{path}x" for path in paths], {})
    out = tmp_path / "metrics.json"
    baseline = f"raw_pixels={tmp_path}/bad.npz"
    # Everything right of features.npz runs without Caffe: here importing it, or its messages, fails.
    for module in ("caffe", "caffe_pb2"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('no Caffe on this machine')")
    without = {"env": {**os.environ, "PYTHONPATH": str(tmp_path)}}
    done = tool("tools/evaluate.py", "--features", tmp_path / "good.npz", "--out", out, "--baseline", baseline, **without)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(out.read_text())
    assert metrics["recall_at"] == {"1": 1.0, "10": 1.0, "100": 1.0} and metrics["n"] == 120 and metrics["classes"] == 10
    assert metrics["baselines"]["raw_pixels"]["recall_at"]["1"] < 0.4 and metrics["clustering"]["method"] == "kmeans"
    done = tool("tools/compare.py", "--metrics", out, "--out", tmp_path / "report.md", **without)
    assert done.returncode == 0 and "| the embedding     |    100.0 |" in done.stdout
    assert "raw pixels, 16x16" in (tmp_path / "report.md").read_text()
    for script, arguments, message in (
        ("evaluate", ("--features", tmp_path / "good.npz", "--baseline", f"x={tmp_path}/other.npz"), "of other images"),
        ("evaluate", ("--features", tmp_path / "none.npz"), "none.npz: no such file; tools/extract.py makes it"),
        ("evaluate", ("--features", tmp_path / "good.npz", "--ks", "1,120"), "K must be 1 to 119 for 120 images, not 120"),
        ("compare", ("--metrics", tmp_path / "none.json"), "none.json: no such file; tools/evaluate.py makes it"),
        ("compare", ("--metrics", tmp_path / "good.npz"), "is not what tools/evaluate.py writes"),
    ):
        done = tool(f"tools/{script}.py", *arguments, "--out", tmp_path / "never")
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "never").exists()
