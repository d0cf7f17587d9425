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

from data_prep.files import written_aside
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
    features, labels, paths = load_features(arguments.features)
    ks = arguments.ks or [k for k in (1, 10, 100) if k < len(labels)]
    metrics = score(features, labels, ks)
    metrics["baselines"] = {}
    for baseline in arguments.baseline:
        name, _, path = baseline.partition("=")
        other, other_labels, other_paths = load_features(path)
        if not (np.array_equal(paths, other_paths) and np.array_equal(labels, other_labels)):
            raise ValueError(f"{path}: is of other images than {arguments.features}; extract both from the same set")
        metrics["baselines"][name] = score(other, other_labels, ks)
    with written_aside(arguments.out) as aside:
        aside.write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"{arguments.out}: written")


if __name__ == "__main__":
    run("evaluate", main)
