"""Small real things to test on: folders of images, sets made from them, a trainable net of a few thousand weights."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")

from tools.blas import choose_kernels

choose_kernels()  # as the commands do: what runs here and what runs there can then be equal to the bit

import numpy as np
import pytest
from PIL import Image

from data_prep.batch_plan import MAX_POSITIVE_PAIRS
from data_prep.build_set import build

ROOT = Path(__file__).resolve().parent.parent
CAFFE = ROOT / ".caffe" / "caffe" / "bin" / "caffe"


@pytest.fixture(scope="session")
def caffe():
    import caffe

    caffe.set_mode_cpu()
    return caffe


def draw_images(folder, classes, each, seed=0, side=24, noise=12):
    """A folder of `classes` classes of `each` PNGs: a colour and a bright corner a class, noise an image."""
    random = np.random.default_rng(seed)
    for number in range(classes):
        (folder / f"class{number:03}").mkdir(parents=True)
        colour = random.integers(30, 225, 3)
        corner = random.integers(0, side // 2, 2)
        for image in range(each):
            pixels = np.clip(colour + random.normal(0, noise, (side, side, 3)), 0, 255)
            pixels[corner[0] : corner[0] + side // 2, corner[1] : corner[1] + side // 2] += 20
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"class{number:03}" / f"{image}.png")
    return folder


def build_set(images, out, **options):
    defaults = {"size": 16, "groups": {}, "test_fraction": 0.5, "holdout": 0.0, "seed": 1, "batch": 16,
                "max_positive_pairs": MAX_POSITIVE_PAIRS, "skip_unreadable": False}  # fmt: skip
    return build(images, out, **{**defaults, **options})


@pytest.fixture(scope="session")
def small_set(tmp_path_factory):
    """data/<set> of 12 classes of 5 images of 16x16 pixels, half of them test, batches of 16."""
    home = tmp_path_factory.mktemp("small")
    build_set(draw_images(home / "images", 12, 5), home / "set")
    return home / "set"


NET = """
layer {{ name: "pair_batch" type: "Python" top: "data" top: "label" param {{ lr_mult: 0 decay_mult: 0 }}
  python_param {{ module: "pair_batch_data_layer" layer: "PairBatchData" param_str: '{data}' }} }}
layer {{ name: "scale" type: "Power" bottom: "data" top: "scaled" power_param {{ scale: 0.015625 }} }}
layer {{ name: "conv" type: "Convolution" bottom: "scaled" top: "conv" param {{ lr_mult: 1 }} param {{ lr_mult: 2 }}
  convolution_param {{ num_output: 8 kernel_size: 3 weight_filler {{ type: "msra" }} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "drop" type: "Dropout" bottom: "conv" top: "conv" dropout_param {{ dropout_ratio: {dropout} }} }}
layer {{ name: "fc_embedding" type: "InnerProduct" bottom: "conv" top: "fc_embedding"
  inner_product_param {{ num_output: 8 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "loss" type: "Python" bottom: "fc_embedding" bottom: "label" top: "loss" loss_weight: 1
  python_param {{ module: "lifted_structured_loss_layer" layer: "LiftedStructuredLossLayer" param_str: '{{"margin": 1.0}}' }} }}
"""


def write_solver(folder, data_set, dropout=0.0, iterations=40, **fields):
    """A solver and its net for `data_set` in `folder`; returns the solver's path."""
    data = {"crop": 14, "lmdb": f"{data_set}/train.lmdb", "mean_file": f"{data_set}/mean.binaryproto",
            "mirror": True, "plan": f"{data_set}/pairs_m16.npz", "seed": 1}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.prototxt").write_text(NET.format(data=json.dumps(data), dropout=dropout))
    solver = {"net": f'"{folder}/net.prototxt"', "base_lr": 0.00001, "lr_policy": '"fixed"', "momentum": 0.9,
              "max_iter": iterations, "display": 10, "snapshot": 0, "random_seed": 1, "solver_mode": "CPU",
              "snapshot_prefix": f'"{folder}/snapshot"', **fields}  # fmt: skip
    (folder / "solver.prototxt").write_text("".join(f"{name}: {value}\n" for name, value in solver.items()))
    return folder / "solver.prototxt"


def tool(script, *arguments, **options):
    """Run one of the project's scripts as a person would; returns the finished process with its output as text."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, cwd=options.pop("cwd", ROOT), text=True, capture_output=True, timeout=300, **options)


def start(command, cwd=ROOT):
    """Start a command to be interrupted; Ctrl+C reaches it also where these tests run in the background."""
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip


def stock_caffe(*arguments, cwd=ROOT):
    """Run the stock `caffe` binary the way README says: after sourcing .caffe/env.sh."""
    if not CAFFE.exists():
        pytest.skip("the pycaffe that was named to make env came without the stock binary")
    command = ["bash", "-c", 'source "$0" && exec caffe "$@"', str(ROOT / ".caffe" / "env.sh"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True, timeout=300)
