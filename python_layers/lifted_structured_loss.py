"""The lifted structured loss and its gradient: numpy only, no Caffe.

Song, Xiang, Jegelka, Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016: equation 4,
its gradient (equations 5 to 7) and Algorithm 1. The Caffe layer around it is lifted_structured_loss_layer.py.
"""

import numpy as np

from embedding_batch import checked, representable

# Distances come from a matrix product; a pair whose squared distance is below this share of its two squared norms
# would lose digits that way, and is computed from the difference of its two rows instead. The product's error in
# float64 is about 1e-15 of the norms, so 1e-8 leaves seven digits of the squared distance.
CLOSE = 1e-8

# So is a pair whose squared distance is this small: it nears float64's end, where squares have few digits left.
TINY = 1e-280

# Rows of close pairs that are handled at once: bounds the memory when a whole batch has collapsed.
CLOSE_BLOCK = 4096


def lifted_structured_loss(embeddings, labels, margin=1.0):
    """Loss of equation 4 over every positive pair of the batch, and its exact gradient.

    With D the Euclidean distances, P the pairs i < j of equal label and N the pairs of different label::

        J_ij = log( sum_{(i,k) in N} exp(margin - D_ik) + sum_{(j,l) in N} exp(margin - D_jl) ) + D_ij
        loss = 1 / (2 |P|) * sum_{(i,j) in P} max(0, J_ij)^2

    Parameters
    ----------
    embeddings : array (m, c) or (m, c, 1, 1), float32 or float64
        One row an image, not normalised.
    labels : array (m,) or any shape of m entries
        Class ids: integers, or floats of integral value as Caffe's blobs hold them.
    margin : float
        The paper's alpha.

    Returns
    -------
    loss : scalar of the input's dtype
        0 when the batch has no positive pair or no negative one: equation 4 is then empty.
    gradient : array of the input's shape and dtype
        Derivative of the loss by the embeddings. A distance of zero has no direction and contributes none; on the
        hinge's kink (J_ij = 0) the gradient is zero from both sides.

    Raises
    ------
    TypeError
        The embeddings are not float32 or float64.
    ValueError
        Wrong shapes, a non-finite embedding (its rows are named), a label that is no class id, a margin that is not
        finite.
    OverflowError
        The loss or its gradient is larger than the dtype can hold (distances beyond 1e19 in float32).

    Both dtypes are computed in float64; memory is O(m^2 + m c).
    """
    # 1. Check, and scale by a power of two.
    embeddings, labels = checked(embeddings, labels, margin)
    shape, dtype = embeddings.shape, embeddings.dtype
    x, exponent = _scaled(embeddings.reshape(shape[0], -1))  # (m, c)

    # 2. The pairs.
    same = labels[:, None] == labels[None, :]  # (m, m)
    alike = first, second = _true_places(same)  # every pair of equal label, both ways, and each image with itself
    first, second = first[first < second], second[first < second]  # (P,), (P,)
    if not first.size or same.all():
        return dtype.type(0), np.zeros(shape, dtype)

    # 3. Distances D (line 4 of Algorithm 1) in units of 2^exponent, those of close pairs from their differences.
    distance, close_first, close_second = _distances(x)  # (m, m); (q,), (q,)
    unit = 2.0**exponent

    # 4. Per image, the log-sum-exp over its negatives, the largest exponent taken out first. In place, as all that
    #    follows: new memory for a matrix costs more time than its numbers.
    weight = distance * -unit  # (m, m)
    weight += margin
    weight[alike] = -np.inf
    largest = weight.max(axis=1)  # (m,)
    weight -= largest[:, None]
    np.exp(weight, out=weight)
    total = weight.sum(axis=1)  # (m,)
    row = largest + np.log(total)  # (m,)

    # 5. J and the loss, for every positive pair at once.
    smooth_maximum = np.logaddexp(row[first], row[second])  # (P,)
    hinge = np.maximum(smooth_maximum + distance[first, second] * unit, 0.0)  # (P,)
    pairs = first.size
    root = hinge / np.sqrt(2.0 * pairs)  # (P,) its squares add up to the loss, without overflow on the way
    loss = representable(_sum_of_squares(root), dtype, "loss")

    # 6. -dL/dD. Negatives (equations 6 and 7): J_ij pulls on row i and row j by their shares of its sum of exponentials,
    #    and each row passes its pull on to its negatives by their softmax.
    by_j = hinge / pairs  # (P,) dL/dJ
    pull = np.bincount(first, by_j * np.exp(row[first] - smooth_maximum), len(x))  # (m,)
    pull += np.bincount(second, by_j * np.exp(row[second] - smooth_maximum), len(x))
    by_distance = np.multiply(weight, (pull / total)[:, None], out=weight)  # (m, m), zero for positive pairs

    #    Positive pairs: dJ/dD = 1 (equation 5).
    by_distance[first, second] = -by_j
    by_close = by_distance[close_first, close_second] + by_distance[close_second, close_first]  # (q,)

    # 7. dL/dx_i = sum_k B_ik (x_k - x_i) with B_ik = -(dL/dD_ik + dL/dD_ki) / D_ik, as one product; close pairs left out of it.
    np.fill_diagonal(distance, np.inf)
    distance[close_first, close_second] = distance[close_second, close_first] = np.inf
    by_distance /= distance  # zero on the diagonal and for close pairs
    by_both = np.add(by_distance, by_distance.T, out=distance)  # (m, m)
    np.fill_diagonal(by_both, -by_both.sum(axis=1))
    gradient = by_both @ x  # (m, c)

    #    Close pairs one by one.
    for start in range(0, close_first.size, CLOSE_BLOCK):
        block = slice(start, start + CLOSE_BLOCK)
        i, k = close_first[block], close_second[block]
        push = by_close[block, None] * _directions(x[i] - x[k])  # (block, c)
        np.subtract.at(gradient, i, push)
        np.add.at(gradient, k, push)
    return loss, representable(gradient, dtype, "gradient").reshape(shape)


def pair_statistics(embeddings, labels, margin=1.0):
    """What a person wants to see of a batch: distances of its pairs and how many of them the loss still works on.

    Takes what `lifted_structured_loss` takes. Returns a dict of floats: `positive_min`, `positive_mean`,
    `positive_max` (distances of positive pairs), `negative_min` (the nearest negative pair of the batch) and `active`
    (share of positive pairs with J_ij > 0). None where the batch has no such pair.
    """
    embeddings, labels = checked(embeddings, labels, margin)
    x, exponent = _scaled(embeddings.reshape(len(embeddings), -1))
    distance = _distances(x)[0] * 2.0**exponent  # (m, m)
    same = labels[:, None] == labels[None, :]
    first, second = np.nonzero(np.triu(same, 1))
    positive, negative = distance[first, second], distance[~same]
    names = ("positive_min", "positive_mean", "positive_max", "negative_min", "active")
    statistics = dict.fromkeys(names)
    if positive.size:
        statistics.update(positive_min=positive.min(), positive_mean=positive.mean(), positive_max=positive.max())
    if negative.size:
        statistics["negative_min"] = negative.min()
    if positive.size and negative.size:
        row = np.logaddexp.reduce(np.where(same, -np.inf, margin - distance), axis=1)  # (m,)
        statistics["active"] = np.mean(np.logaddexp(row[first], row[second]) + positive > 0)
    return {name: None if value is None else float(value) for name, value in statistics.items()}


def _scaled(x):
    """x (m, c) in float64, divided by a power of two so that its entries are below 1; and that power's exponent.

    A power of two changes no digit, and squares can neither overflow nor vanish.
    """
    exponent = int(np.frexp(max(x.max(), -x.min()))[1])
    if exponent > 1000:
        raise OverflowError("embeddings beyond 1e300 have distances that float64 cannot hold")
    scaled = x.astype(np.float64)
    if exponent < -1000:
        return np.ldexp(scaled, -exponent), exponent
    scaled *= 2.0**-exponent
    return scaled, exponent


def _distances(x):
    """Euclidean distances (m, m) between the rows of x, and the close pairs (i, k), i < k, found on the way."""
    norm = np.einsum("ij,ij->i", x, x)  # (m,)
    sums = norm[:, None] + norm[None, :]  # (m, m)
    product = x @ x.T  # (m, m)
    product *= 2.0
    square = np.subtract(sums, product, out=product)
    sums *= CLOSE
    i, k = _true_places(square <= np.maximum(sums, TINY, out=sums))
    i, k = i[i < k], k[i < k]  # (q,), (q,)
    np.maximum(square, 0.0, out=square)
    np.fill_diagonal(square, 0.0)
    distance = np.sqrt(square, out=square)
    for start in range(0, i.size, CLOSE_BLOCK):
        first, second = i[start : start + CLOSE_BLOCK], k[start : start + CLOSE_BLOCK]
        distance[first, second] = distance[second, first] = _lengths(x[first] - x[second])
    return distance, i, k


def _true_places(matrix):
    """np.nonzero of a square matrix (m, m), three times as fast."""
    return np.divmod(np.flatnonzero(matrix), len(matrix))


def _lengths(rows):
    """Euclidean length of each row (n, c); tiny entries do not underflow."""
    largest = np.abs(rows).max(axis=1)  # (n,)
    safe = np.where(largest > 0, largest, 1.0)
    return safe * np.sqrt(np.square(rows / safe[:, None]).sum(axis=1))


def _directions(rows):
    """Each row (n, c) divided by its length; a zero row stays zero."""
    length = _lengths(rows)
    return rows / np.where(length > 0, length, 1.0)[:, None]


def _sum_of_squares(values):
    """Sum of squares, infinite only if the result itself is beyond float64; raises no numpy warning."""
    largest = values.max(initial=0.0)
    if largest == 0.0:
        return 0.0
    exponent = int(np.frexp(largest)[1])
    mantissa, shift = np.frexp(np.square(np.ldexp(values, -exponent)).sum())
    return np.ldexp(mantissa, int(shift) + 2 * exponent) if int(shift) + 2 * exponent <= 1024 else np.inf
