"""What the paper's nets start from: ImageNet's mean wherever pycaffe is, and weights that are GoogLeNet's."""

import os
import shutil
import subprocess
import sys

import caffe_pb2
import numpy as np
import pytest
from caffe_pb2 import BlobProto, LayerParameter, NetParameter, V1LayerParameter

from data_prep.imagenet import MEAN, check_file, mean_file
from prototxt.records import trunks
from tools.caffe_files import check_trunk
from tools.given_caffe import link_pycaffe

GOOGLENET = trunks()["googlenet"]
NAMES = [layer["name"] for layer in GOOGLENET.layers() if layer["type"] == "Convolution"]


def test_the_mean_of_a_pycaffe_that_is_given(tmp_path):
    """It lies in the given folder, not in the one that `make env` fills with links to it."""
    for beside in (False, True):  # the messages, as in BVLC's tree and as in another checkout of this project
        package = tmp_path / f"{beside}/python/caffe"
        for folder in ("proto", "imagenet"):
            (package / folder).mkdir(parents=True)
        for name in ("__init__.py", "_caffe.so"):
            (package / name).touch()
        (package.parent / "caffe_pb2.py" if beside else package / "proto/caffe_pb2.py").symlink_to(caffe_pb2.__file__)
        shutil.copy(mean_file(), package / MEAN)
        linked = tmp_path / f"{beside}/linked"
        link_pycaffe(package, linked)

        def found(linked=linked):
            code = "from data_prep.imagenet import imagenet_mean, mean_file; print(mean_file(), imagenet_mean().mean())"
            environment = {**os.environ, "PYTHONPATH": f"{linked}/python"}
            return subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True)

        done = found()
        assert done.stdout.startswith(f"{package / MEAN} 114.45"), done.stderr
    (package / MEAN).write_bytes(b"<html>")
    assert "ValueError" in found().stderr and "web page" in found().stderr
    (package / MEAN).unlink()
    lines = found().stderr.splitlines()
    assert "ValueError" in lines[-1] and str(package / MEAN) in lines[-1] and "make env PYCAFFE=" in lines[-1]


def saved(path, names, old=False, blobs=1):
    """A .caffemodel with layers of these names, in 2014's format where `old`."""
    kind = V1LayerParameter if old else LayerParameter
    layers = [kind(name=name, blobs=[BlobProto(data=np.zeros(2, "f4"))] * blobs) for name in names]
    path.write_bytes(NetParameter(name="net", **{"layers" if old else "layer": layers}).SerializeToString())
    return path


@pytest.mark.parametrize("old", [False, True])
def test_weights_of_another_net_are_refused(tmp_path, old):
    own = saved(tmp_path / "own.caffemodel", [*NAMES, "loss3/classifier"], old)
    assert len(NAMES) == 57
    check_trunk(own, GOOGLENET)
    for names, blobs, lacking in (
        (NAMES[1:], 1, ";"),
        (NAMES, 0, " and 56 more"),
        (["conv1", "res2a_branch1", "fc1000"], 1, " and 56 more"),
    ):
        saved(own, names, old, blobs)  # names alone, without blobs, are no weights
        with pytest.raises(ValueError, match=f"own.caffemodel: has no weights for .*'conv1/7x7_s2'{lacking}"):
            check_trunk(own, GOOGLENET)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"<!doctype html>", "web page"),
        (b"no weights", "no .caffemodel"),
        (None, "no such file"),
    ],
)
def test_weights_that_are_something_else(tmp_path, content, words):
    if content is not None:
        (tmp_path / "own.caffemodel").write_bytes(content)
    with pytest.raises(ValueError, match=f"own.caffemodel: .*{words}"):
        check_file(tmp_path / "own.caffemodel")
