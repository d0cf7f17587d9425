"""Recall@K, normalised mutual information and pairwise F1, as the paper's section 5 scores them. No Caffe.

Non-finite features are refused everywhere: a NaN distance compares false with everything, so naive code finds every
query's nearest neighbour right.
"""

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

BLOCK = 512  # queries whose distances to all rows are held at once
TIE = 1e-12  # squared distances that differ by less than this share are equal: it is their rounding


def recall_at_k(features, labels, ks):
    """Share of queries with an image of their class among the K nearest others.

    Every row is a query; distances are Euclidean, on the features as they are; a query is excluded from its own
    neighbours by its row, so an exact duplicate elsewhere counts. A tie counts against the query: an image of another
    class at the same distance as the nearest of its own class is taken to come first, so K equal embeddings of
    different classes do not score by luck. A query whose class has no other image is a miss.

    Parameters
    ----------
    features : (N, c) finite numbers
    labels : (N,) class ids
    ks : integers, 1 <= K < N

    Returns
    -------
    {K: fraction}
    """
    features, labels = _checked(features, labels)
    bad = [k for k in ks if k < 1 or k >= len(labels)]
    if bad:
        raise ValueError(f"K must be 1 to {len(labels) - 1} for {len(labels)} images, not {bad[0]}")
    rank = nearest_match_rank(features, labels)
    return {int(k): float(np.mean(rank < k)) for k in ks}


def nearest_match_rank(features, labels):
    """How many images of other classes come before the nearest image of its own, for every row (N,) int64.

    N for a row whose class has no other image. Takes checked arrays.
    """
    count = len(labels)
    x = features - features.mean(axis=0)  # distances stay, and the product below keeps its digits
    norm = np.einsum("ij,ij->i", x, x)  # (N,)
    # Rounding of the products below, generously; what falls within it is computed again from the differences.
    slack = 64 * np.finfo(x.dtype).eps * (norm + norm.max())  # (N,)
    nearest = _nearest_of_class(features, labels)  # (N,) squared distance, inf for a class of one
    rank = np.empty(count, np.int64)
    for start in range(0, count, BLOCK):
        rows = slice(start, min(start + BLOCK, count))
        square = norm[rows, None] + norm[None, :] - 2.0 * (x[rows] @ x.T)  # (block, N)
        other = labels[rows, None] != labels[None, :]  # (block, N)
        bound, near = nearest[rows, None], slack[rows, None]
        rank[rows] = np.count_nonzero(other & (square < bound - near), axis=1)
        query, match = np.nonzero(other & (np.abs(square - bound) <= near))  # inf - inf never gets here: other is False
        for part in range(0, query.size, 65536):
            q, m = query[part : part + 65536], match[part : part + 65536]
            difference = features[start + q] - features[m]
            exact = np.einsum("ij,ij->i", difference, difference)
            np.add.at(rank, start + q[exact <= nearest[start + q] * (1 + TIE)], 1)
    rank[np.isinf(nearest)] = count
    return rank


def _nearest_of_class(features, labels):
    """Squared distance of each row to the nearest other row of its class, from the differences; inf where none is."""
    nearest = np.full(len(labels), np.inf)
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    for members in np.split(order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1):
        for start in range(0, len(members), BLOCK):
            rows = members[start : start + BLOCK]
            square = cdist(features[rows], features[members], "sqeuclidean")
            square[np.arange(len(rows)), start + np.arange(len(rows))] = np.inf
            nearest[rows] = square.min(axis=1)
    return nearest


def nmi(labels, clusters):
    """Normalised mutual information 2 I / (H(labels) + H(clusters)) of two partitions, 0 to 1.

    The paper prints I / (2 (H + H)), a slip: the authors' code and the book they cite have this one.
    """
    labels, clusters = _partitions(labels, clusters)
    # Rounding takes the library past 1 for some equal partitions.
    return min(1.0, float(normalized_mutual_info_score(labels, clusters, average_method="arithmetic")))


def pairwise_f1(labels, clusters):
    """F1 of the pairs of images: a pair is predicted when it shares a cluster, and true when it shares a class.

    Exact integers, memory by the number of (class, cluster) cells that are not empty. 0 when no pair is both.
    """
    labels, clusters = _partitions(labels, clusters)
    table = contingency_matrix(labels, clusters, sparse=True).tocoo()

    def pairs(counts):
        counts = counts.astype(np.int64)
        return int((counts * (counts - 1) // 2).sum())

    both = pairs(table.data)
    predicted = pairs(np.bincount(table.col, table.data))
    true = pairs(np.bincount(table.row, table.data))
    return 2 * both / (predicted + true) if both else 0.0


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
