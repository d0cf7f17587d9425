"""Recall@K, MAP@R, normalised mutual information, pairwise F1, purity and Rand index: the paper's section 5. No Caffe.

Non-finite features are refused everywhere: a NaN distance compares false with everything, so naive code finds every
query's nearest neighbour right.
"""

from typing import NamedTuple

import numba
import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

BLOCK = 512  # queries whose distances to all rows are held at once
TIE = 1e-12  # squared distances that differ by less than this share are equal: it is their rounding


class Retrieval(NamedTuple):
    """What `retrieval` finds."""

    recall_at: dict[int, float]  # K -> share of queries
    map_at_r: float
    lone_queries: int  # whose class has no other image


def retrieval(features, labels, ks):
    """Score nearest neighbours: every row is a query among all the others.

    Distances are Euclidean, on the features as they are; a query is excluded from its own neighbours by its row, so an
    exact duplicate elsewhere counts. A tie counts against the query: images of other classes at the distance of one of
    its own class are taken to come before it, so K equal embeddings of different classes do not score by luck.

    Recall@K is the share of queries with an image of their class among the K nearest. MAP@R (Musgrave et al. 2020) is,
    for a query whose class has R other images, the sum over the hits among its R nearest of the precision up to each,
    divided by R. A query whose class has no other image is a miss, and has a MAP@R of 0.

    Parameters
    ----------
    features : (N, c) finite numbers
    labels : (N,) class ids
    ks : integers, 1 <= K < N

    Memory beside the features: one copy each in float64 and float32, and a block of 512 x N.
    """
    features, labels = _checked(features, labels)
    bad = [k for k in ks if k < 1 or k >= len(labels)]
    if bad:
        raise ValueError(f"K must be 1 to {len(labels) - 1} for {len(labels)} images, not {bad[0]}")
    rank, precision = _ranks(features, np.unique(labels, return_inverse=True)[1])
    recall = {int(k): float(np.mean(rank < k)) for k in ks}
    return Retrieval(recall, float(precision.mean()), int(np.count_nonzero(rank == len(labels))))


def recall_at_k(features, labels, ks):
    """{K: fraction}, as in `retrieval`."""
    return retrieval(features, labels, ks).recall_at


def _ranks(features, labels):
    """For each row: how many images of other classes come before the nearest of its own (N where it has none), and its
    average precision at R. features (N, c) float64, labels (N,) 0 to classes - 1.

    Products in float32 tell almost all distances apart; what they leave open is computed again from the differences.
    """
    count, dimensions = features.shape
    features = features - features.mean(axis=0)  # distances stay, and the products keep their digits
    largest = np.abs(features).max()
    features = np.ldexp(features, -int(np.frexp(largest)[1]))  # into float32's range, exactly
    single = features.astype(np.float32)
    norm = np.einsum("ij,ij->i", features, features)  # (N,)
    slack = (dimensions + 16) * np.finfo(np.float32).eps * (norm + norm.max())  # (N,) bound of a product's rounding
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    rank, precision = np.full(count, count, np.int64), np.zeros(count)
    product = np.empty((min(BLOCK, count), count), np.float32)
    # Queries in the order of their classes, so that a block meets few classes and their distances are computed once.
    for start in range(0, count, BLOCK):
        rows = order[start : start + BLOCK]
        own = np.full((len(rows), sizes[labels[rows]].max()), np.inf)  # squared distances to one's class, ascending
        for label in np.unique(labels[rows]):
            members = order[starts[label] : starts[label] + sizes[label]]
            here = np.flatnonzero(labels[rows] == label)
            square = cdist(features[rows[here]], features[members], "sqeuclidean")
            square[np.arange(len(here)), np.searchsorted(members, rows[here])] = np.inf
            own[here, : len(members)] = np.sort(square, axis=1)
        np.matmul(single[rows], single.T, out=product[: len(rows)])
        before = np.zeros((len(rows), own.shape[1] + 1), np.int64)
        _rank_block(features, labels, norm, slack, rows, product, own, sizes[labels[rows]] - 1, before, rank, precision)
    return rank, precision


@numba.njit(parallel=True, cache=True)
def _rank_block(features, labels, norm, slack, rows, product, own, matches, before, rank, precision):
    """Fill rank and precision of `rows`; own (block, .) ascending, its first matches[q] numbers finite.

    before (block, .), zeros: gets how many images of other classes come before match p and not before match p - 1.
    """
    count = len(labels)
    for q in numba.prange(len(rows)):
        row, hits = rows[q], matches[q]
        if hits == 0:
            continue
        label, near, furthest = labels[row], slack[row], own[q, hits - 1]
        nearest = own[q, :hits]
        for j in range(count):
            square = norm[row] + norm[j] - 2.0 * product[q, j]
            if square > furthest + near or labels[j] == label:
                continue
            place = np.searchsorted(nearest, square - near)
            if place < hits and nearest[place] * (1 + TIE) <= square + near:
                exact = 0.0
                for d in range(features.shape[1]):
                    exact += (features[row, d] - features[j, d]) ** 2
                place = 0
                while place < hits and nearest[place] * (1 + TIE) < exact:
                    place += 1
            before[q, place] += 1
        total, score = 0, 0.0
        for p in range(hits):
            total += before[q, p]
            if p + total < hits:
                score += (p + 1) / (p + total + 1)
        rank[row] = before[q, 0]
        precision[row] = score / hits


def nmi(labels, clusters):
    """Normalised mutual information 2 I / (H(labels) + H(clusters)) of two partitions, 0 to 1.

    The paper prints I / (2 (H + H)), a slip: the authors' code and the book they cite have this one.
    """
    labels, clusters = _partitions(labels, clusters)
    # Rounding takes the library past 1 for some equal partitions.
    return min(1.0, float(normalized_mutual_info_score(labels, clusters, average_method="arithmetic")))


def pairwise_f1(labels, clusters):
    """F1 of the pairs of images: a pair is predicted when it shares a cluster, and true when it shares a class.

    0 when no pair is both.
    """
    both, predicted, true, _ = _pair_counts(labels, clusters)
    return 2 * both / (predicted + true) if both else 0.0


def rand_index(labels, clusters):
    """Share of the pairs of images that are together in both partitions or apart in both; 1 for a single image."""
    both, predicted, true, pairs = _pair_counts(labels, clusters)
    return (pairs - predicted - true + 2 * both) / pairs if pairs else 1.0


def purity(labels, clusters):
    """Share of the images that have the class which is most frequent in their cluster."""
    labels, clusters = _partitions(labels, clusters)
    table = contingency_matrix(labels, clusters, sparse=True).tocsc()
    return float(table.max(axis=0).sum()) / len(labels)


def _pair_counts(labels, clusters):
    """Numbers of pairs that share both, the cluster, the class; and of all. Exact integers, memory by the (class, cluster)
    cells that are not empty.
    """
    labels, clusters = _partitions(labels, clusters)
    table = contingency_matrix(labels, clusters, sparse=True).tocoo()

    def pairs(counts):
        counts = counts.astype(np.int64)
        return int((counts * (counts - 1) // 2).sum())

    clusters, classes = np.asarray(table.sum(axis=0)).ravel(), np.asarray(table.sum(axis=1)).ravel()
    return pairs(table.data), pairs(clusters), pairs(classes), len(labels) * (len(labels) - 1) // 2


def _checked(features, labels):
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != (len(features),) or not len(features):
        raise ValueError(f"expected features (N, c) and labels (N,), not {features.shape} and {labels.shape}")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise ValueError(f"{bad.size} of {len(features)} feature rows are not finite (NaN or infinite), first row {bad[0]}")
    return features, labels


def _partitions(labels, clusters):
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    if labels.ndim != 1 or labels.shape != clusters.shape or not len(labels):
        raise ValueError(f"expected labels (N,) and clusters (N,), not {labels.shape} and {clusters.shape}")
    return labels, clusters
