"""features.npz: what extraction writes and everything after it reads. No Caffe."""

import numpy as np

from data_prep.files import written_aside


def save_features(path, features, labels, paths):
    """Write `features` (N, c) float32, `labels` (N,), `paths` (N,); ValueError for a row that is not finite."""
    _check(path, features, labels, paths)
    with written_aside(path) as aside, open(aside, "wb") as stream:
        np.savez(stream, features=features, labels=labels, paths=np.asarray(paths))


def load_features(path):
    """(features (N, c) float32, labels (N,), paths (N,)); ValueError names the path and what is wrong with it."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            features, labels, paths = (archive[name] for name in ("features", "labels", "paths"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; tools/extract.py makes it (make demo)") from None
    except Exception as error:  # a damaged zip shows as any of five exceptions
        raise ValueError(f"{path}: cannot be read as features ({error}); make it again with tools/extract.py") from None
    _check(path, features, labels, paths)
    return features, labels, paths


def _check(path, features, labels, paths):
    if features.ndim != 2 or not len(features) == len(labels) == len(paths):
        raise ValueError(f"{path}: features {features.shape}, {len(labels)} labels and {len(paths)} paths do not belong together")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise ValueError(f"{path}: {bad.size} of {len(features)} feature rows are not finite, first row {bad[0]} "
                         f"({paths[bad[0]]}); the training diverged")  # fmt: skip
