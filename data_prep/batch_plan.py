"""The batch plan: which images make up which batch.

    .venv/bin/python data_prep/batch_plan.py --set data/cub --kind triplets [--batch 120]     # -> data/cub/triplets.npz

Pairs, for the lifted and the contrastive loss, as the authors' generator draws them: all positive pairs and self-pairs,
as many random negative pairs, one shuffle, cut into batches of m/2 pairs; a batch is its pairs' left images and then
their right ones. Triplets: every positive pair without self-pairs, one of the two the anchor by chance, and a negative
drawn uniformly from the images of other classes; a batch is its anchors, then their positives, then their negatives.
Facts and what the paper says otherwise: README, "Differences".
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
from pathlib import Path

import numpy as np

from data_prep.files import locked, read_rows, written_aside

OWN_BATCH = {"pairs": 128, "triplets": 120}  # images, the paper's section 5
BATCH = OWN_BATCH["pairs"]
# More positive pairs than this are sampled. The paper's sets have at most 0.7 million (Cars196).
MAX_POSITIVE_PAIRS = 2_000_000


def make_plan(labels, batch=BATCH, seed=1, max_positive_pairs=MAX_POSITIVE_PAIRS):
    """Draw the plan for images with these class ids.

    Parameters
    ----------
    labels : (N,) integers, the class of each image of the LMDB
    batch : images a batch, even
    seed : of the drawing and the shuffle
    max_positive_pairs : where there are more, as many are drawn from them, uniformly

    Returns
    -------
    batches : (n, batch) int32, places in the LMDB; columns j and j + batch/2 are a pair
    facts : dict with the numbers of `positive_pairs` (self-pairs among them), `negative_pairs`, `negatives_per_image`,
        `possible_positive_pairs`, and `repeated_classes`: how many classes asked for more negatives than there are
        images of other classes, so that some are repeated (every one is used before any is used again)

    Raises ValueError when there are fewer than two classes, or not enough pairs for one batch.
    """
    labels = np.asarray(labels)
    if batch < 2 or batch % 2:
        raise ValueError(f"a batch of pairs must hold an even number of images, not {batch}")
    classes, counts = np.unique(labels, return_counts=True)
    if classes.size < 2:
        raise ValueError(f"pairs need images of at least two classes; here is {classes.size}")
    random = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")  # (N,) images, class by class
    starts = np.cumsum(counts) - counts  # (C,) where each class begins in it

    positive, possible = _positive_pairs(order, starts, counts, max_positive_pairs, random)
    per_image = -(-len(positive) // labels.size)
    negative = []
    repeated = 0
    for start, count in zip(starts, counts):
        own = order[start : start + count]
        others = np.concatenate([order[:start], order[start + count :]])
        left = np.tile(own, per_image)
        rounds, rest = divmod(left.size, others.size)
        repeated += left.size > others.size
        right = [random.permutation(others) for _ in range(rounds)]
        right.append(random.choice(others, rest, replace=False))
        negative.append(np.column_stack([left, np.concatenate(right)]))
    negative = np.concatenate(negative)

    half = batch // 2
    surplus = (len(positive) + len(negative)) % half
    if len(positive) + len(negative) < half:
        raise ValueError(f"{labels.size} images of {classes.size} classes give {len(positive) + len(negative)} pairs, "
                         f"but a batch of {batch} images needs {half}; use a smaller batch or more images")  # fmt: skip
    negative = np.delete(negative, random.choice(len(negative), surplus, replace=False), axis=0)
    pairs = random.permutation(np.concatenate([positive, negative]))  # (p, 2)
    batches = pairs.reshape(-1, half, 2).transpose(0, 2, 1).reshape(-1, batch)
    facts = {
        "positive_pairs": len(positive),
        "possible_positive_pairs": int(possible),
        "negative_pairs": len(negative),
        "negatives_per_image": int(per_image),
        "repeated_classes": int(repeated),
    }
    return np.ascontiguousarray(batches, np.int32), facts


def make_triplet_plan(labels, batch=OWN_BATCH["triplets"], seed=1, max_positive_pairs=MAX_POSITIVE_PAIRS):
    """Draw a plan of triplets for images with these class ids. Parameters as in make_plan, but `batch` a multiple of 3.

    Returns
    -------
    batches : (n, batch) int32, places in the LMDB; columns j, j + batch/3 and j + 2 batch/3 are anchor, positive, negative
    facts : dict with the numbers of `positive_pairs`, `possible_positive_pairs`, and `repeated`: triplets of the last
        batch that are there once more, so that it is full and no pair is left out

    Raises ValueError when there are fewer than two classes, or no class has two images.
    """
    labels = np.asarray(labels)
    if batch < 3 or batch % 3:
        raise ValueError(f"a batch of triplets must hold a multiple of 3 images, not {batch}")
    classes, counts = np.unique(labels, return_counts=True)
    if classes.size < 2 or counts.max() < 2:
        raise ValueError(f"triplets need two images of one class and one of another; here are {labels.size} images of "
                         f"{classes.size} classes")  # fmt: skip
    random = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")  # (N,) images, class by class
    starts = np.cumsum(counts) - counts  # (C,) where each class begins in it

    pairs, possible = _positive_pairs(order, starts, counts, max_positive_pairs, random, self_pairs=False)
    pairs = random.permuted(pairs, axis=1)  # which of the two is the anchor
    own = np.searchsorted(classes, labels[pairs[:, 0]])  # (p,) class of each pair
    other = random.integers(0, labels.size - counts[own])  # (p,) place among the images of other classes
    other += np.where(other >= starts[own], counts[own], 0)
    triplets = random.permutation(np.column_stack([pairs, order[other]]))  # (p, 3)
    missing = -len(triplets) % (batch // 3)
    again = random.choice(len(triplets), missing, replace=missing > len(triplets))
    triplets = np.concatenate([triplets, triplets[again]])
    batches = triplets.reshape(-1, batch // 3, 3).transpose(0, 2, 1).reshape(-1, batch)
    facts = {"positive_pairs": len(pairs), "possible_positive_pairs": int(possible), "repeated": int(missing)}
    return np.ascontiguousarray(batches, np.int32), facts


def _positive_pairs(order, starts, counts, limit, random, self_pairs=True):
    """All pairs i <= j (or i < j) within a class (p, 2), or `limit` of them; and how many there are in all."""
    counts = counts.astype(np.int64) - (not self_pairs)  # the pairs i < j of n images are those i <= j - 1 of n - 1
    pairs_of_class = counts * (counts + 1) // 2
    ends = np.cumsum(pairs_of_class)
    number = np.arange(ends[-1]) if ends[-1] <= limit else np.sort(random.choice(ends[-1], limit, replace=False))
    which = np.searchsorted(ends, number, side="right")  # (p,) class of each pair
    number = number - (ends - pairs_of_class)[which]
    # Pair number t of a class, counting (0,0), (0,1), (1,1), (0,2), ...: j is the largest with j (j + 1) / 2 <= t.
    right = ((np.sqrt(8.0 * number + 1) - 1) // 2).astype(np.int64)
    left = number - right * (right + 1) // 2
    right += not self_pairs
    return np.column_stack([order[starts[which] + left], order[starts[which] + right]]), ends[-1]


def plan_file(batch=None, kind="pairs"):
    """The plan's name in its set's folder: pairs.npz or triplets.npz for the paper's batch, pairs_m<batch>.npz for another."""
    return f"{kind}.npz" if batch in (None, OWN_BATCH[kind]) else f"{kind}_m{batch}.npz"


def kind_of(path):
    """The kind of the plan at `path`, by its name; pairs where that is none of ours."""
    return next((kind for kind in OWN_BATCH if Path(path).name.startswith(kind)), "pairs")


def write_plan(path, labels, batch=None, seed=1, max_positive_pairs=MAX_POSITIVE_PAIRS, kind="pairs"):
    """Draw the plan and write it as .npz: `batches` (n, m), the number of `images` it was made for, their labels, and the facts."""
    batch = batch or OWN_BATCH[kind]
    make = {"pairs": make_plan, "triplets": make_triplet_plan}[kind]
    batches, facts = make(labels, batch, seed, max_positive_pairs)
    with written_aside(path) as aside:
        np.savez(aside, batches=batches, images=len(labels), labels=np.asarray(labels), batch=batch, seed=seed, **facts)
    of = (f"{facts['positive_pairs']:,} positive pairs, {facts['repeated']:,} of them twice to fill the last batch"
          if kind == "triplets" else f"{facts['positive_pairs']:,} positive pairs (each image with itself among them) and "
          f"{facts['negative_pairs']:,} negative ones")  # fmt: skip
    print(f"{path}: {len(batches):,} batches of {batch} images, from {of}")
    if facts["possible_positive_pairs"] > facts["positive_pairs"]:
        print(f"    {facts['possible_positive_pairs']:,} positive pairs are possible: {max_positive_pairs:,} of them were drawn "
              "(--max-positive-pairs)")  # fmt: skip
    if facts.get("repeated_classes"):
        print(f"    {facts['repeated_classes']:,} classes ask for more negatives than there are images of other classes: "
              "every one is used before any is repeated")  # fmt: skip


def labels_of(csv_path):
    """The column `label` of a set's train.csv."""
    return read_list(csv_path)[1]


def read_list(csv_path):
    """The columns `path` and `label` of a set's train.csv or test.csv, two lists; ValueError where it is no such list."""
    if not csv_path.exists():
        raise ValueError(f"{csv_path}: not there; make data-<set> makes a set of ours, data_prep/build_set.py any other")
    try:
        rows = [row for _, row in read_rows(csv_path, "path", "class", "label")]
        return [row["path"] for row in rows], [int(row["label"]) for row in rows]
    except ValueError as error:
        raise ValueError(f"{csv_path}: is no list of a set's images (path, class, label): {error}; make the set again") from None


def ensure_plan(data_set, kind, batch=None, seed=None, max_positive_pairs=None):
    """Write the plan of the set in the folder `data_set`, where it is not there yet.

    ValueError where one is there that was drawn otherwise than asked: runs were trained on it, perhaps.
    """
    path = data_set / plan_file(batch, kind)
    if not path.exists():
        labels = labels_of(data_set / "train.csv")  # a folder whose name was mistyped is not made
        limit = MAX_POSITIVE_PAIRS if max_positive_pairs is None else max_positive_pairs
        with locked(data_set, "making a set"):
            if not path.exists():  # another process may have been faster
                write_plan(path, labels, batch, 1 if seed is None else seed, limit, kind)
                return
    require_batch(path, batch or OWN_BATCH[kind])
    with np.load(path, allow_pickle=False) as plan:
        facts = {name: int(plan[name]) for name in ("seed", "positive_pairs", "possible_positive_pairs") if name in plan}
    differs = []
    if seed is not None and facts.get("seed") != seed:
        differs.append(f"with seed {facts.get('seed', '(not recorded)')}, not {seed}")
    drawn, possible = facts.get("positive_pairs", 0), facts.get("possible_positive_pairs", 0)
    if max_positive_pairs is not None and (not drawn or drawn != min(max_positive_pairs, possible)):
        differs.append(f"with {drawn:,} of {possible:,} positive pairs, not at most {max_positive_pairs:,}")
    if differs:
        how = " and ".join(differs)
        raise ValueError(f"{path}: is there already, drawn {how}. Where no run needs it, remove it and run this again")


def require_batch(path, batch):
    """Raise ValueError unless the plan at `path` has `batch` images a batch."""
    try:
        with np.load(path, allow_pickle=False) as plan:
            found = plan["batches"].shape[-1]
    except Exception as error:  # whatever is wrong with the file: a damaged zip shows as any of five exceptions
        raise ValueError(f"{path}: cannot be read as a batch plan ({error}); remove it, and draw it again") from None
    if found != batch:
        raise ValueError(f"{path}: holds batches of {found} images, not of {batch}; data_prep/batch_plan.py draws others")


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be positive, not {text}")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of the set, data/<set>")
    parser.add_argument("--kind", choices=OWN_BATCH, default="pairs")
    parser.add_argument("--batch", type=int, help="images a training batch (default 128, of triplets 120)")
    parser.add_argument("--seed", type=int, help="of the drawing and the shuffle (default 1)")
    parser.add_argument(
        "--max-positive-pairs", type=positive, help=f"draw this many where there are more (default {MAX_POSITIVE_PAIRS:,})"
    )
    arguments = parser.parse_args()
    ensure_plan(arguments.set, arguments.kind, arguments.batch, arguments.seed, arguments.max_positive_pairs)


if __name__ == "__main__":
    run("batch_plan", main)
