"""Pictures from features.npz.

    python tools/figures.py --set data/demo --features runs/demo/lifted_64/seed1/features.npz --out retrieval.png

Draws queries, taken at random, and their nearest neighbours: a right one has a blue frame and a tick, a wrong one a
dashed orange frame and a cross (told apart without colour too).
"""

from data_prep.command import run

# isort: split

import argparse
from pathlib import Path

import faiss
import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt

from data_prep.files import read_record, written_aside
from data_prep.image import load_image
from tools.features import load_features

RIGHT, WRONG = "#0072b2", "#d55e00"  # blue and vermillion of Okabe and Ito's palette


def nearest_neighbours(features, queries, count):
    """The `count` nearest other rows of each query (q, count), nearest first."""
    centred = np.ascontiguousarray(features - features.mean(axis=0), np.float32)
    index = faiss.IndexFlatL2(centred.shape[1])
    index.add(centred)
    found = index.search(centred[queries], count + 1)[1]
    return np.array([[row for row in rows if row != query][:count] for query, rows in zip(queries, found)])


def draw_retrieval(images, labels, queries, neighbours, path):
    """Write a sheet with a row a query; `images` maps a row of the features to its picture (h, w, 3)."""
    count = neighbours.shape[1]
    figure, axes = plt.subplots(len(queries), count + 1, figsize=(1.1 * (count + 1) + 0.2, 1.2 * len(queries) + 0.7), squeeze=False)
    for row, (query, found) in enumerate(zip(queries, neighbours)):
        for column, place in enumerate([query, *found]):
            axis = axes[row, column]
            axis.imshow(images(place))
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.spines[:].set_visible(False)
                continue
            right = labels[place] == labels[query]
            axis.spines[:].set(color=RIGHT if right else WRONG, linewidth=2.5, linestyle="-" if right else (0, (2, 1.5)))
            badge = {"facecolor": RIGHT if right else WRONG, "edgecolor": "none", "pad": 1.5}
            axis.text(0.97, 0.03, "✓" if right else "✗", color="white", fontsize=8, fontweight="bold", ha="right", va="bottom",
                      transform=axis.transAxes, bbox=badge)  # fmt: skip
    axes[0, 0].set_title("query", fontsize=9)
    for column in range(count):
        axes[0, column + 1].set_title(f"{column + 1}", fontsize=9)
    share = np.mean(labels[neighbours[:, 0]] == labels[queries])
    figure.suptitle(f"{len(queries)} queries at random and their nearest neighbours (first one right: {share:.0%})", fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 0.99), pad=0.4)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of the set, data/<set>")
    parser.add_argument("--features", type=Path, required=True, help="features.npz of its test part")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--queries", type=int, default=12, help="rows of the sheet (default 12)")
    parser.add_argument("--neighbours", type=int, default=5, help="neighbours of each (default 5)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of queries (default 1)")
    arguments = parser.parse_args()
    features, labels, paths, _ = load_features(arguments.features)
    if len(labels) <= arguments.neighbours:
        raise ValueError(f"{arguments.features}: has {len(labels)} images, too few for {arguments.neighbours} neighbours")
    home = read_record(arguments.set / "set.json")
    if not home:
        raise ValueError(f"{arguments.set}/set.json: is missing or damaged; make data-<set> makes a set of ours, "
                         "data_prep/build_set.py any other")  # fmt: skip

    if "images" in home:

        def image(place):
            return load_image(Path(home["images"]) / paths[place], home["size"])[::-1].transpose(1, 2, 0)
    else:  # read from archives: the LMDB has what the net saw
        from pair_batch import ImageDatabase

        database = ImageDatabase(str(arguments.set / "test.lmdb"))
        if len(database) != len(paths):
            raise ValueError(f"{database.path}: has {len(database)} images, {arguments.features} {len(paths)}; extract again")

        def image(place):
            return database.read(place)[0][::-1].transpose(1, 2, 0)

    # A class of one image has nothing right to find.
    ids, counts = np.unique(labels, return_counts=True)
    eligible = np.flatnonzero(np.isin(labels, ids[counts > 1]))
    queries = np.random.default_rng(arguments.seed).choice(eligible, min(arguments.queries, len(eligible)), replace=False)
    draw_retrieval(image, labels, queries, nearest_neighbours(features, queries, arguments.neighbours), arguments.out)
    print(f"{arguments.out}: {len(queries)} queries and their nearest neighbours")


if __name__ == "__main__":
    run("figures", main)
