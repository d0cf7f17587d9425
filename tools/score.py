"""Score a run: the net that training ended with, and its snapshots on the way there.

    .venv/bin/python tools/score.py --run runs/cub/lifted_64/seed1 --set data/cub \\
        --net prototxt/cub/lifted_64/deploy.prototxt --ks 1,2,4,8

Writes features.npz and metrics.json of model.caffemodel, and features_iter_N.npz and metrics_iter_N.json of the
snapshots of every 10,000 iterations before it. What is there already is not made again. A net as it was pretrained:

    .venv/bin/python tools/score.py --run runs/cub/pool5_1024/pretrained --set data/cub \\
        --net prototxt/cub/lifted_64/deploy.prototxt --weights data/bvlc_googlenet.caffemodel --blob pool5/7x7_s1
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
from pathlib import Path

from data_prep.files import locked, user_path
from data_prep.write_set import read_set
from tools.evaluate import evaluate, numbers
from tools.extract import extract
from tools.runs import read_run

EVERY = 10000  # iterations, the snapshots of the authors' solver


def stages(folder):
    """[(suffix of the files' names, weights)] of what is scored in a run's folder, the final net last."""
    last = read_run(folder).get("settings", {}).get("iterations") or 0
    snapshots = [(f"_iter_{number}", folder / f"snapshot_iter_{number}.caffemodel") for number in range(EVERY, last, EVERY)]
    return [(suffix, path) for suffix, path in snapshots if path.exists()] + [("", folder / "model.caffemodel")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--set", type=Path, required=True, help="folder of the set, data/<set>")
    parser.add_argument("--net", type=Path, required=True, help="deploy.prototxt")
    parser.add_argument("--weights", type=user_path, help="a .caffemodel that is not the run's own: nothing was trained")
    parser.add_argument("--blob", default="fc_embedding", help="the features (default fc_embedding)")
    parser.add_argument("--ks", type=numbers, help="the K of Recall@K, as far as there are images")
    parser.add_argument("--gpu", type=int, metavar="N", help="compute on this GPU, counted from 0 (default the CPU)")
    arguments = parser.parse_args()
    images = read_set(arguments.set).get("test", {}).get("images", 0)
    ks = [k for k in arguments.ks or () if k < images]  # a miniature has fewer images than the largest K
    with locked(arguments.run, "scoring"):
        for suffix, weights in [("", arguments.weights)] if arguments.weights else stages(arguments.run):
            features = arguments.run / f"features{suffix}.npz"
            extract(arguments.set, "test", features, arguments.net, weights, arguments.blob, gpu=arguments.gpu)
            evaluate(features, arguments.run / f"metrics{suffix}.json", ks)


if __name__ == "__main__":
    run("score", main)
