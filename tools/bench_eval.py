"""How fast the evaluation is, as ratios against its peers in the same run -> a table, and bench_eval.json.

    .venv/bin/python tools/bench_eval.py --out runs/bench_eval.json

Retrieval against faiss's search (which finds the 1,000 nearest) and against the full distance matrix; affinity
propagation, an iteration, against scikit-learn's. Each job runs in a process of its own, so that its memory is its own.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from pathlib import Path

import numpy as np

from data_prep.files import written_aside

RETRIEVAL = ((2000, 64), (5924, 64), (5924, 512), (20000, 512), (60502, 512))  # images, dimensions
FULL_MATRIX_TO = 6000  # images
MESSAGES = (1000, 2000, 5924)
ITERATIONS = 30
REPEATS = 3


def clustered(count, dimensions, classes, seed=0):
    """Features (count, dimensions) float32 around one centre a class, and labels: neither solved nor hopeless."""
    random = np.random.default_rng(seed)
    labels = np.sort(random.integers(0, classes, count))
    return (0.6 * random.normal(size=(classes, dimensions))[labels] + random.normal(size=(count, dimensions))).astype(
        np.float32
    ), labels


def ours(count, dimensions):
    from tools.metrics import retrieval

    retrieval(*clustered(100, 4, 10), [1])  # compiles
    features, labels = clustered(count, dimensions, max(2, count // 6))
    return lambda: retrieval(features, labels, [1, 10, 100, 1000])


def by_faiss(count, dimensions):
    import faiss

    features, labels = clustered(count, dimensions, max(2, count // 6))

    def search():
        index = faiss.IndexFlatL2(dimensions)
        index.add(features)
        nearest = index.search(features, 1001)[1]
        hit = (labels[nearest] == labels[:, None]) & (nearest != np.arange(count)[:, None])
        return [hit[:, : k + 1].any(axis=1).mean() for k in (1, 10, 100, 1000)]

    return search


def by_full_matrix(count, dimensions):
    from scipy.spatial.distance import cdist

    features, labels = clustered(count, dimensions, max(2, count // 6))

    def search():
        distance = cdist(features, features)
        np.fill_diagonal(distance, np.inf)
        hit = labels[np.argsort(distance, axis=1)[:, :1000]] == labels[:, None]
        return [hit[:, :k].any(axis=1).mean() for k in (1, 10, 100, 1000)]

    return search


def our_messages(count):
    from tools.affinity_propagation import cluster, similarities

    cluster(similarities(clustered(50, 4, 5)[0]), -1.0, max_iterations=2)  # compiles
    similarity = similarities(clustered(count, 64, count // 60)[0])
    preference = float(np.median(similarity))
    return lambda iterations: cluster(similarity, preference, max_iterations=iterations)


def scikit_learns_messages(count):
    from sklearn.cluster import affinity_propagation

    from tools.affinity_propagation import similarities

    similarity = similarities(clustered(count, 64, count // 60)[0])
    preference = float(np.median(similarity))
    return lambda iterations: affinity_propagation(similarity, preference=preference, damping=0.9, convergence_iter=50,
                                                   max_iter=iterations, random_state=0)  # fmt: skip


def _measure(pipe, prepare, arguments, iterations):
    """Seconds of a call, the median of a few; of an iteration, from calls of two lengths. And megabytes above the data's."""
    import warnings

    warnings.simplefilter("ignore")  # that so few iterations do not converge
    work = prepare(*arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def seconds(*given):
        start = time.perf_counter()
        work(*given)
        return time.perf_counter() - start

    if iterations:
        found = [(seconds(2 * iterations) - seconds(iterations)) / iterations for _ in range(REPEATS)]
    else:
        found = [seconds()]
        found += [seconds() for _ in range(REPEATS - 1) if found[0] < 10]
    pipe.send((statistics.median(found), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def measure(prepare, *arguments, iterations=0):
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(send, prepare, arguments, iterations))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise ValueError(f"{prepare.__name__}{arguments} ended without a result; is there enough memory?") from None
    finally:
        process.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    rows = []

    def row(what, size, peer, mine, other):
        rows.append({"what": what, "size": size, "peer": peer, "seconds": mine[0], "peer_seconds": other and other[0],
                     "megabytes": mine[1], "peer_megabytes": other and other[1]})  # fmt: skip
        theirs = f"{other[0]:.3g} s | {other[1]:,.0f} MB | {other[0] / mine[0]:.1f}" if other else "– | – | –"
        print(f"| {what} | {size} | {mine[0]:.3g} s | {mine[1]:,.0f} MB | {peer} | {theirs} |", flush=True)

    print(f"{platform.machine()}, {os.cpu_count()} cores\n")
    print("| what | size | here | memory | peer | peer's time | memory | times as fast |\n|---|---|---:|---:|---|---:|---:|---:|")
    for count, dimensions in RETRIEVAL:
        mine, size = measure(ours, count, dimensions), f"{count:,} x {dimensions}"
        row("Recall@1, 10, 100, 1000 and MAP@R", size, "faiss, 1,001 nearest", mine, measure(by_faiss, count, dimensions))
        if count <= FULL_MATRIX_TO:
            row("the same", size, "full matrix, sorted", mine, measure(by_full_matrix, count, dimensions))
    for count in MESSAGES:
        mine = measure(our_messages, count, iterations=ITERATIONS)
        other = measure(scikit_learns_messages, count, iterations=ITERATIONS)
        row("affinity propagation, an iteration", f"{count:,}", "scikit-learn", mine, other)
    with written_aside(arguments.out) as aside:
        aside.write_text(json.dumps({"machine": platform.machine(), "cores": os.cpu_count(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    run("bench_eval", main)
