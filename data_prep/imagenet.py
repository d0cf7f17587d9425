"""What the paper's nets start from: BVLC GoogLeNet's weights and the ImageNet mean image.

.venv/bin/python data_prep/imagenet.py                        # fetches data/bvlc_googlenet.caffemodel
.venv/bin/python data_prep/imagenet.py --weights own.caffemodel  # only says whether the file can be used
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import hashlib
from pathlib import Path

import caffe_pb2
import numpy as np
from caffe_pb2 import NetParameter
from google.protobuf.message import DecodeError

from data_prep.download import Download, digest, fetch, unfit
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
MEAN = "imagenet/ilsvrc_2012_mean.npy"  # in pycaffe's folder
MEAN_SHA1 = "63e4652e656abc1e87b7a8339a7e02fca63a2c0c"  # of imagenet_mean.binaryproto


def mean_file():
    """Where pycaffe keeps the ImageNet mean image: beside its messages, or the folder above.

    Of a pycaffe that is given, `make env` links the messages; the package itself lies where the link leads.
    """
    messages = Path(caffe_pb2.__file__)
    if messages.is_symlink():
        messages = messages.readlink()
    beside = messages.with_name("caffe") / MEAN
    return messages.parent.parent / MEAN if messages.parent.name == "proto" else beside


def imagenet_mean():
    """The ImageNet mean image (3, 256, 256) float32, blue, green, red: pycaffe ships it as an array.

    Written by write_mean it is imagenet_mean.binaryproto, byte for byte. Raises ValueError where pycaffe has none or another.
    """
    path = mean_file()
    advice = f"Put BVLC Caffe's python/caffe/{MEAN} there, or build a Caffe here: make env PYCAFFE="
    if not path.is_file():
        raise ValueError(f"{path}: is not there, this pycaffe came without ImageNet's mean image. {advice}")
    if wrong := unfit(path):
        raise ValueError(f"{path}: {wrong}. {advice}")
    try:
        mean = np.load(path).astype(np.float32)
        right = hashlib.sha1(mean_bytes(mean)).hexdigest() == MEAN_SHA1
    except Exception:  # what is no array fails in many ways
        right = False
    if not right:
        raise ValueError(f"{path}: is not the mean image that BVLC Caffe ships. {advice}")
    return mean


def check_file(path):
    """Raise ValueError unless `path` is a .caffemodel."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file (WEIGHTS)")
    if wrong := unfit(path):
        raise ValueError(f"{path}: {wrong} (WEIGHTS)")
    net = NetParameter()
    try:
        net.ParseFromString(path.read_bytes())
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
