"""What the paper's nets start from: BVLC GoogLeNet's weights and the ImageNet mean image.

.venv/bin/python data_prep/imagenet.py                        # fetches data/bvlc_googlenet.caffemodel
.venv/bin/python data_prep/imagenet.py --weights own.caffemodel  # only says whether the file can be used
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
from caffe_pb2 import NetParameter
from google.protobuf.message import DecodeError

from data_prep.archives import no_archive
from data_prep.download import Download, digest, fetch
from data_prep.files import user_path
from data_prep.write_set import mean_bytes

WEIGHTS = Download(
    "bvlc_googlenet.caffemodel",
    (
        "http://dl.caffe.berkeleyvision.org/bvlc_googlenet.caffemodel",
        "https://dl.caffe.berkeleyvision.org/bvlc_googlenet.caffemodel",
        "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/caffe/models/bvlc_googlenet/bvlc_googlenet.caffemodel",
        "https://www.deepdetect.com/downloads/platform/pretrained/caffe/googlenet/bvlc_googlenet.caffemodel",
    ),
    53533754,
    "sha1:405fc5acd08a3bb12de8ee5e23a96bec22f08204",  # BVLC's models/bvlc_googlenet/readme.md
)
MEAN_SHA1 = "63e4652e656abc1e87b7a8339a7e02fca63a2c0c"  # of imagenet_mean.binaryproto


def imagenet_mean():
    """The ImageNet mean image (3, 256, 256) float32, blue, green, red: pycaffe ships it as an array.

    Written by write_mean it is imagenet_mean.binaryproto, byte for byte. Raises ValueError where pycaffe's is another.
    """
    found = importlib.util.find_spec("caffe")
    if found is None or not found.submodule_search_locations:
        raise ValueError("pycaffe, which ships the ImageNet mean image, is not there; `make env` builds it")
    path = Path(found.submodule_search_locations[0]) / "imagenet" / "ilsvrc_2012_mean.npy"
    if not path.is_file():
        raise ValueError(
            f"{path}: not there: this pycaffe came without the ImageNet mean image. Copy BVLC's python/caffe/imagenet/{path.name} "
            "there, or let `make env PYCAFFE=` build a Caffe that has it"
        )
    mean = np.load(path).astype(np.float32)
    if hashlib.sha1(mean_bytes(mean)).hexdigest() != MEAN_SHA1:
        raise ValueError(f"{path}: is not the mean image that BVLC Caffe ships; call `make env` again")
    return mean


def check_file(path):
    """Raise ValueError unless `path` is a .caffemodel."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file (WEIGHTS)")
    if what := no_archive(path):
        raise ValueError(f"{path}: {what}")
    net = NetParameter()
    try:
        net.ParseFromString(path.read_bytes())
    except PermissionError:
        raise ValueError(f"{path}: may not be read (permission denied); chmod or chown lets you") from None
    except DecodeError as error:
        raise ValueError(f"{path}: is no .caffemodel, or is damaged ({error})") from None
    if not (net.layer or net.layers):
        raise ValueError(f"{path}: holds no layers; expected a .caffemodel such as bvlc_googlenet.caffemodel")


def known_weights(path):
    """What is recorded about the weights at `path` that a net starts from: their SHA-1, and whether they are BVLC's."""
    if path is None:
        return None
    check_file(path)
    found = digest(path, "sha1")
    return {"sha1": found, "bvlc_googlenet": WEIGHTS.checksum == f"sha1:{found}"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=user_path, help="a .caffemodel to start from instead of BVLC's")
    arguments = parser.parse_args()
    if arguments.weights:
        check_file(arguments.weights)
        return
    try:
        fetch(WEIGHTS, Path("data"))
    except OSError as error:
        raise OSError(f"{error}\nor name it where it is: make train-cub WEIGHTS=<file>") from None


if __name__ == "__main__":
    run("imagenet", main)
