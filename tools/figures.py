"""Sheets of queries and their nearest neighbours, from features.npz, like the paper's figures 1, 10 and 11.

    .venv/bin/python tools/figures.py --set data/demo --features runs/demo/lifted_64/seed1/features.npz --out retrieval.png
    .venv/bin/python tools/figures.py --set data/demo --features runs/demo/lifted_64/seed1/features.npz \\
        --choose failures --out failures.png

A right neighbour has a blue frame and a tick, a wrong one a dashed orange frame and a cross (told apart without colour
too). `--choose` takes the queries at random, or successes or failures by the rules that RULES states.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
from pathlib import Path
from typing import NamedTuple

import faiss
import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt

from data_prep.files import read_record, require_writable, written_aside
from data_prep.image import load_image
from tools.features import TooFew, load_features
from tools.metrics import TIE

RIGHT, WRONG = "#0072b2", "#d55e00"  # blue and vermillion of Okabe and Ito's palette
SPARE = 16  # neighbours beside those that are shown, to put those at one distance in order
QUERIES, NEIGHBOURS = 12, 5  # rows of a sheet; as many neighbours as the paper's figures show
RULES = {
    "random": "taken at random",
    "successes": "those with the most right neighbours, and of these the ones where they come first; ties by chance; one query a "
                 "class",
    "failures": "of those without a right neighbour the ones whose first neighbour is closest; no class in two rows, neither as "
                "the query's nor as the first neighbour's",
}  # fmt: skip


class Neighbours(NamedTuple):
    """The nearest other images of every image that has another of its class.

    As for Recall@K, a tie counts against the query: of neighbours at one distance those of other classes come first.
    """

    queries: np.ndarray  # (q,) rows of the features
    rows: np.ndarray  # (q, n) rows of their neighbours, nearest first
    right: np.ndarray  # (q, n) whether a neighbour is of the query's class
    nearest: np.ndarray  # (q,) distance to the first one
    total: int  # images, those that have no other of their class among them: as queries they are misses


def nearest(features, queries, count):
    """The `count` nearest other rows of each of the rows `queries` (q,): rows (q, count), nearest first, and distances."""
    centred = np.ascontiguousarray(features - features.mean(axis=0), np.float32)
    index = faiss.IndexFlatL2(centred.shape[1])
    index.add(centred)
    square, found = index.search(centred[queries], count + 1)
    # The query itself is one of them, unless that many others are equal to it: then the last one is left out.
    other = found != queries[:, None]
    other[other.all(axis=1), -1] = False
    return found[other].reshape(-1, count), np.sqrt(np.maximum(square[other].reshape(-1, count), 0))


def nearest_neighbours(features, labels, count=NEIGHBOURS):
    """The Neighbours of features (N, c): `count` a query, fewer where there are not as many images."""
    ids, sizes = np.unique(labels, return_counts=True)
    queries = np.flatnonzero(np.isin(labels, ids[sizes > 1]))  # a class of one image has nothing right to find
    if not queries.size:
        raise TooFew("no class has two images: there is nothing right to find")
    count = min(count, len(labels) - 1)
    candidates, _ = nearest(features, queries, min(count + SPARE, len(labels) - 1))
    rows, distance = np.empty((len(queries), count), int), np.empty(len(queries))
    everything = np.arange(len(labels))
    for place, query in enumerate(queries):
        order, square = _ordered(features, labels, query, candidates[place])
        if square[-1] <= square[count - 1] * (1 + TIE):  # more may lie at this distance than were looked at
            order, square = _ordered(features, labels, query, np.delete(everything, query))
        rows[place], distance[place] = order[:count], np.sqrt(square[0])
    return Neighbours(queries, rows, labels[rows] == labels[queries, None], distance, len(labels))


def _ordered(features, labels, query, rows):
    """`rows` by their distance to the row `query`, of equal ones those of other classes first; and squared distances, ascending."""
    square = np.square(np.asarray(features[rows], np.float64) - features[query]).sum(axis=1)
    order = np.argsort(square, kind="stable")
    rows, square = rows[order], square[order]
    level = np.concatenate([[0], np.cumsum(square[1:] > square[:-1] * (1 + TIE))])  # equal but for rounding: one level
    return rows[np.lexsort([labels[rows] == labels[query], level])], square


def choose(rule, found, labels, count=QUERIES, seed=1):
    """The places in `found` of the queries of a sheet: at most `count`, chosen as RULES says."""
    random = np.random.default_rng(seed)
    total = len(found.queries)
    if rule == "random":
        return random.choice(total, min(count, total), replace=False)
    if rule == "successes":
        # Right or wrong, read as digits of a binary number, orders those of equal hits by how early they come.
        early = found.right @ (2 ** np.arange(found.right.shape[1])[::-1])
        order = np.lexsort([random.random(total), -early, -found.right.sum(axis=1)])
        order = order[found.right[order].any(axis=1)]
    else:
        order = np.lexsort([random.random(total), found.nearest])
        order = order[~found.right[order].any(axis=1)]
    chosen, shown = [], set()
    for place in order:
        classes = {labels[found.queries[place]]} | ({labels[found.rows[place, 0]]} if rule == "failures" else set())
        if shown.isdisjoint(classes):
            chosen.append(place)
            shown |= classes
        if len(chosen) == count:
            break
    return np.array(chosen, int)


def caption(rule, found, chosen):
    """Two sentences on a sheet: how its queries were chosen, and how many there are of their kind."""
    if not len(chosen):
        who = "No query has" if rule == "successes" else "Every query has"
        return f"{who} a right one among its {found.right.shape[1]} nearest."
    any_right, count, total = int(found.right.any(axis=1).sum()), found.right.shape[1], found.total
    number, words = {
        "random": (int(found.right[:, 0].sum()), "have a right first neighbour"),
        "successes": (any_right, f"have a right one among {count} neighbours"),
        "failures": (total - any_right, f"have no right one among {count} neighbours"),
    }[rule]
    shown = f"{len(chosen)} quer{'y' if len(chosen) == 1 else 'ies'}, {RULES[rule]}"
    return f"{shown}. {number:,} of all {total:,} queries ({number / total:.1%}) {words}."


def image_reader(data_set, paths):
    """A function from a row of the features to its picture (h, w, 3) uint8, red, green, blue.

    From the images on disk where the set keeps them, without Caffe; else from its LMDB, which has what the net saw.
    """
    home = read_record(Path(data_set) / "set.json")
    if not home or not isinstance(home.get("images", ""), str) or type(home.get("size")) is not int or home["size"] < 1:
        raise ValueError(f"{data_set}/set.json: is missing or damaged; make data-<set> makes a set of ours, "
                         "data_prep/build_set.py any other")  # fmt: skip
    if "images" in home:
        return lambda row: load_image(Path(home["images"]) / paths[row], home["size"])[::-1].transpose(1, 2, 0)
    from pair_batch import ImageDatabase

    database = ImageDatabase(str(Path(data_set) / "test.lmdb"))
    if len(database) != len(paths):
        raise ValueError(f"{database.path}: has {len(database)} images, the features {len(paths)}; extract again")
    return lambda row: database.read(row)[0][::-1].transpose(1, 2, 0)


def draw_retrieval(image, found, chosen, title, path):
    """Write a sheet with a row for each place in `chosen`; `image` maps a row of the features to its picture."""
    count = found.rows.shape[1]
    size = (1.1 * (count + 1) + 0.2, 1.2 * len(chosen) + 0.9)  # inches
    figure, axes = plt.subplots(max(1, len(chosen)), count + 1, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for row, place in enumerate(chosen):
        axes[row, 0].imshow(image(found.queries[place]))
        for axis, neighbour, right in zip(axes[row, 1:], found.rows[place], found.right[place]):
            axis.imshow(image(neighbour))
            colour = RIGHT if right else WRONG
            axis.spines[:].set(visible=True, color=colour, linewidth=2.5, linestyle="-" if right else (0, (2, 1.5)))
            axis.text(0.97, 0.03, "✓" if right else "✗", color="white", fontsize=8, fontweight="bold", ha="right", va="bottom",
                      transform=axis.transAxes, bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.5})  # fmt: skip
    if len(chosen):
        for column, text in enumerate(["query", *map(str, range(1, count + 1))]):
            axes[0, column].set_title(text, fontsize=9)
    figure.suptitle(title, fontsize=9, wrap=True)
    figure.tight_layout(rect=(0, 0, 1, 0.99), pad=0.4, w_pad=0.9)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of the set, data/<set>")
    parser.add_argument("--features", type=Path, required=True, help="features.npz of its test part")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--choose", choices=RULES, default="random", help="which queries (default random)")
    parser.add_argument("--queries", type=int, default=QUERIES, help=f"rows of the sheet (default {QUERIES})")
    parser.add_argument("--neighbours", type=int, default=NEIGHBOURS, help=f"neighbours of each (default {NEIGHBOURS})")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of queries (default 1)")
    arguments = parser.parse_args()
    require_writable(arguments.out)
    features, labels, paths, _ = load_features(arguments.features)
    if len(labels) <= arguments.neighbours:
        raise ValueError(f"{arguments.features}: has {len(labels)} images, too few for {arguments.neighbours} neighbours")
    image = image_reader(arguments.set, paths)
    found = nearest_neighbours(features, labels, arguments.neighbours)
    chosen = choose(arguments.choose, found, labels, arguments.queries, arguments.seed)
    draw_retrieval(image, found, chosen, caption(arguments.choose, found, chosen), arguments.out)
    print(f"{arguments.out}: {len(chosen)} queries and their nearest neighbours")


if __name__ == "__main__":
    run("figures", main)
