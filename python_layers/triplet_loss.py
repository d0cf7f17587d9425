"""The triplet loss of equation 2 and its gradient: numpy only, no Caffe.

Song, Xiang, Jegelka, Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016, section 3.
The Caffe layer around it is triplet_loss_layer.py; data_prep/batch_plan.py draws the triplets.
"""

import numpy as np

from embedding_batch import checked, representable


def triplet_loss(embeddings, labels, margin=1.0):
    """Loss of equation 2 over the triplets of a batch, and its exact gradient.

    The batch holds the anchors, then the positives, then the negatives: rows j, j + m/3 and j + 2m/3 are a triplet. With
    D the Euclidean distances::

        loss = 3 / (2 m) * sum_j max(0, D_ap^2 - D_an^2 + margin)

    Parameters
    ----------
    embeddings : array (m, c) or (m, c, 1, 1), float32 or float64
        One row an image, not normalised.
    labels : array (m,) or any shape of m entries
        Class ids: integers, or floats of integral value as Caffe's blobs hold them. They choose nothing, but a batch
        whose rows are no triplets is refused.
    margin : float
        The paper's alpha.

    Returns
    -------
    loss : scalar of the input's dtype
    gradient : array of the input's shape and dtype
        Derivative of the loss by the embeddings; zero from both sides on the hinge's kink.

    Raises
    ------
    TypeError
        The embeddings are not float32 or float64.
    ValueError
        Wrong shapes, a number of rows that is no multiple of 3, a non-finite embedding (its rows are named), a label
        that is no class id, a row whose anchor and positive are of two classes or whose negative is of the anchor's,
        a margin that is not finite.
    OverflowError
        The loss or its gradient is larger than the dtype can hold.

    Both dtypes are computed in float64.
    """
    # 1. Check that the rows are triplets.
    embeddings, labels = checked(embeddings, labels, margin)
    shape, dtype = embeddings.shape, embeddings.dtype
    if shape[0] % 3:
        raise ValueError(f"a batch of triplets holds a multiple of 3 images, not {shape[0]}")
    anchor_of, positive_of, negative_of = labels.reshape(3, -1)  # (t,) each
    wrong = (anchor_of != positive_of) | (anchor_of == negative_of)  # (t,)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"{np.count_nonzero(wrong)} of {wrong.size} rows are no triplets; the first, {row}, has anchor, positive "
                         f"and negative of the classes {anchor_of[row]:g}, {positive_of[row]:g}, {negative_of[row]:g}. "
                         "The batches need a plan of triplets (data_prep/batch_plan.py --kind triplets)")  # fmt: skip
    anchor, positive, negative = embeddings.reshape(3, wrong.size, -1).astype(np.float64)  # (t, c) each

    # 2. The hinges, with squared distances from the differences.
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        hinge = np.square(anchor - positive).sum(axis=1) - np.square(anchor - negative).sum(axis=1) + margin  # (t,)
        active = ~(hinge <= 0)  # (t,) a NaN is kept, to be refused
        loss = representable(hinge[active].sum() / (2 * wrong.size), dtype, "loss")

        # 3. By anchor, positive and negative: 2 (x_n - x_p), 2 (x_p - x_a) and 2 (x_a - x_n), where the hinge is active.
        share = active[:, None] / wrong.size  # (t, 1)
        gradient = np.stack([negative - positive, positive - anchor, anchor - negative]) * share  # (3, t, c)
    return loss, representable(gradient, dtype, "gradient").reshape(shape)
