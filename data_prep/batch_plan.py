"""The batch plan: which images make up which batch, as the authors' generator draws them.

All positive pairs and self-pairs, as many random negative pairs,
one shuffle, cut into batches of m/2 pairs; a batch is its pairs' left images and then their right ones. Facts and what
the paper says otherwise: README, "Differences".
"""

import numpy as np

from data_prep.files import written_aside

BATCH = 128  # images, the paper's section 5
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


def _positive_pairs(order, starts, counts, limit, random):
    """All pairs i <= j within a class (p, 2), or `limit` of them; and how many there are in all."""
    counts = counts.astype(np.int64)
    pairs_of_class = counts * (counts + 1) // 2
    ends = np.cumsum(pairs_of_class)
    number = np.arange(ends[-1]) if ends[-1] <= limit else np.sort(random.choice(ends[-1], limit, replace=False))
    which = np.searchsorted(ends, number, side="right")  # (p,) class of each pair
    number = number - (ends - pairs_of_class)[which]
    # Pair number t of a class, counting (0,0), (0,1), (1,1), (0,2), ...: j is the largest with j (j + 1) / 2 <= t.
    right = ((np.sqrt(8.0 * number + 1) - 1) // 2).astype(np.int64)
    left = number - right * (right + 1) // 2
    return np.column_stack([order[starts[which] + left], order[starts[which] + right]]), ends[-1]


def plan_file(batch=BATCH):
    """The plan's name in its set's folder: pairs.npz for the paper's batch, pairs_m<batch>.npz for another."""
    return "pairs.npz" if batch == BATCH else f"pairs_m{batch}.npz"


def write_plan(path, labels, batch=BATCH, seed=1, max_positive_pairs=MAX_POSITIVE_PAIRS):
    """Draw the plan and write it as .npz: `batches` (n, m), the number of `images` it was made for, and the facts."""
    batches, facts = make_plan(labels, batch, seed, max_positive_pairs)
    with written_aside(path) as aside:
        np.savez(aside, batches=batches, images=len(labels), batch=batch, seed=seed, **facts)
    print(f"{path}: {len(batches):,} batches of {batch} images, from {facts['positive_pairs']:,} positive pairs "
          f"(each image with itself among them) and {facts['negative_pairs']:,} negative ones")  # fmt: skip
    if facts["possible_positive_pairs"] > facts["positive_pairs"]:
        print(f"    {facts['possible_positive_pairs']:,} positive pairs are possible: {max_positive_pairs:,} of them were drawn "
              "(--max-positive-pairs)")  # fmt: skip
    if facts["repeated_classes"]:
        print(f"    {facts['repeated_classes']:,} classes ask for more negatives than there are images of other classes: "
              "every one is used before any is repeated")  # fmt: skip
