"""Affinity propagation against a literal implementation, scikit-learn and the R package apcluster; and its bisection."""

import itertools
import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import AffinityPropagation, KMeans
from sklearn.metrics import normalized_mutual_info_score

from tools import affinity_propagation
from tools.affinity_propagation import assign, bisect, cluster, preference_range, similarities
from tools.evaluate import evaluate
from tools.features import save_features

HERE = Path(__file__).parent


def clouds(seed, count=120, clusters=6, spread=3.0, dimensions=4):
    """Points (count, dimensions) around `clusters` centres: no two distances are nearly equal."""
    random = np.random.default_rng(seed)
    return spread * random.normal(size=(clusters, dimensions))[random.integers(0, clusters, count)] + random.normal(
        size=(count, dimensions)
    )


def literal(similarity, preference, damping=0.9, agreement=50, max_iterations=2000):
    """Frey and Dueck's messages, one at a time, in float64: (exemplars, iterations)."""
    s = similarity.astype(float)
    n = len(s)
    np.fill_diagonal(s, preference)
    r, a = np.zeros((n, n)), np.zeros((n, n))
    history = []
    for iteration in range(max_iterations):
        new = np.empty((n, n))
        for i in range(n):
            for k in range(n):
                new[i, k] = s[i, k] - max(a[i, j] + s[i, j] for j in range(n) if j != k)
        r = damping * r + (1 - damping) * new
        new = np.empty((n, n))
        for i in range(n):
            for k in range(n):
                others = sum(max(0.0, r[j, k]) for j in range(n) if j not in (i, k))
                new[i, k] = others if i == k else min(0.0, r[k, k] + others)
        a = damping * a + (1 - damping) * new
        history.append(np.diag(r) + np.diag(a) > 0)
        last = history[-agreement:]
        if iteration >= agreement and last[-1].any() and all((chosen == last[-1]).all() for chosen in last):
            break
    exemplars = np.flatnonzero(history[-1])
    groups = np.argmax(s[:, exemplars], axis=1)
    groups[exemplars] = range(len(exemplars))
    best = []
    for k in range(len(exemplars)):
        members = np.flatnonzero(groups == k)
        best.append(max(members, key=lambda j: sum(s[i, j] for i in members)))
    return sorted(best), iteration + 1


@pytest.mark.parametrize("seed, preference", [(0, -12.0), (1, -40.0), (2, -150.0)])
def test_against_the_messages_written_out(seed, preference):
    similarity = similarities(clouds(seed, 22, 3))
    exemplars, iterations = literal(similarity, preference)
    found = cluster(similarity.copy(), preference)
    assert found.exemplars.tolist() == exemplars and found.iterations == iterations and found.converged


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.003, 0.03, 0.3])
def test_same_exemplars_as_scikit_learn(seed, share):
    similarity = similarities(clouds(seed, 150 + 30 * seed, 3 + seed))
    low, high = preference_range(similarity)
    preference = high - share * (high - low)
    peer = AffinityPropagation(affinity="precomputed", preference=preference, damping=0.9, convergence_iter=50, max_iter=2000,
                               random_state=0).fit(similarity.astype(float))  # fmt: skip
    found = cluster(similarity, preference)
    assert found.iterations == peer.n_iter_ and len(found.exemplars) == len(peer.cluster_centers_indices_)
    np.fill_diagonal(similarity, preference)
    mine, theirs = assign(similarity, found.exemplars), peer.labels_
    assert len(set(zip(mine, theirs))) == len(found.exemplars)  # the same clusters
    for exemplar in set(found.exemplars) ^ set(peer.cluster_centers_indices_):
        assert (theirs == theirs[exemplar]).sum() == 2  # of two images either may stand for both: its noise decides


def by_r(points, wanted, folder):
    np.savetxt(folder / "points.csv", points, delimiter=",", fmt="%.17g")
    command = ["Rscript", HERE / "apcluster.R", folder / "points.csv", str(wanted)]
    done = subprocess.run(command, text=True, capture_output=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return {"range": [float(value) for value in lines[0][1:]],
            "trials": [[float(line[0]), [int(place) for place in line[1:]]] for line in lines[1:]]}  # fmt: skip


CASES = [(seed, count, clusters) for seed, (count, clusters) in enumerate([(60, 4), (150, 7), (300, 12)])]


@pytest.mark.parametrize("case", CASES)
def test_golden_values_of_apcluster(case):
    """tests/golden/apcluster.json is what `Rscript tests/apcluster.R` printed (apcluster 1.4.10)."""
    seed, count, clusters = case
    golden = json.loads((HERE / "golden" / "apcluster.json").read_text())[str(case)]
    similarity = similarities(clouds(seed, count, clusters))
    assert preference_range(similarity) == pytest.approx(golden["range"], rel=1e-5)
    for preference, exemplars in golden["trials"]:
        assert cluster(similarity, preference).exemplars.tolist() == exemplars
    # apclusterK reached the number, and so does our search.
    assert len(golden["trials"][-1][1]) == clusters == len(bisect(clouds(seed, count, clusters), clusters)[1].exemplars)


@pytest.mark.skipif(not shutil.which("Rscript"), reason="R is not installed (Debian: r-cran-apcluster)")
@pytest.mark.parametrize("case", CASES)
def test_the_golden_values_are_r_s(case, tmp_path):
    seed, count, clusters = case
    golden = json.loads((HERE / "golden" / "apcluster.json").read_text())[str(case)]
    assert by_r(clouds(seed, count, clusters), clusters, tmp_path) == golden


def test_the_search_goes_as_apclusterk_does():
    """Down from the highest similarity by powers of ten of the range until few enough; then halves; exactly `wanted`."""
    points = clouds(3, 200, 9)
    low, high = preference_range(similarities(points))
    clusters, best, steps = bisect(points, 30)
    assert len(best.exemplars) == 30 == np.unique(clusters).size and best is steps[-1]
    powers = [10.0**power for power in (-4, -3, -2, -1)]
    down = 0
    while len(steps[down].exemplars) > 30:
        down += 1
    assert [step.preference for step in steps[: down + 1]] == [high - power * (high - low) for power in powers[: down + 1]]
    bounds = [steps[down].preference, high]
    for step in steps[down + 1 :]:
        assert step.preference == sum(bounds) / 2
        bounds[0 if len(step.exemplars) < 30 else 1] = step.preference
    assert len(steps) - down - 1 <= 20


def test_tolerance():
    points = clouds(3, 200, 9)
    exact, near = bisect(points, 30)[2], bisect(points, 30, tolerance=0.2)[2]
    assert len(near) < len(exact) and 24 <= len(near[-1].exemplars) <= 36


def test_a_number_that_no_preference_gives():
    """Two pairs, far apart, each of one distance: three clusters cannot be had; what was reached is told."""
    clusters, best, steps = bisect(np.array([[0.0, 0], [0, 1], [10, 0], [10, 1]]), 3)
    assert len(best.exemplars) == 2 == np.unique(clusters).size and len(steps) == 21
    assert clusters[0] == clusters[1] != clusters[2] == clusters[3]
    assert steps[-1].iterations == affinity_propagation.AGREEMENT + 1  # decided at once: the first, and fifty that agree


def test_steps_of_an_earlier_call_are_not_computed_again(monkeypatch):
    points = clouds(4, 150, 8)
    clusters, best, steps = bisect(points, 20)
    called = []
    monkeypatch.setattr(affinity_propagation, "cluster", lambda *a, **k: called.append(a[1]) or cluster(*a, **k))
    again, same, all_steps = bisect(points, 20, steps=steps[:2])
    assert called == [step.preference for step in steps[2:]] and same.preference == best.preference
    np.testing.assert_array_equal(clusters, again)
    assert [step.preference for step in all_steps] == [step.preference for step in steps]


def test_a_killed_evaluation_goes_on(tmp_path, monkeypatch, capsys):
    points, labels = clouds(5, 160, 12).astype(np.float32), np.arange(160) % 23
    save_features(tmp_path / "f.npz", points, labels, [str(i) for i in range(160)], {"set": {"name": "cub"}})
    evaluate(tmp_path / "f.npz", tmp_path / "whole.json")
    whole = json.loads((tmp_path / "whole.json").read_text())
    steps = whole["clustering"]["steps"]
    assert steps > 3 and whole["clustering"]["method"] == "affinity propagation" and whole["clustering"]["clusters"] == 23
    count = 0

    def dying(*arguments, **options):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return cluster(*arguments, **options)

    monkeypatch.setattr(affinity_propagation, "cluster", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "f.npz", tmp_path / "m.json")
    capsys.readouterr()
    evaluate(tmp_path / "f.npz", tmp_path / "m.json")
    out = capsys.readouterr().out
    assert out.count("from an earlier call") == 2 and count == 3 + steps - 2
    assert json.loads((tmp_path / "m.json").read_text()) == whole
    assert not list(tmp_path.glob(".*steps"))


def test_memory_is_asked_for_before_the_work(monkeypatch):
    monkeypatch.setattr(affinity_propagation, "available_memory", lambda: 4.1e9)
    with pytest.raises(ValueError, match="of 60,502 images takes 43.9 GB .* 4.1 GB .*--clustering kmeans"):
        affinity_propagation.require_memory(60502)
    affinity_propagation.require_memory(5924)


def test_memory_that_the_page_cache_holds_counts_as_available():
    """Read from this machine: what a file takes in the cache must not be missing."""
    said = Path("/proc/meminfo").read_text()
    free, cached = (int(re.search(rf"^{name}: +(\d+) kB", said, re.MULTILINE)[1]) << 10 for name in ("MemFree", "Cached"))
    assert free < affinity_propagation.available_memory() < free + 1.5 * cached + (1 << 30)


@pytest.mark.parametrize(
    "files, available",
    [
        ({}, 23000),
        ({"memory.max": "max", "memory.current": "9"}, 23000),
        ({"memory.max": "6000", "memory.current": "5000", "memory.stat": "anon 1\ninactive_file 3000\n"}, 4000),
        ({"job/memory.max": "6000", "job/memory.current": "5000", "job/memory.stat": "inactive_file 0\n"}, 1000),
        (
            {
                "memory/memory.limit_in_bytes": "6000",
                "memory/memory.usage_in_bytes": "2000",
                "memory/memory.stat": "total_inactive_file 500\n",
            },
            4500,
        ),
        ({"memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/memory.usage_in_bytes": "1"}, 23000),
    ],
)
def test_memory_is_capped_by_the_limit_of_a_container_or_job(tmp_path, files, available):
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable: 23000 kB\n".replace("23000 kB", "23 kB"))
    (tmp_path / "cgroup").write_text("4:memory:/\n0::/job\n")
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    found = affinity_propagation.available_memory(tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "fs")
    assert found == (23 << 10 if available == 23000 else available)


def test_wrong_input():
    for wanted in (1, 5, 50):
        with pytest.raises(ValueError, match=f"must be 2 to 4 for 5 images, not {wanted}"):
            bisect(np.eye(5), wanted)
    similarity = similarities(clouds(0, 20))
    similarity[3, 4] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        cluster(similarity, -1.0)
    with pytest.raises(ValueError, match="must be finite"):
        cluster(similarities(clouds(0, 20)), np.inf)


@pytest.mark.parametrize("apart", [0, 1e-7])
@pytest.mark.parametrize("times", [2, 3, 4, None])
def test_copies_of_images_are_clustered_as_one(times, apart):
    """Each image there several times, to the bit or but for rounding: a cluster an image, with all its copies."""
    random = np.random.default_rng(0)
    places = random.normal(size=(6, 4))
    repeats = np.full(6, times) if times else np.array([1, 4, 2, 7, 1, 3])
    truth = np.repeat(np.arange(6), repeats)
    points = (places[truth] + apart * random.normal(size=(len(truth), 4))).astype(np.float32)
    clusters, best, _ = bisect(points, 6)
    assert len(best.exemplars) == 6 and set(truth[best.exemplars]) == set(range(6))
    assert len(set(zip(clusters, truth))) == 6
    clusters, best, _ = bisect(points, 3)
    assert len(best.exemplars) == 3 and len(set(zip(clusters, truth))) == 6  # no image is apart from its copies


def test_a_whole_set_with_many_copies():
    points, truth = clouds(7, 240, 30, spread=6), None
    random = np.random.default_rng(1)
    points = np.repeat(points, random.integers(1, 5, len(points)), axis=0)
    truth = KMeans(30, n_init=10, random_state=0).fit_predict(points)
    clusters, best, _ = bisect(points, 30)
    assert len(best.exemplars) == 30 and normalized_mutual_info_score(truth, clusters) > 0.9


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_counts_as_often_as_it_is_there(seed):
    """The exemplars are the best of all sets of exemplars, by net similarity, with every copy counted: tried one by one."""
    random = np.random.default_rng(seed)
    places = 9 * random.normal(size=(3, 1, 2)) + random.normal(size=(3, 3, 2))
    points = np.repeat(places.reshape(9, 2), random.integers(1, 6, 9), axis=0)
    similarity = -np.square(points[:, None] - points).sum(axis=2)
    _, best, _ = bisect(points, 3)
    unique = np.unique(points, axis=0, return_index=True)[1]

    def worth(exemplars):
        exemplars = list(exemplars)
        return similarity[:, exemplars].max(axis=1).sum() + best.preference * len(exemplars)

    sets = [chosen for size in range(1, 6) for chosen in itertools.combinations(unique, size)]
    assert worth(best.exemplars) == pytest.approx(max(map(worth, sets)))


def test_no_exemplar_is_not_too_few(monkeypatch):
    """Where the messages have not settled, the search moves no bound, looks beside, and takes what has exemplars."""
    real, called = affinity_propagation.cluster, []

    def unsettled(similarity, preference, **options):
        called.append(preference)
        found = real(similarity, preference, **options)
        return found._replace(exemplars=np.empty(0, int), converged=False) if len(called) in at else found

    steps = bisect(clouds(3, 200, 9), 30)[2]
    monkeypatch.setattr(affinity_propagation, "cluster", unsettled)
    at = set()
    for numbers in ({1}, {len(steps)}, {len(steps) - 1, len(steps)}):
        called.clear()
        at.clear()
        at |= numbers
        assert len(bisect(clouds(3, 200, 9), 30)[1].exemplars) == 30


def test_duplicates_and_equal_embeddings():
    points = np.repeat(clouds(1, 8, 8), 5, axis=0)  # eight places, five images at each
    clusters, best, _ = bisect(points, 8)
    assert len(best.exemplars) == 8 and all(np.unique(clusters[start : start + 5]).size == 1 for start in range(0, 40, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clusters, best, _ = bisect(np.ones((12, 3)), 4)
    assert not clusters.any() and len(clusters) == 12 and best.exemplars.tolist() == [0]
