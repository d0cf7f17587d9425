"""The files that python_layers/README.md names for a loss are all that it takes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from conftest import ROOT

NET = """
layer { name: "data" type: "Input" top: "data" top: "label"
  input_param { shape { dim: 8 dim: 5 } shape { dim: 8 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "Python" bottom: "fc" bottom: "label" top: "loss" loss_weight: 1
  python_param { module: "lifted_structured_loss_layer" layer: "LiftedStructuredLossLayer" } }
"""
TRAIN = """
import caffe, numpy as np
caffe.set_random_seed(1)
solver = caffe.SGDSolver("solver.prototxt")
labels = np.arange(8) // 2
solver.net.blobs["data"].data[...] = np.random.default_rng(0).normal(size=(8, 5)) + np.eye(5)[labels]
solver.net.blobs["label"].data[...] = labels
solver.step(1)
first = float(solver.net.blobs["loss"].data)
solver.step(60)
assert 0 < float(solver.net.blobs["loss"].data) < 0.7 * first, (first, float(solver.net.blobs["loss"].data))
"""


def test_the_lifted_loss_trains_from_the_files_that_the_readme_names(caffe, tmp_path):
    text = (ROOT / "python_layers" / "README.md").read_text()
    names = re.findall(r"^- `(\w+\.py)`", text, re.MULTILINE)
    assert len(names) == 5
    for name in names:
        shutil.copy(ROOT / "python_layers" / name, tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    solver = 'net: "net.prototxt" base_lr: 0.05 lr_policy: "fixed" max_iter: 100 snapshot: 0 display: 0 solver_mode: CPU'
    (tmp_path / "solver.prototxt").write_text(solver)
    places = tmp_path, Path(caffe.__file__).parent.parent, Path(np.__file__).parent.parent  # no .pth file is read there
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [sys.executable, "-S", "-c", TRAIN]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
