"""A build with CUDA in a folder of its own: it links, imports and computes, here without a GPU. `make test-gpu-build`.

CUDA_ARCH (default 90) and CUDNN are what `make env` takes; SCRATCH names a folder to build in, which is kept.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

MODE = "caffe.set_mode_cpu()"
NET = """
import caffe, numpy as np, sys
assert "Python" in caffe.layer_type_list() and caffe.__file__.startswith(sys.argv[1]), caffe.__file__
MODE
caffe.set_random_seed(1)
net = caffe.Net(sys.argv[2], caffe.TEST)
for name in ("conv", "fc"):
    weights = net.params[name][0].data
    weights[...] = np.random.default_rng(1).normal(size=weights.shape)
net.blobs["data"].data[...] = np.random.default_rng(2).normal(size=net.blobs["data"].data.shape)
print(*net.forward()["fc"].ravel().tolist())
"""
LAYERS = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 9 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3 ENGINE } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" relu_param { ENGINE } }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 ENGINE } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 3 } }
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout in which `make env GPU=1` was called."""
    home = Path(os.environ.get("SCRATCH") or tmp_path_factory.mktemp("gpu")).absolute()
    for name in ("tools", "data_prep", "python_layers", "prototxt"):
        shutil.copytree(ROOT / name, home / name, dirs_exist_ok=True)
    for name in ("Makefile", "requirements.txt"):
        shutil.copy2(ROOT / name, home)
    if (ROOT / ".caffe/downloads").is_dir():
        shutil.copytree(ROOT / ".caffe/downloads", home / ".caffe/downloads", dirs_exist_ok=True)
    given = ["GPU=1", f"CUDA_ARCH={os.environ.get('CUDA_ARCH') or 90}", f"CUDNN={os.environ.get('CUDNN', '')}"]
    # What the make that called this was given is not for that one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    done = subprocess.run(["make", "env", *given], cwd=home, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return home


def test_it_is_linked_with_cuda_and_finds_it(checkout):
    record = json.loads((checkout / ".caffe/caffe/caffe.json").read_text())
    assert "-DCMAKE_SHARED_LINKER_FLAGS=-Wl,--no-undefined" in record["cmake"] and ", CUDA 1" in record["origin"]
    built = checkout / ".caffe/caffe"
    for library in (built / "lib/libcaffe.so", built / "python/caffe/_caffe.so", built / "bin/caffe"):
        # -r: every symbol is looked up too; those of Python itself are the interpreter's, which loads _caffe.so
        found = subprocess.run(["ldd", "-r", library], env={"PATH": os.environ["PATH"]}, text=True, capture_output=True)
        said = found.stdout + found.stderr
        assert "not found" not in said and "undefined symbol" not in said, said
        for name in ("libcublas.so", "libcurand.so", "libcudart.so", *(["libcudnn.so"] if os.environ.get("CUDNN") == "1" else [])):
            assert name in said, said


def forward(checkout, tmp_path, mode=MODE):
    """What a small net computes in the Caffe of that checkout; cuDNN's layers, where it has them, want a GPU to be set up."""
    (tmp_path / "net.prototxt").write_text(LAYERS.replace("ENGINE", "engine: CAFFE" if mode == MODE else ""))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"GLOG_minloglevel": "3"}
    command = [checkout / ".venv/bin/python", "-c", NET.replace("MODE", mode), str(checkout), tmp_path / "net.prototxt"]
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


def test_it_computes_on_the_cpu_what_the_build_for_the_cpu_does(checkout, tmp_path):
    assert forward(checkout, tmp_path) == pytest.approx(forward(ROOT, tmp_path), rel=1e-5)


def test_it_computes_on_a_gpu_what_it_does_on_the_cpu(checkout, tmp_path):
    there = shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout.strip()
    if not there:
        pytest.skip("not run on a GPU: none is here; compiled, linked and imported")
    on_gpu = forward(checkout, tmp_path, "caffe.set_mode_gpu(); caffe.set_device(0)")
    assert on_gpu == pytest.approx(forward(checkout, tmp_path), rel=1e-4, abs=1e-4)
