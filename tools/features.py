"""features.npz: what extraction writes and everything after it reads. No Caffe."""

import json
from typing import NamedTuple

import numpy as np

from data_prep.files import read_json, written_aside
from tools.runs import ABOUT, fits

LARGEST = 1e15  # of a feature: the squares of thousands of them still add up to a float32


class TooFew(ValueError):
    """There are too few images for what was asked to be shown."""


class Features(NamedTuple):
    """The content of a features.npz."""

    features: np.ndarray  # (N, c) float32
    labels: np.ndarray  # (N,)
    paths: np.ndarray  # (N,) of the images, as train.csv and test.csv list them
    about: dict  # what they were made from: `set`, `weights`, `training`; empty when unknown


def save_features(path, features, labels, paths, about):
    """Write `features` (N, c) float32, `labels` (N,), `paths` (N,), `about` (dict); ValueError for a row that is not finite."""
    _check(path, features, labels, paths)
    with written_aside(path) as aside, open(aside, "wb") as stream:
        np.savez(stream, features=features, labels=labels, paths=np.asarray(paths), about=json.dumps(about))


def load_features(path):
    """The Features at `path`; ValueError names the path and what is wrong with it."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            features, labels, paths = (archive[name] for name in ("features", "labels", "paths"))
            about = read_json(str(archive["about"])) if "about" in archive else {}
        if not fits(about, ABOUT):
            raise ValueError("about: other than what extraction writes")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; tools/extract.py makes it (make demo)") from None
    except Exception as error:  # a damaged zip shows as any of five exceptions
        raise ValueError(f"{path}: cannot be read as features ({error}); make it again with tools/extract.py") from None
    _check(path, features, labels, paths)
    return Features(features, labels, paths, about)


def _check(path, features, labels, paths):
    features, labels, paths = map(np.asarray, (features, labels, paths))
    again = "make it again with tools/extract.py"
    if features.ndim != 2 or not features.size or features.dtype.kind not in "fiu":
        raise ValueError(f"{path}: expected features (N, c) that are numbers, found {features.dtype} {features.shape}; {again}")
    for name, array, kinds, what in (("labels", labels, "iu", "whole numbers"), ("paths", paths, "U", "texts")):
        if array.shape != features.shape[:1] or array.dtype.kind not in kinds:
            raise ValueError(f"{path}: expected {len(features)} {name}, {what}, one for each row of the features {features.shape}; "
                             f"found {array.dtype} {array.shape}; {again}")  # fmt: skip
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise ValueError(f"{path}: {bad.size} of {len(features)} feature rows are not finite, first row {bad[0]} "
                         f"({paths[bad[0]]}); the training diverged")  # fmt: skip
    if max(abs(float(features.min())), abs(float(features.max()))) > LARGEST:
        raise ValueError(f"{path}: holds numbers beyond {LARGEST:g}, whose distances single precision cannot tell; the training "
                         "diverged")  # fmt: skip


def read_about(path):
    """What the features at `path` were made from, without reading them; empty when that cannot be told."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return read_json(str(archive["about"]))
    except Exception:  # a damaged zip shows as any of five exceptions
        return {}
