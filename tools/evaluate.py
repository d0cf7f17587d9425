"""Score features: Recall@K, MAP@R, NMI, F1, purity and Rand index -> metrics.json.

    .venv/bin/python tools/evaluate.py --features runs/demo/lifted_64/seed1/features.npz --out metrics.json \\
                                       --baseline raw_pixels=runs/demo/raw_pixels.npz
    .venv/bin/python tools/evaluate.py --features features.npz --out metrics.json --clustering affinity

Runs without Caffe. NMI and F1 are those of as many clusters as there are classes. CUB and Cars196 are clustered by
affinity propagation, as the paper says; Online Products by k-means, as the authors' released script does (affinity
propagation would take 44 GB), and so is every other set, unless --clustering asks for another. K-means depends on where
it starts, so its NMI and F1 are means of five seeds; metrics.json has each.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import hashlib
import json
from pathlib import Path
from statistics import fmean

import faiss
import numpy as np
from tqdm import tqdm

from data_prep.files import read_record, require_writable, sha256, written_aside
from tools import affinity_propagation
from tools.features import load_features
from tools.metrics import nmi, pairwise_f1, purity, rand_index, retrieval

KMEANS = {"method": "kmeans", "library": f"faiss {faiss.__version__}", "iterations": 100, "restarts": 1, "seeds": [1, 2, 3, 4, 5]}
AFFINITY = {
    "method": "affinity propagation",
    "damping": affinity_propagation.DAMPING,
    "agreement": affinity_propagation.AGREEMENT,
    "max_iterations": affinity_propagation.MAX_ITERATIONS,
    "bisections": affinity_propagation.BISECTIONS,
    "noise": affinity_propagation.NOISE,
    "copies": affinity_propagation.COPIES,
}
STRIDE = 10  # iterations between two looks at whether the centroids still move
BY_AFFINITY = ("cub", "cars196")  # sets whose default it is


def kmeans(features, clusters, seed):
    """Cluster of each row (N,), by faiss k-means with the settings of KMEANS; it ends early where nothing moves any more."""
    machine = faiss.Kmeans(
        features.shape[1],
        clusters,
        niter=STRIDE,
        nredo=KMEANS["restarts"],
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(features),
    )
    machine.train(features)
    for _ in range(KMEANS["iterations"] // STRIDE - 1):
        before = machine.centroids.copy()
        machine.train(features, init_centroids=before)
        if np.array_equal(before, machine.centroids):
            break
    return machine.index.search(features, 1)[1][:, 0]


def by_affinity(features, wanted, tolerance, notes):
    """Clusters (N,) by affinity propagation, and the facts for metrics.json; says what it takes, and each step.

    Finished steps are kept in the file `notes`: a call that was killed goes on after them.
    """
    gigabytes = affinity_propagation.memory(len(features)) / 1e9
    print(
        f"affinity propagation: {len(features):,} images, {wanted:,} clusters wanted; takes {gigabytes:.2g} GB of memory",
        flush=True,
    )
    of = {"features": _digest(features), "wanted": wanted, "tolerance": tolerance, **AFFINITY}
    record = read_record(notes)
    kept = record.get("steps", []) if record.get("of") == of else []
    steps = [affinity_propagation.Clustering(step[0], np.array(step[1], int), *step[2:]) for step in kept]
    done, spent = [], []

    def on_step(number, trial, seconds):
        done.append([trial.preference, trial.exemplars.tolist(), trial.iterations, trial.converged])
        if seconds and number > len(kept):
            spent.append(seconds)
            with written_aside(notes) as aside:
                aside.write_text(json.dumps({"of": of, "steps": done}))
        most = max(0, affinity_propagation.BISECTIONS + len(affinity_propagation.STEPS_DOWN) - number)
        left = f"at most {most * np.mean(spent) / 60:.1f} min more" if spent else "from an earlier call"
        end = "converged" if trial.converged else "not converged"
        print(f"  step {number}: preference {trial.preference:.6g}, {len(trial.exemplars):,} clusters, "
              f"{trial.iterations} iterations, {end}; {left}", flush=True)  # fmt: skip

    clusters, best, _ = affinity_propagation.bisect(features, wanted, tolerance, steps, on_step)
    reached = len(best.exemplars)
    if reached != wanted:
        print(f"  {wanted:,} clusters were not reached; the nearest is {reached:,}")
    return clusters, {**AFFINITY, "tolerance": tolerance, "wanted": wanted, "clusters": reached, "preference": best.preference,
                      "converged": best.converged, "steps": len(done)}  # fmt: skip


def score(features, labels, ks, clustering="kmeans", tolerance=0.0, notes=None):
    """The metrics of one features.npz, as metrics.json holds them: those of the clustering as means over its seeds.

    Raises ValueError where a number would mean nothing: with one class every answer is right, with no two images of one none is.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    wanted = int(classes.size)
    if wanted < 2 or sizes.max() < 2:
        what = "all of one class, so that every answer is right" if wanted < 2 else "each of a class of its own, so that none is"
        raise ValueError(f"{len(labels):,} images, {what}: nothing can be measured. Keep more classes, or images, for the test")
    found = retrieval(features, labels, ks)
    if clustering == "affinity":
        clusters, facts = by_affinity(features, wanted, tolerance, notes)
        partitions = [clusters]
    else:
        rows = np.ascontiguousarray(features, np.float32)
        partitions = [kmeans(rows, wanted, seed) for seed in tqdm(KMEANS["seeds"], "k-means", unit="seed")]
        facts = {**KMEANS, "wanted": wanted, "clusters": min(int(np.unique(clusters).size) for clusters in partitions)}
    each = {
        "nmi": [nmi(labels, clusters) for clusters in partitions],
        "f1": [pairwise_f1(labels, clusters) for clusters in partitions],
        "purity": [purity(labels, clusters) for clusters in partitions],
        "rand_index": [rand_index(labels, clusters) for clusters in partitions],
    }
    return {
        "recall_at": {str(k): value for k, value in found.recall_at.items()},
        "map_at_r": found.map_at_r,
        "lone_queries": found.lone_queries,
        **{name: fmean(values) for name, values in each.items()},
        "n": len(labels),
        "classes": wanted,
        "clustering": {**facts, **({"of_seeds": each} if len(partitions) > 1 else {})},
    }


def evaluate(path, out, ks=None, baselines=None, clustering=None, tolerance=0.0):
    """Score the features at `path`, and baselines {name: path}, into metrics.json at `out`; nothing when that is there already.

    ks: default 1, 10, 100, as far as there are images. clustering: "affinity", "kmeans", or None for the set's default.
    """
    baselines = baselines or {}
    features, labels, paths, about = load_features(path)
    clustering = clustering or ("affinity" if about.get("set", {}).get("name") in BY_AFFINITY else "kmeans")
    ks = ks or [k for k in (1, 10, 100) if k < len(labels)]
    settings = {**AFFINITY, "tolerance": tolerance} if clustering == "affinity" else KMEANS
    made_from = {"features": sha256(path), "ks": ks, "clustering": settings, "layout": 3,
                 "baselines": {name: sha256(other) for name, other in baselines.items() if Path(other).exists()}}  # fmt: skip
    if read_record(out).get("made_from") == made_from:
        return
    require_writable(out)
    notes = out.with_name(f".{out.name}.steps")
    metrics = {**score(features, labels, ks, clustering, tolerance, notes), "about": about, "baselines": {}, "made_from": made_from}
    for name, other in baselines.items():
        found = load_features(other)
        if not (np.array_equal(paths, found.paths) and np.array_equal(labels, found.labels)):
            raise ValueError(f"{other}: is of other images than {path}; extract both from the same set")
        metrics["baselines"][name] = score(found.features, found.labels, ks, clustering, tolerance,
                                           out.with_name(f".{out.name}.{name}.steps"))  # fmt: skip
    with written_aside(out) as aside:
        aside.write_text(json.dumps(metrics, indent=2) + "\n")
    for steps in out.parent.glob(f".{out.name}*.steps"):
        steps.unlink()
    print(f"{out}: written")


def _digest(features):
    return hashlib.sha256(np.ascontiguousarray(features)).hexdigest()


def numbers(text):
    return [int(number) for number in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="features.npz to score")
    parser.add_argument("--out", type=Path, required=True, help="metrics.json to write")
    parser.add_argument("--baseline", action="append", default=[], metavar="NAME=FILE",
                        help="other features of the same images, scored beside them; may be given again")  # fmt: skip
    parser.add_argument("--ks", type=numbers, help="the K of Recall@K (default 1,10,100, as far as there are images)")
    parser.add_argument("--clustering", choices=("affinity", "kmeans"), help="default: affinity for CUB and Cars196, else kmeans")
    parser.add_argument("--tolerance", type=float, default=0.0,
                        help="share by which affinity propagation's number of clusters may differ (default 0)")  # fmt: skip
    arguments = parser.parse_args()
    if wrong := [baseline for baseline in arguments.baseline if "=" not in baseline]:
        parser.error(f"--baseline takes NAME=FILE, not {wrong[0]}")
    baselines = dict(baseline.split("=", 1) for baseline in arguments.baseline)
    evaluate(arguments.features, arguments.out, arguments.ks, baselines, arguments.clustering, arguments.tolerance)


if __name__ == "__main__":
    run("evaluate", main)
