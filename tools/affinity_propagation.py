"""Affinity propagation (Frey and Dueck, Science 2007) with a wanted number of clusters, by bisection on the preference.

The similarity of two images is minus their squared Euclidean distance. What it finds for one preference is what
scikit-learn's AffinityPropagation finds, but for its noise. Copies of an image are one point that counts as often as it is
there: which of them stands for the others is no question, and their messages would oscillate for ever. No Caffe.
"""

import re
import time
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

DAMPING = 0.9  # this and the next two: Frey and Dueck's apclusterK
AGREEMENT = 50  # iterations without a change of exemplars
MAX_ITERATIONS = 2000
BISECTIONS = 20
NOISE = 1e-6  # share of a similarity: two images that have only each other are exchangeable, and would oscillate for ever
COPIES = 1e-10  # share of the mean squared distance below which two images are copies: above the rounding of float32
STEPS_DOWN = range(-4, 0)  # powers of ten of the range of preferences, tried before the bisection


class Clustering(NamedTuple):
    """What one preference gives."""

    preference: float
    exemplars: np.ndarray  # (K,) rows, ascending
    iterations: int
    converged: bool


def memory(count):
    """Bytes that a clustering of `count` images takes: three square matrices of float32."""
    return 3 * 4 * count * count


def require_memory(count):
    """Raise ValueError when this machine has not the memory for a clustering of `count` images."""
    available = available_memory()
    if memory(count) > available:
        raise ValueError(
            f"affinity propagation of {count:,} images takes {memory(count) / 1e9:.3g} GB of memory, and "
            f"{available / 1e9:.3g} GB are available; use --clustering kmeans"
        )


def available_memory(meminfo="/proc/meminfo", own="/proc/self/cgroup", groups="/sys/fs/cgroup"):
    """Bytes that this process can still take: what the kernel can give without swapping, within its control groups' limits.

    Free memory would be the wrong number: the page cache takes it, and gives it back. Without a limit, or where it cannot be
    read, the kernel's own number stands.
    """
    available = int(re.search(r"^MemAvailable: +(\d+) kB", Path(meminfo).read_text(), re.MULTILINE)[1]) << 10
    for line in Path(own).read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        # Version 2 has one tree and version 1 a folder for each controller; a container often sees its own group as the root.
        limit, used, cache = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        root = Path(groups, controllers)
        for folder in (root / path.lstrip("/"), *(root / path.lstrip("/")).parents):
            try:
                room = int((folder / limit).read_text()) - int((folder / used).read_text())
                room += int(re.search(rf"^{cache} (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)[1])
            except (OSError, ValueError, TypeError):  # "max", or no such file
                room = available
            available = max(0, min(available, room))
            if folder == root:
                break
    return available


def similarities(features):
    """Minus the squared Euclidean distances (N, N) float32; the diagonal is 0."""
    x = np.asarray(features, np.float64)
    x = x - x.mean(axis=0)
    norm = np.einsum("ij,ij->i", x, x)
    found = np.empty((len(x), len(x)), np.float32)
    for start in range(0, len(x), 512):
        rows = slice(start, start + 512)
        found[rows] = np.minimum(2 * (x[rows] @ x.T) - norm[rows, None] - norm, 0)
    np.fill_diagonal(found, 0)
    return found


def originals(similarity):
    """(first (U,), which (N,)): the images that are no copy of an earlier one, and for each image its original's place there."""
    count = len(similarity)
    tolerance = -COPIES * similarity.sum(dtype=np.float64) / max(1, count * (count - 1))
    original = np.array([np.argmax(row >= -tolerance) for row in similarity])  # the diagonal is 0: each has itself at least
    return np.unique(original[original], return_inverse=True)


def without_ties(similarity):
    """Add a little noise, the same each time, in place: Frey and Dueck's code does, and scikit-learn."""
    random = np.random.default_rng(0)
    for row in similarity:
        row *= 1 + np.float32(NOISE) * random.standard_normal(len(row), np.float32)
    return similarity


def preference_range(similarity):
    """(lowest, highest) preference worth trying: the one that gives one cluster or two, by Frey and Dueck's bound; and
    the highest similarity, above which every image is a cluster. `similarity` (N, N) has a diagonal of zeros.
    """
    best_single = similarity.sum(axis=0, dtype=np.float64).max()
    np.fill_diagonal(similarity, -np.inf)
    nearest = similarity.max(axis=1).astype(np.float64)
    np.fill_diagonal(similarity, 0)
    two_at_best = nearest.sum() - np.partition(nearest, 1)[:2].sum()
    return float(best_single - two_at_best), float(nearest.max())


@numba.njit(parallel=True, fastmath={"nnan", "nsz"}, cache=True)
def _sweep(similarity, availability, responsibility, column, damping, partial, first):
    """Half an iteration and half of the next, row by row, so that each matrix is read once: availabilities from the
    responsibilities and the sums of their columns, then new responsibilities, and parts of the new sums.

    column (N,): sum of positive responsibilities to each image, its own whole; partial (threads, N): where each thread
    leaves its part of the next one. `first`: the availabilities stay zero.
    """
    count = similarity.shape[0]
    keep, take = np.float32(damping), np.float32(1 - damping)
    zero = np.float32(0)
    threads = partial.shape[0]
    for thread in numba.prange(threads):
        part = partial[thread]
        part[:] = 0
        for i in range(thread * count // threads, (thread + 1) * count // threads):
            s, a, r = similarity[i], availability[i], responsibility[i]
            if not first:
                own = keep * a[i] + take * (column[i] - r[i])
                for k in range(count):
                    a[k] = keep * a[k] + take * min(zero, column[k] - max(r[k], zero))
                a[i] = own
            top, second, place = -np.inf, -np.inf, 0
            for k in range(count):
                both = a[k] + s[k]
                if both > second:
                    if both > top:
                        second, top, place = top, both, k
                    else:
                        second = both
            top, second = np.float32(top), np.float32(second)
            at_top = keep * r[place] + take * (s[place] - second)
            for k in range(count):
                r[k] = keep * r[k] + take * (s[k] - top)
                part[k] += max(r[k], zero)
            part[place] += max(at_top, zero) - max(r[place], zero)
            r[place] = at_top
            part[i] += r[i] - max(r[i], zero)


def cluster(similarity, preference, damping=DAMPING, agreement=AGREEMENT, max_iterations=MAX_ITERATIONS, work=None):
    """Exchange messages until the exemplars have stayed the same for `agreement` iterations; returns a Clustering.

    similarity : (N, N) float32; its diagonal is overwritten with the preference
    work : two (N, N) float32 arrays to work in; made where missing

    Without an exemplar, the exemplars are empty. Raises ValueError when a similarity is not finite.
    """
    count = len(similarity)
    if not np.isfinite(similarity.sum(axis=0, dtype=np.float64)).all() or not np.isfinite(preference):
        raise ValueError("affinity propagation: similarities and preference must be finite")
    availability, responsibility = work or (np.empty_like(similarity), np.empty_like(similarity))
    availability[:] = responsibility[:] = 0
    np.fill_diagonal(similarity, preference)
    partial = np.empty((numba.get_num_threads(), count), np.float32)
    column = np.zeros(count, np.float32)
    own = np.zeros(count, np.float32)  # the availabilities' diagonal, half an iteration ahead of the matrix
    votes = np.zeros((agreement, count), bool)
    converged = False
    for iteration in range(max_iterations):
        _sweep(similarity, availability, responsibility, column, damping, partial, iteration == 0)
        column = partial.sum(axis=0)
        diagonal = responsibility.diagonal()
        own = np.float32(damping) * own + np.float32(1 - damping) * (column - diagonal)
        chosen = own + diagonal > 0
        votes[iteration % agreement] = chosen
        if iteration >= agreement and chosen.any():
            times = votes.sum(axis=0)
            if ((times == 0) | (times == agreement)).all():
                converged = True
                break
    exemplars = np.flatnonzero(chosen)
    return Clustering(float(preference), _refined(similarity, exemplars), iteration + 1, converged)


def assign(similarity, exemplars):
    """The cluster of each image (N,): its most similar exemplar's place in `exemplars`; an exemplar's is its own."""
    found = np.argmax(similarity[:, exemplars], axis=1)
    found[exemplars] = np.arange(len(exemplars))
    return found


def _refined(similarity, exemplars):
    """In each cluster, the image that is most similar to all the others, as Frey and Dueck's code ends."""
    if not len(exemplars):
        return exemplars
    clusters = assign(similarity, exemplars)
    better = []
    for place in range(len(exemplars)):
        members = np.flatnonzero(clusters == place)
        better.append(members[np.argmax(similarity[np.ix_(members, members)].sum(axis=0, dtype=np.float64))])
    return np.sort(np.array(better))


def bisect(features, wanted, tolerance=0.0, steps=(), on_step=lambda step, trial, seconds: None):
    """Search the preference that gives `wanted` clusters, as apclusterK does.

    It steps down from the highest similarity by growing powers of ten of the range until at most `wanted` clusters come
    out, then halves the range up to 20 times.

    Copies of an image are one point, whose similarities count as often as it is there: the same sum is made largest, and no
    two of them are left to choose between.

    Parameters
    ----------
    features : (N, c) finite
    wanted : number of clusters, 2 to N - 1; of fewer different images, each is a cluster
    tolerance : share of `wanted` by which the number may differ; 0 asks for it exactly (apclusterK's default is 0.1)
    steps : Clusterings of an earlier call with the same arguments, in their order: they are not computed again
    on_step : called with the number of the step (from 1), its Clustering, and its seconds (0 for an earlier one)

    Returns
    -------
    clusters : (N,) of the trial that came nearest to `wanted`
    trial : its Clustering
    steps : all of them, in their order

    Raises ValueError where the messages settle at no preference.
    """
    count = len(features)
    if not 2 <= wanted < count:
        raise ValueError(f"the number of clusters must be 2 to {count - 1} for {count} images, not {wanted}")
    require_memory(count)
    similarity = similarities(features)
    first, which = originals(similarity)
    if len(first) < count:
        similarity = similarity[np.ix_(first, first)] * np.bincount(which).astype(np.float32)[:, None]
    if len(first) <= wanted:
        single = Clustering(0.0, first, 0, True)
        return which, single, [single]
    low, high = preference_range(similarity)
    without_ties(similarity)
    work = np.empty_like(similarity), np.empty_like(similarity)
    earlier, done = list(steps), []

    def attempt(preference):
        start = time.monotonic()
        if earlier and earlier[0].preference == preference:
            done.append(earlier.pop(0))
        else:
            earlier.clear()
            found = cluster(similarity, preference, work=work)
            done.append(found._replace(exemplars=first[found.exemplars]))
        on_step(len(done), done[-1], time.monotonic() - start)
        return len(done[-1].exemplars)

    def right(found):
        return abs(found - wanted) <= tolerance * wanted

    highest, lowest = high, low
    for power in STEPS_DOWN:
        preference = highest - 10.0**power * (highest - lowest)
        found = attempt(preference)
        if 0 < found <= wanted:  # without an exemplar the messages have not settled, which says nothing of the number
            low = preference
            break
    share = 0.5
    for _ in range(BISECTIONS):
        if right(found):
            break
        preference = low + share * (high - low)
        found = attempt(preference)
        share = 0.5 if found else 0.75 * share  # without an exemplar neither bound moves, and the next try is beside it
        if not found:
            continue
        if found < wanted:
            low = preference
        else:
            high = preference
    settled = [trial for trial in done if len(trial.exemplars)]
    if not settled:
        raise ValueError(f"affinity propagation of {count:,} images settles at no preference; use --clustering kmeans")
    best = min(settled, key=lambda trial: (abs(len(trial.exemplars) - wanted), not trial.converged))
    np.fill_diagonal(similarity, best.preference)
    return assign(similarity, np.searchsorted(first, best.exemplars))[which], best, done
