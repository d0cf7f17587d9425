"""What the losses here ask of a batch of embeddings and of their results: numpy only, no Caffe."""

import numpy as np


def checked(embeddings, labels, margin):
    """`embeddings` as an array and `labels` as one of shape (m,), or an error that says what is wrong with them."""
    embeddings = np.asarray(embeddings)
    if embeddings.dtype not in (np.float32, np.float64):
        raise TypeError(f"embeddings must be float32 or float64, not {embeddings.dtype}")
    if embeddings.ndim < 2 or embeddings.shape[0] == 0 or embeddings[0].size == 0 or any(n != 1 for n in embeddings.shape[2:]):
        raise ValueError(f"embeddings must have shape (m, c) or (m, c, 1, 1) with m, c > 0, not {embeddings.shape}")
    if not np.isfinite(embeddings).all():
        finite = np.isfinite(embeddings.reshape(len(embeddings), -1)).all(axis=1)
        rows = np.flatnonzero(~finite)
        more = f" and {rows.size - 10} more" if rows.size > 10 else ""
        raise ValueError(f"embeddings are not finite (NaN or infinite) in {rows.size} of {len(finite)} rows: "
                         f"{', '.join(map(str, rows[:10]))}{more}")  # fmt: skip
    labels = np.asarray(labels).reshape(-1)
    if labels.size != len(embeddings):
        raise ValueError(f"{len(embeddings)} embeddings but {labels.size} labels")
    if labels.dtype.kind not in "iufb" or not np.isfinite(labels).all() or (labels != np.floor(labels)).any():
        raise ValueError("labels must be class ids: integers, or floats of integral value")
    if not np.isfinite(margin):
        raise ValueError(f"margin must be a finite number, not {margin}")
    return embeddings, labels


def representable(value, dtype, name):
    """`value` in `dtype`; raises OverflowError where that would be infinite."""
    limit = np.finfo(dtype).max
    if not -limit <= np.min(value) <= np.max(value) <= limit:
        raise OverflowError(f"the {name} is larger than {dtype} can hold ({limit:.1e}); the embeddings are too far apart")
    return np.asarray(value).astype(dtype)[()]
