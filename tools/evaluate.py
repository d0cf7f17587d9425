"""Score features: Recall@K, NMI and F1 -> metrics.json.

    python tools/evaluate.py --features runs/demo/lifted_64/seed1/features.npz --out metrics.json \\
                             --baseline raw_pixels=runs/demo/raw_pixels.npz

Runs without Caffe. Clusters come from faiss k-means, as many as there are classes.
"""

from data_prep.command import run

# isort: split

import argparse
import json
from pathlib import Path

import faiss
import numpy as np

from data_prep.files import read_record, sha256, written_aside
from tools.features import load_features
from tools.metrics import nmi, pairwise_f1, recall_at_k

CLUSTERING = {"method": "kmeans", "library": f"faiss {faiss.__version__}", "iterations": 100, "restarts": 1, "seed": 1}


def kmeans(features, clusters):
    """Cluster of each row (N,), by faiss k-means with the settings of CLUSTERING."""
    machine = faiss.Kmeans(features.shape[1], clusters, niter=CLUSTERING["iterations"], nredo=CLUSTERING["restarts"],
                           seed=CLUSTERING["seed"], min_points_per_centroid=1, max_points_per_centroid=len(features))  # fmt: skip
    machine.train(features)
    return machine.index.search(features, 1)[1][:, 0]


def score(features, labels, ks):
    """The metrics of one features.npz, as metrics.json holds them."""
    classes = int(np.unique(labels).size)
    found = kmeans(np.ascontiguousarray(features, np.float32), classes)
    return {
        "recall_at": {str(k): value for k, value in recall_at_k(features, labels, ks).items()},
        "nmi": nmi(labels, found),
        "f1": pairwise_f1(labels, found),
        "n": len(labels),
        "classes": classes,
        "clustering": {**CLUSTERING, "clusters": classes},
    }


def evaluate(path, out, ks=None, baselines=None):
    """Score the features at `path`, and baselines {name: path}, into metrics.json at `out`; nothing when that is there already."""
    baselines = baselines or {}
    made_from = {"features": sha256(path) if Path(path).exists() else None, "ks": ks, "clustering": CLUSTERING,
                 "baselines": {name: sha256(other) for name, other in baselines.items() if Path(other).exists()}}  # fmt: skip
    if read_record(out).get("made_from") == made_from:
        return
    features, labels, paths, about = load_features(path)
    ks = ks or [k for k in (1, 10, 100) if k < len(labels)]
    metrics = {**score(features, labels, ks), "about": about, "baselines": {}, "made_from": made_from}
    for name, other in baselines.items():
        found = load_features(other)
        if not (np.array_equal(paths, found.paths) and np.array_equal(labels, found.labels)):
            raise ValueError(f"{other}: is of other images than {path}; extract both from the same set")
        metrics["baselines"][name] = score(found.features, found.labels, ks)
    with written_aside(out) as aside:
        aside.write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"{out}: written")


def numbers(text):
    return [int(number) for number in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="features.npz to score")
    parser.add_argument("--out", type=Path, required=True, help="metrics.json to write")
    parser.add_argument("--baseline", action="append", default=[], metavar="NAME=FILE",
                        help="other features of the same images, scored beside them; may be given again")  # fmt: skip
    parser.add_argument("--ks", type=numbers, help="the K of Recall@K (default 1,10,100, as far as there are images)")
    arguments = parser.parse_args()
    if wrong := [baseline for baseline in arguments.baseline if "=" not in baseline]:
        parser.error(f"--baseline takes NAME=FILE, not {wrong[0]}")
    baselines = dict(baseline.split("=", 1) for baseline in arguments.baseline)
    evaluate(arguments.features, arguments.out, arguments.ks, baselines)


if __name__ == "__main__":
    run("evaluate", main)
