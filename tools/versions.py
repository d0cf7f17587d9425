"""What a run or a bug report needs to know of this machine's software."""

import platform
from importlib.metadata import version
from pathlib import Path

from threadpoolctl import threadpool_info

from data_prep.files import read_record

LIBRARIES = ("numpy", "scipy", "scikit-learn", "lmdb", "protobuf", "pillow", "faiss-cpu", "opencv-python-headless", "matplotlib")


def caffe_blas():
    """(library, kernel, threads) of the BLAS that Caffe runs on: the one that no Python package brought along."""
    import caffe  # noqa: F401 - loads it

    for library in threadpool_info():
        if library["user_api"] == "blas" and "site-packages" not in library["filepath"]:
            return f"{library['internal_api']} {library['version']}", library.get("architecture"), library["num_threads"]
    return "unknown", None, None


def caffe_record():
    """What the build of the Caffe that `import caffe` finds wrote down, or {}."""
    import caffe

    return read_record(Path(caffe.__file__).resolve().parents[2] / "caffe.json")


def caffe_origin():
    """Where the Caffe that `import caffe` finds came from: the build's own record, or its folder."""
    import caffe

    return caffe_record().get("origin") or str(Path(caffe.__file__).parent)


def caffe_flags():
    """The compiler's flags for the CPU, [] for a plain build; None where the Caffe was built elsewhere."""
    return caffe_record().get("flags")


def versions():
    """What a result depends on: Python, libraries, Caffe, its BLAS with kernel and threads. Imports Caffe."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "caffe": caffe_origin(),
        "caffe_blas": list(caffe_blas()),
    }
