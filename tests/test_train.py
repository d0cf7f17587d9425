"""Training with real Caffe, by tools/train.py and by the stock binary: it learns, stops, goes on, and ends the same."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from caffe_pb2 import NetParameter, SolverParameter, SolverState
from conftest import ROOT, build_set, draw_images, start, stock_caffe, tool, write_solver

from data_prep.batch_plan import ensure_plan
from pair_batch import ImageDatabase, read_mean
from prototxt.methods.contrastive import loss as contrastive_loss
from prototxt.text import render
from tools import extract
from tools.caffe_files import in_copy, read_binary
from tools.device import loaded
from tools.features import load_features

LENGTH = 200


def weights(path):
    """layer name -> list of arrays."""
    net = read_binary(path, NetParameter())
    return {layer.name: [np.array(blob.data, np.float32) for blob in layer.blobs] for layer in net.layer if layer.blobs}


def assert_equal_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name in one:
        for a, b in zip(one[name], other[name]):
            np.testing.assert_array_equal(a, b, err_msg=name)


def history(path):
    return [np.array(blob.data, np.float32) for blob in read_binary(path, SolverState()).history]


def train(solver, run, *arguments):
    return tool("tools/train.py", "--solver", solver, "--run", run, *arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_set):
    """A run of LENGTH iterations, undisturbed, dropout and all."""
    home = tmp_path_factory.mktemp("trained")
    solver = write_solver(home, small_set, dropout=0.2, iterations=LENGTH)
    done = train(solver, home / "run", "--seed", 5)
    assert done.returncode == 0, done.stderr
    return home


def test_the_loss_falls(trained):
    with open(trained / "run" / "log.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["iteration"]) for row in rows] == list(range(1, LENGTH + 1))
    first, last = (np.mean([float(row["loss"]) for row in part]) for part in (rows[:10], rows[-10:]))
    assert 0.05 < last < 0.6 * first  # it learned, and the gradient still changes the weights at the end
    shown = [row for row in rows if int(row["iteration"]) % 10 == 0]
    assert all(float(row[name]) >= 0 for row in shown for name in ("positive_mean", "negative_min", "active", "images_per_second"))


def test_the_run_folder_tells_what_ran(trained):
    run = trained / "run"
    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["seed"] == 5 and record["versions"]["numpy"] == np.__version__
    built = json.loads((ROOT / ".caffe/caffe/caffe.json").read_text())  # another one where a Caffe was named to make env
    assert record["versions"]["caffe"] == built["origin"]
    assert '"seed\\": 5' in (run / "train_val.prototxt").read_text()
    assert "random_seed: 5" in (run / "solver.prototxt").read_text()
    assert weights(run / "model.caffemodel")["pair_batch"][0] == LENGTH  # the batch counter


def test_a_batch_that_the_plan_does_not_hold_is_refused(tmp_path, small_set):
    shutil.copytree(small_set, tmp_path / "set")
    (tmp_path / "set/pairs_m16.npz").rename(tmp_path / "set/pairs.npz")
    done = train(write_solver(tmp_path, small_set), tmp_path / "run", "--set", tmp_path / "set", "--batch", 128)
    assert done.returncode == 1 and "of 16 images, not of 128" in done.stderr and not (tmp_path / "run/run.json").exists()


def test_called_again_it_does_nothing(trained):
    before = {path: path.stat().st_mtime_ns for path in (trained / "run").iterdir() if path.name != ".lock"}
    done = train(trained / "solver.prototxt", trained / "run", "--seed", 5)
    assert done.returncode == 0 and f"trained already ({LENGTH} iterations)" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_settings_are_refused(trained):
    done = train(trained / "solver.prototxt", trained / "run", "--seed", 6)
    assert done.returncode == 1 and "seed: 5 then, 6 now" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_called_again_equals_undisturbed(trained, tmp_path, small_set, number):
    """To the bit: weights, solver state, batch counter; dropout, crops and mirrors included. And every logged loss."""
    solver = write_solver(tmp_path, small_set, dropout=0.2, iterations=1000, snapshot=7)
    command = [sys.executable, str(ROOT / "tools/train.py"), "--solver", solver, "--run", tmp_path / "run", "--seed", "5",
               "--iterations", str(LENGTH)]  # fmt: skip
    process = start(command)
    wait_for(tmp_path / "run" / "snapshot_iter_7.solverstate", process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), out
    assert not (tmp_path / "run" / "model.caffemodel").exists()
    assert number == signal.SIGKILL or "snapshot saved; the same command goes on" in out
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "going on from iteration" in done.stdout
    assert_equal_weights(tmp_path / "run" / "model.caffemodel", trained / "run" / "model.caffemodel")
    for a, b in zip(*(history(home / "run" / f"snapshot_iter_{LENGTH}.solverstate") for home in (tmp_path, trained))):
        np.testing.assert_array_equal(a, b)
    logs = [list(csv.DictReader(open(home / "run" / "log.csv", newline=""))) for home in (tmp_path, trained)]
    same = ("iteration", "loss", "positive_mean", "negative_min", "active")
    assert [[row[name] for name in same] for row in logs[0]] == [[row[name] for name in same] for row in logs[1]]


def wait_for(path, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


def test_a_damaged_snapshot_is_passed_over(trained, tmp_path, small_set):
    solver = write_solver(tmp_path, small_set, dropout=0.2, snapshot=50, iterations=LENGTH)
    assert train(solver, tmp_path / "run", "--seed", 5).returncode == 0
    (tmp_path / "run" / "model.caffemodel").unlink()
    for name in ("snapshot_iter_200.solverstate", "snapshot_iter_150.caffemodel"):
        path = tmp_path / "run" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = train(solver, tmp_path / "run", "--seed", 5)
    assert done.returncode == 0 and done.stdout.count("passing over a snapshot") == 2
    assert "going on from iteration 100" in done.stdout
    aside = {path.name for path in (tmp_path / "run").glob("*.damaged")}  # nothing that was there is lost
    assert aside == {f"snapshot_iter_{n}.{kind}.damaged" for n in (150, 200) for kind in ("solverstate", "caffemodel")}
    with open(tmp_path / "run" / "log.csv", newline="") as stream:
        assert [int(row["iteration"]) for row in csv.DictReader(stream)] == list(range(1, LENGTH + 1))
    assert_equal_weights(tmp_path / "run" / "model.caffemodel", trained / "run" / "model.caffemodel")


@pytest.mark.parametrize("change", ["shape", "count", "iteration", "nan history", "nan weights", "short weights"])
def test_a_snapshot_that_caffe_would_abort_on_or_go_wrong_with_is_passed_over(trained, tmp_path, small_set, change):
    solver = write_solver(tmp_path, small_set, dropout=0.2, snapshot=50, iterations=LENGTH)
    assert train(solver, tmp_path / "run", "--seed", 5).returncode == 0
    (tmp_path / "run" / "model.caffemodel").unlink()
    path = tmp_path / "run" / "snapshot_iter_200.solverstate"
    state = SolverState.FromString(path.read_bytes())
    weights = NetParameter.FromString(Path(state.learned_net).read_bytes())
    blob = next(layer for layer in weights.layer if layer.name == "conv").blobs[0]
    if change == "shape":
        state.history[1].shape.dim[:] = state.history[1].shape.dim[::-1]
    elif change == "count":
        del state.history[-1]
    elif change == "iteration":
        state.iter = 150
    elif change == "nan history":
        state.history[1].data[0] = np.nan
    elif change == "nan weights":
        blob.data[3] = np.inf
    else:
        del blob.data[-1]
    path.write_bytes(state.SerializeToString())
    Path(state.learned_net).write_bytes(weights.SerializeToString())
    done = train(solver, tmp_path / "run", "--seed", 5)
    assert done.returncode == 0 and done.stdout.count("passing over a snapshot") == 1, done.stderr
    assert "going on from iteration 150" in done.stdout
    assert_equal_weights(tmp_path / "run" / "model.caffemodel", trained / "run" / "model.caffemodel")


def test_stock_caffe_trains_and_resumes_the_same_files(tmp_path, small_set):
    """`caffe train` on the run's own solver: 12 iterations, and 6 + 6 with -snapshot, give the same weights.

    And so does tools/train.py: without dropout the random state is used at the start only.
    """
    for name, steps in (("whole", 12), ("half", 6)):
        solver = write_solver(tmp_path / name, small_set, iterations=steps)
        done = stock_caffe("train", "-solver", solver)
        assert done.returncode == 0, done.stderr[-2000:]
    solver = write_solver(tmp_path / "half", small_set, iterations=12)
    done = stock_caffe("train", "-solver", solver, "-snapshot", tmp_path / "half" / "snapshot_iter_6.solverstate")
    assert done.returncode == 0, done.stderr[-2000:]
    assert weights(tmp_path / "half" / "snapshot_iter_12.caffemodel")["pair_batch"][0] == 12
    assert_equal_weights(tmp_path / "half" / "snapshot_iter_12.caffemodel", tmp_path / "whole" / "snapshot_iter_12.caffemodel")

    solver = write_solver(tmp_path / "ours", small_set, iterations=12)
    assert train(solver, tmp_path / "ours" / "run").returncode == 0
    assert_equal_weights(tmp_path / "ours" / "run" / "model.caffemodel", tmp_path / "whole" / "snapshot_iter_12.caffemodel")
    # The run's folder can be given to the stock binary, its snapshots too.
    run = tmp_path / "ours" / "run"
    done = stock_caffe("train", "-solver", run / "solver.prototxt", "-snapshot", run / "snapshot_iter_12.solverstate")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("method", ["lifted", "contrastive", "triplet"])
def test_stock_caffe_trains_and_resumes_the_committed_demo_solver(tmp_path, method):
    """In a checkout with other images at data/demo, as on a fresh clone once the data is there; the length alone is cut."""
    build_set(draw_images(tmp_path / "images", 8, 8, side=64), tmp_path / "data" / "demo", size=64, batch=128)
    (tmp_path / "prototxt").symlink_to(ROOT / "prototxt")
    ensure_plan(tmp_path / "data" / "demo", "triplets")
    (tmp_path / "runs" / "demo" / f"{method}_64" / "caffe").mkdir(parents=True)
    solver = (ROOT / "prototxt" / "demo" / f"{method}_64" / "solver.prototxt").read_text()
    for length, more in ((2, ()), (4, ("-snapshot", f"runs/demo/{method}_64/caffe/snapshot_iter_2.solverstate"))):
        assert solver.count("max_iter: 3000") == 1
        (tmp_path / "solver.prototxt").write_text(solver.replace("max_iter: 3000", f"max_iter: {length}"))
        done = stock_caffe("train", "-solver", "solver.prototxt", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
    saved = weights(tmp_path / "runs" / "demo" / f"{method}_64" / "caffe" / "snapshot_iter_4.caffemodel")
    assert saved["pair_batch"][0] == 4 and saved["fc_embedding"][0].size == 64 * 6272


def test_a_loss_of_caffe_s_own_that_is_not_finite_stops_before_its_update(tmp_path, small_set):
    """Caffe's ContrastiveLoss gives NaN without a word; ours of the lifted loss would have refused."""
    solver = write_solver(tmp_path, small_set, base_lr=1e15, snapshot=2)
    net = tmp_path / "net.prototxt"
    text = net.read_text()
    net.write_text(text[: text.index('layer { name: "loss"')] + render({"layer": contrastive_loss()}))
    done = train(solver, tmp_path / "run")
    found = re.search(r"training stopped at iteration (\d+), before its update: the loss is (nan|inf)", done.stderr)
    assert done.returncode == 1 and found, done.stderr
    with open(tmp_path / "run" / "log.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == int(found[1]) and all(math.isfinite(float(row["loss"])) and row["active"] == "" for row in rows)
    for path in (tmp_path / "run").glob("*.caffemodel"):
        assert all(np.isfinite(blob).all() for blobs in weights(path).values() for blob in blobs)


def test_the_share_of_active_pairs_knows_the_margin(tmp_path, small_set):
    shares = []
    for margin in ("1.0", "-100.0"):
        solver = write_solver(tmp_path / margin, small_set, iterations=1)
        net = tmp_path / margin / "net.prototxt"
        net.write_text(net.read_text().replace('"margin": 1.0', f'"margin": {margin}'))
        assert train(solver, tmp_path / margin / "run").returncode == 0
        with open(tmp_path / margin / "run" / "log.csv", newline="") as stream:
            shares.append(float(next(csv.DictReader(stream))["active"]))
    assert shares[0] > 0 and shares[1] == 0


def test_stock_caffe_shows_what_a_layer_refuses(tmp_path, small_set):
    """The binary aborts on a Python exception without a word of it, so the layers print it."""
    solver = write_solver(tmp_path / "diverging", small_set, base_lr=1e6)
    done = stock_caffe("train", "-solver", solver)
    assert done.returncode != 0 and "ERROR in LiftedStructuredLossLayer.forward: " in done.stderr
    solver = write_solver(tmp_path / "missing", tmp_path / "nowhere")
    done = stock_caffe("train", "-solver", solver)
    assert done.returncode != 0 and "ERROR in PairBatchData.setup: " in done.stderr and "nowhere/train.lmdb" in done.stderr
    solver = write_solver(tmp_path / "idle", small_set, iterations=3)
    net = tmp_path / "idle/net.prototxt"
    net.write_text(net.read_text().replace("loss_weight: 1", ""))
    done = stock_caffe("train", "-solver", solver)
    assert done.returncode == 0 and done.stderr.count("loss_weight: 1") == 1


def test_features_of_every_image_once(caffe, trained, small_set, tmp_path, monkeypatch):
    deploy = tmp_path / "deploy.prototxt"
    layers = (trained / "net.prototxt").read_text().split("\nlayer {")
    kept = [layer for layer in layers if 'type: "Python"' not in layer and layer.strip()]
    deploy.write_text('layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 14 dim: 14 } } }\n'
                      + "".join("layer {" + layer + "\n" for layer in kept))  # fmt: skip
    for name, file in (("trained", "model"), ("untrained", "snapshot_iter_0")):
        done = tool("tools/extract.py", "--set", small_set, "--net", deploy, "--weights", trained / "run" / f"{file}.caffemodel",
                    "--out", tmp_path / f"{name}.npz")  # fmt: skip
        assert done.returncode == 0, done.stderr
    features, labels, paths, about = load_features(tmp_path / "trained.npz")
    assert features.shape == (30, 8) and features.dtype == np.float32 and len(set(paths.tolist())) == 30
    # The last image, in a batch of its own remainder or not: a plain forward pass of the same net on its centre crop.
    net = caffe.Net(str(deploy), caffe.TEST)
    net.copy_from(str(trained / "run" / "model.caffemodel"))
    image, label = ImageDatabase(f"{small_set}/test.lmdb").read(29)
    net.blobs["data"].data[0] = (image - read_mean(f"{small_set}/mean.binaryproto"))[:, 1:15, 1:15]
    net.forward()
    np.testing.assert_allclose(features[29], net.blobs["fc_embedding"].data[0], rtol=1e-5, atol=1e-4)
    assert labels[29] == label
    assert about["set"]["part"] == "test" and about["training"]["iteration"] == about["training"]["iterations"]
    assert load_features(tmp_path / "untrained.npz").about["training"]["iteration"] == 0
    assert not np.allclose(features, load_features(tmp_path / "untrained.npz")[0], rtol=1e-2)

    # Several batches of images give the rows that one gives: none is left out, twice there, or in another's place.
    monkeypatch.setattr(extract, "BATCH", 7)
    images, mean = ImageDatabase(f"{small_set}/test.lmdb"), read_mean(f"{small_set}/mean.binaryproto")
    model = trained / "run" / "model.caffemodel"
    in_parts, parts_labels = extract.extract_embeddings(images, deploy, model, mean, "fc_embedding")
    np.testing.assert_allclose(in_parts, features, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(parts_labels, labels)

    other = tmp_path / "other.prototxt"
    other.write_text(deploy.read_text().replace("num_output: 8 kernel", "num_output: 9 kernel"))
    renamed = tmp_path / "renamed.prototxt"
    renamed.write_text(deploy.read_text().replace('name: "conv"', 'name: "conv9"'))
    model = trained / "run" / "model.caffemodel"
    for net, file, message in (
        (other, model, "layer 'conv' has weights of shape"),
        (renamed, model, "has no weights for the net's layer 'conv9'"),
        (deploy, tmp_path / "none.caffemodel", "none.caffemodel: no such file"),
        (tmp_path / "none.prototxt", model, "none.prototxt: no such file"),
        (deploy, small_set / "set.json", "is not a NetParameter"),
    ):
        done = tool("tools/extract.py", "--set", small_set, "--net", net, "--weights", file, "--out", tmp_path / "never.npz")
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert not (tmp_path / "never.npz").exists()


def test_a_list_that_is_not_the_lmdb_s(small_set, tmp_path):
    shutil.copytree(small_set, tmp_path / "set")
    listed = tmp_path / "set" / "test.csv"
    lines = listed.read_text().splitlines()
    for text, message in (
        ([lines[0], *lines[:0:-1]], "is not the list of .*test.lmdb: image 0, '.*', is of class"),
        ([lines[0].replace("path", "file"), *lines[1:]], "is no list of a set's images"),
        ([lines[0], "0", *lines[2:]], "is no list of a set's images"),
    ):
        listed.write_text("\n".join(text) + "\n")
        done = tool("tools/extract.py", "--set", tmp_path / "set", "--pixels", 8, "--out", tmp_path / "f.npz")
        assert done.returncode == 1 and re.search(message, done.stderr) and "Traceback" not in done.stderr, done.stderr
        assert not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('type: "Convolution"', 'type: "Convolutoin"', "Unknown layer type: Convolutoin"),
        ('bottom: "scaled"', 'bottom: "none"', "Unknown bottom blob 'none'"),
        ("kernel_size: 3", "kernel_size: 300", "Caffe refuses it"),
        ("num_output: 8 kernel", "kernel", "Caffe refuses it"),
        ('type: "msra"', 'type: "mrsa"', "Unknown filler name: mrsa"),
        ('layer: "LiftedStructuredLossLayer"', 'layer: "Lifted"', "layer 'loss' wants 'Lifted', which the module"),
        ('lr_policy: "fixed"', 'lr_policy: "fix"', "lr_policy 'fix' is none of Caffe's"),
        ('lr_policy: "fixed"', 'lr_policy: "step" gamma: 0.1', "lr_policy 'step' needs stepsize"),
        ("max_iter: 40", "max_iter: 0", "max_iter must be positive"),
        ("max_iter: 40", "max_iter: 40 iter_size: 2", "iter_size 2"),
        ("loss_weight: 1", "", "loss_weight: 1"),
        ("loss_weight: 1", "loss_weight: 0", "loss_weight: 1"),
        ("max_iter: 40", 'max_iter: 40 type: "SDG"', "Unknown solver type: SDG"),
        ("max_iter: 40", 'max_iter: 40 regularization_type: "L3"', "neither L1 nor L2"),
        ("max_iter: 40", 'max_iter: 40 weights: "none.caffemodel"', "Caffe refuses it"),
        ("max_iter: 40", "max_iter: 40 test_iter: 5", "Caffe refuses it"),
    ],
)
def test_what_caffe_would_abort_on_is_said(caffe, tmp_path, small_set, old, new, message):
    if loaded("libcudart"):
        pytest.skip("with CUDA Caffe ends the process itself")
    solver = write_solver(tmp_path, small_set)
    for path in (solver, tmp_path / "net.prototxt"):
        path.write_text(path.read_text().replace(old, new))
    done = train(solver, tmp_path / "run")
    assert done.returncode == 1 and message in done.stderr and "prototxt" in done.stderr, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) < 3
    assert not (tmp_path / "run" / "model.caffemodel").exists()


def test_starting_weights_of_another_net_leave_nothing_behind(trained, tmp_path, small_set):
    """A run.json would refuse the right file afterwards."""
    solver = write_solver(tmp_path, small_set)
    net = NetParameter()
    net.layer.add(name="conv9").blobs.add(shape={"dim": [1]}, data=[1])
    (tmp_path / "other.caffemodel").write_bytes(net.SerializeToString())
    done = train(solver, tmp_path / "run", "--weights", tmp_path / "other.caffemodel")
    assert done.returncode == 1 and "'conv'" in done.stderr and "conv9" in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["fewer", "more", "weightless"])
def test_starting_weights_that_caffe_would_abort_on(trained, tmp_path, small_set, change):
    solver = write_solver(tmp_path, small_set)
    net = NetParameter.FromString((trained / "run" / "model.caffemodel").read_bytes())
    layers = {layer.name: layer for layer in net.layer}
    blob = layers["conv"].blobs[0]
    if change == "fewer":
        del blob.data[-1]
    elif change == "more":
        blob.data.append(1)
    else:
        layers["relu"].blobs.append(blob)
    (tmp_path / "start.caffemodel").write_bytes(net.SerializeToString())
    done = train(solver, tmp_path / "run", "--weights", tmp_path / "start.caffemodel")
    assert done.returncode == 1 and "start.caffemodel: " in done.stderr, done.stderr
    assert re.search("layer '(conv' has not as many weights|relu' has weights of shape)", done.stderr), done.stderr


def test_raw_pixels(small_set, tmp_path):
    done = tool("tools/extract.py", "--set", small_set, "--pixels", 4, "--out", tmp_path / "pixels.npz")
    assert done.returncode == 0 and load_features(tmp_path / "pixels.npz")[0].shape == (30, 48)
    done = tool("tools/extract.py", "--set", small_set, "--pixels", 5, "--out", tmp_path / "never.npz")
    assert done.returncode == 1 and "cannot be averaged to 5x5" in done.stderr


def test_retrieval_sheet(small_set, tmp_path):
    tool("tools/extract.py", "--set", small_set, "--pixels", 4, "--out", tmp_path / "pixels.npz")
    for module in ("caffe", "caffe_pb2"):  # pictures need no Caffe
        (tmp_path / f"{module}.py").write_text("raise ImportError('no Caffe on this machine')")
    done = tool("tools/figures.py", "--set", small_set, "--features", tmp_path / "pixels.npz", "--out", tmp_path / "sheet.png",
                env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_features_of_another_blob(caffe, trained, small_set, tmp_path):
    """After the last layer that writes it, in place too; made again for another blob; layers behind it may lack weights."""
    deploy = tmp_path / "deploy.prototxt"
    layers = (trained / "net.prototxt").read_text().split("\nlayer {")
    layers = [layer for layer in layers if 'type: "Python"' not in layer and layer.strip()]
    deploy.write_text('layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 14 dim: 14 } } }\n'
                      + "".join("layer {" + layer + "\n" for layer in layers))  # fmt: skip
    weights, out = trained / "run" / "model.caffemodel", tmp_path / "features.npz"

    def extract(blob, weights=weights):
        return tool("tools/extract.py", "--set", small_set, "--net", deploy, "--weights", weights, "--out", out, "--blob", blob)

    assert extract("fc_embedding").returncode == 0
    embeddings = load_features(out).features
    assert extract("conv").returncode == 0
    found = load_features(out)
    assert found.features.shape == (len(embeddings), 8 * 12 * 12) and found.about["blob"] == "conv"
    net = caffe.Net(str(deploy), str(weights), caffe.TEST)
    images, mean = ImageDatabase(str(small_set / "test.lmdb")), read_mean(str(small_set / "mean.binaryproto"))
    net.blobs["data"].data[0] = (images.read(3)[0] - mean)[:, 1:15, 1:15]
    net.forward()
    np.testing.assert_allclose(found.features[3], net.blobs["conv"].data.ravel(), rtol=1e-5, atol=1e-5)
    assert (found.features >= 0).all() and (found.features == 0).any()  # rectified

    saved = read_binary(weights, NetParameter())
    for lacking, blob, status in (("fc_embedding", "conv", 0), ("fc_embedding", "fc_embedding", 1), ("conv", "conv", 1)):
        part = NetParameter(layer=[layer for layer in saved.layer if layer.name != lacking])
        (tmp_path / "part.caffemodel").write_bytes(part.SerializeToString())
        done = extract(blob, tmp_path / "part.caffemodel")
        assert done.returncode == status and (not status or f"has no weights for the net's layer '{lacking}'" in done.stderr)
    assert extract("conv", tmp_path / "part.caffemodel").returncode == 1


def test_features_of_another_split_than_was_trained_on_are_refused(trained, small_set, tmp_path):
    """The set was made again: its test classes may be those of the training."""
    other = tmp_path / "set"
    shutil.copytree(small_set, other)
    solver = write_solver(tmp_path / "solver", other, iterations=1)
    assert train(solver, tmp_path / "run").returncode == 0
    deploy = tmp_path / "deploy.prototxt"
    deploy.write_text('layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 14 dim: 14 } } }')
    record = json.loads((other / "set.json").read_text())
    (other / "set.json").write_text(json.dumps({**record, "content": "0" * 64}))
    done = tool("tools/extract.py", "--set", other, "--net", deploy, "--weights", tmp_path / "run/model.caffemodel",
                "--out", tmp_path / "never.npz")  # fmt: skip
    assert done.returncode == 1 and "was trained on other images" in done.stderr
    assert not (tmp_path / "never.npz").exists()


@pytest.mark.parametrize("base_lr", [1e2, 1e6])  # the loss becomes too large for float32; an embedding becomes NaN
def test_a_diverging_training_stops_with_words_and_keeps_the_last_snapshot(tmp_path, small_set, base_lr):
    solver = write_solver(tmp_path, small_set, base_lr=base_lr)
    done = train(solver, tmp_path / "run")
    assert done.returncode == 1 and "training stopped at iteration" in done.stderr and "base_lr" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "snapshot_iter_0.solverstate").exists() and not (tmp_path / "run" / "model.caffemodel").exists()


def test_what_is_missing_is_named_with_the_next_command(tmp_path, small_set):
    solver = write_solver(tmp_path, tmp_path / "nowhere")
    done = train(solver, tmp_path / "run")
    assert done.returncode == 1
    assert "nowhere/train.lmdb: not there" in done.stderr and "python data_prep/build_set.py` makes it" in done.stderr
    assert not (tmp_path / "run").exists()
    done = train(tmp_path / "none.prototxt", tmp_path / "run")
    assert done.returncode == 1 and "none.prototxt: no such file" in done.stderr
    solver = write_solver(tmp_path, small_set)
    net = tmp_path / "net.prototxt"
    text = net.read_text()
    for old, new, message in (
        ('"lmdb"', '"lmbd"', "unknown key 'lmbd'"),
        ('{"crop"', '["crop"', "is not JSON"),
        ('top: "loss"', 'top: "lost"', "has no blob 'loss'; a net trained here has fc_embedding, label, loss"),
    ):
        net.write_text(text.replace(old, new))
        done = train(solver, tmp_path / "run")
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    for text, message in (("net: 3", "is not a SolverParameter"), ("base_lr: 1", "solver.prototxt: names no net")):
        solver.write_text(text)
        done = train(solver, tmp_path / "run")
        assert done.returncode == 1 and message in done.stderr


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b'{"settings": 3}',
                                     b'{"settings": {}, "versions": {}}', None,
                                     b'{"settings": {"data": 5}, "versions": {}, "command": []}'])  # fmt: skip
def test_a_run_whose_record_is_damaged(tmp_path, content):
    from tools.train import prepare

    record = tmp_path / "run.json"
    record.mkdir() if content is None else record.write_bytes(content)
    with pytest.raises(ValueError, match=r"run.json: is damaged, or not what .* another \(RUN=name\), or remove the folder"):
        prepare(tmp_path, SolverParameter(), NetParameter(), {})


def test_a_log_that_is_damaged(tmp_path):
    from tools.train import Log

    path = tmp_path / "log.csv"
    Log(path, 5).stream.close()
    head = path.read_text().strip()
    row = "3,1.5,,,,,,\n"
    path.write_text(f"{head}\n{row}4,1.")  # the disk was full
    log = Log(path, 5)
    log.write({"iteration": 4, "loss": 1.25})
    log.stream.close()
    assert path.read_text().splitlines() == [head, row.strip(), "4,1.25,,,,,,"]
    for damaged in (
        b"",
        b"\xff\xfe\0\0",
        b"loss\n1\n",
        *(f"{head}\n{row}{end}\n".encode() for end in ("4,1", "a,1,,,,,,", "4,\0,,,,,,")),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"log.csv: is damaged .*; remove it, and the same command goes on"):
            Log(path, 5)


def test_states_of_other_names_are_passed_over(tmp_path):
    from tools.train import Snapshots

    for name in ("3", "20", "abc", "", "1.5"):
        (tmp_path / f"snapshot_iter_{name}.solverstate").touch()
    found = Snapshots(tmp_path, None, 10).states()
    assert [path.name for path in found] == ["snapshot_iter_20.solverstate", "snapshot_iter_3.solverstate"]


def test_states_that_are_none_are_passed_over(tmp_path, capsys):
    from tools.train import Snapshots

    (tmp_path / "snapshot_iter_30.solverstate").write_bytes(os.urandom(500))
    (tmp_path / "snapshot_iter_20.solverstate").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "snapshot_iter_10.solverstate").mkdir()
    Snapshots(tmp_path, SimpleNamespace(net=SimpleNamespace(params={}, layer_dict={})), 10).restore()  # from none
    assert capsys.readouterr().out.count("passing over a snapshot: ") == 3


def test_two_trainings_in_one_folder(tmp_path, small_set):
    solver = write_solver(tmp_path, small_set, iterations=100000)
    command = [sys.executable, str(ROOT / "tools/train.py"), "--solver", solver, "--run", tmp_path / "run"]
    process = start(command)
    try:
        wait_for(tmp_path / "run" / "snapshot_iter_0.solverstate", process)
        done = train(solver, tmp_path / "run")
        assert done.returncode == 1 and "another process is training in this folder" in done.stderr
    finally:
        process.kill()
        process.communicate()


def test_a_layer_whose_module_is_missing_shows_the_real_error(tmp_path, small_set):
    solver = write_solver(tmp_path, small_set)
    net = tmp_path / "net.prototxt"
    net.write_text(net.read_text().replace("lifted_structured_loss_layer", "no_such_layer"))
    done = train(solver, tmp_path / "run")
    assert done.returncode == 1 and "No module named 'no_such_layer'" in done.stderr and "Traceback" not in done.stderr


def test_own_folder_end_to_end(tmp_path):
    """The commands of the README's section on a folder of one's own: the demo's net on another set, three iterations."""
    draw_images(tmp_path / "photos", 12, 8, side=40)
    done = tool("data_prep/build_set.py", "--images", tmp_path / "photos", "--out", tmp_path / "shoes", "--size", 64)
    assert done.returncode == 0, done.stderr
    run, nets = tmp_path / "run", ROOT / "prototxt" / "demo" / "lifted_64"
    done = train(nets / "solver.prototxt", run, "--set", tmp_path / "shoes", "--iterations", 3)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/shoes/pairs.npz" in (run / "train_val.prototxt").read_text()
    extract = ("--set", tmp_path / "shoes", "--net", nets / "deploy.prototxt", "--weights", run / "model.caffemodel")
    done = tool("tools/extract.py", *extract, "--out", run / "features.npz")
    assert done.returncode == 0 and load_features(run / "features.npz")[0].shape == (48, 64)
    done = tool("tools/extract.py", *extract, "--out", run / "never.npz", "--blob", "fc")
    assert done.returncode == 1 and "has no blob 'fc' (--blob); its last ones are pool1, conv2" in done.stderr


def test_which_snapshots_stay(caffe, small_set, tmp_path, monkeypatch):
    """Those of the solver's interval and the untrained net; of others, saved because time went by, the last two."""
    from tools import train as module

    monkeypatch.chdir(ROOT)
    solver = caffe.get_solver(str(write_solver(tmp_path, small_set, snapshot_prefix=f'"{tmp_path}/run/.writing/snapshot"')))
    (tmp_path / "run").mkdir()
    snapshots = module.Snapshots(tmp_path / "run", solver, interval=4)

    def kept(suffix):
        return sorted(int(path.stem.rsplit("_", 1)[1]) for path in (tmp_path / "run").glob(f"snapshot_iter_*.{suffix}"))

    snapshots.save()
    for _ in range(11):
        solver.step(1)
        assert snapshots.due() == (solver.iter in (4, 8))
        snapshots.save()
        assert kept("solverstate")[-1] == solver.iter
    assert kept("solverstate") == kept("caffemodel") == [0, 4, 8, 10, 11]
    snapshots = module.Snapshots(tmp_path / "run", solver, interval=4, minutes=0, keep=1)
    assert snapshots.due()
    snapshots.save()
    assert kept("solverstate") == kept("caffemodel") == [0, 4, 8, 11]
    # Of later iterations, damaged or left by another: what is saved now is not deleted on their account.
    for later in (50, 60, 70):
        (tmp_path / f"run/snapshot_iter_{later}.solverstate").write_bytes(b"damaged")
    solver.step(1)
    snapshots.save()
    assert 12 in kept("solverstate")
    snapshots.restore()
    assert solver.iter == 12 and kept("solverstate") == kept("caffemodel") == [0, 4, 8, 11, 12]
    assert (tmp_path / "run/snapshot_iter_60.solverstate.damaged").read_bytes() == b"damaged"


def test_a_full_disk_keeps_what_is_there_and_has_a_status_of_its_own(tmp_path, small_set):
    """Caffe itself would abort the process. The disk is a small one in memory; its mount is gone with the process."""
    solver = write_solver(tmp_path, small_set, iterations=40, snapshot=1)
    (tmp_path / "disk").mkdir()
    script = f"""
mount -t tmpfs -o size=1500k tmpfs {tmp_path}/disk || exit 99
{sys.executable} tools/train.py --solver {solver} --run {tmp_path}/disk/run; echo "status $?"
ls {tmp_path}/disk/run
mount -o remount,size=50m {tmp_path}/disk
{sys.executable} tools/train.py --solver {solver} --run {tmp_path}/disk/run; echo "status $?"
cp {tmp_path}/disk/run/model.caffemodel {tmp_path}/full.caffemodel
"""
    done = subprocess.run(["unshare", "--mount", "bash", "-c", script], cwd=ROOT, text=True, capture_output=True, timeout=120)
    if done.returncode and ("status" not in done.stdout):
        pytest.skip(f"no disk in memory can be mounted here: {done.stderr.strip()}")
    first, second = re.findall(r"status (\d+)", done.stdout)
    assert (first, second) == ("74", "0"), done.stdout + done.stderr
    assert re.search(r"train: .*/disk/run: [\d,]+ bytes are needed and [\d,]+ are free on this disk. The snapshots before are kept",
                     done.stderr)  # fmt: skip
    assert "snapshot_iter_0.solverstate" in done.stdout and "going on from iteration" in done.stdout
    assert train(solver, tmp_path / "run").returncode == 0
    assert_equal_weights(tmp_path / "full.caffemodel", tmp_path / "run/model.caffemodel")


def test_a_snapshot_that_caffe_cannot_write(tmp_path, small_set):
    """As on a disk that fails where there was room: here no file may be longer. Caffe aborts; the training ends in words."""
    solver = write_solver(tmp_path, small_set, iterations=40, snapshot=20)
    run = tmp_path / "limited"
    command = f"ulimit -f 20; exec {sys.executable} tools/train.py --solver {solver} --run {run}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 74 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"train: .*/limited/.writing: Caffe cannot write a snapshot there .Check failed: proto.SerializeToOstream",
                     done.stderr) and "stack trace" not in done.stderr, done.stderr  # fmt: skip
    assert not list(run.glob("snapshot*")) and train(solver, run).returncode == train(solver, tmp_path / "run").returncode == 0
    assert_equal_weights(run / "model.caffemodel", tmp_path / "run/model.caffemodel")


def test_weights_that_are_not_finite_are_never_saved(caffe, small_set, tmp_path):
    from tools import train as module

    solver = caffe.get_solver(str(write_solver(tmp_path, small_set, snapshot_prefix=f'"{tmp_path}/run/.writing/snapshot"')))
    (tmp_path / "run").mkdir()
    solver.net.params["conv"][1].data[3] = np.nan
    with pytest.raises(ValueError, match="weights of layer 'conv' are not finite at iteration 0"):
        module.Snapshots(tmp_path / "run", solver, interval=4).save()
    assert not list((tmp_path / "run").iterdir())


def test_starting_weights_from_here_begin_at_the_first_batch(trained, small_set, tmp_path):
    """They hold the counter of the batches that they saw; and a run does not go on with other weights, data or plan."""
    weights = trained / "run" / "model.caffemodel"
    solver = write_solver(tmp_path, small_set, iterations=3)
    done = train(solver, tmp_path / "run", "--weights", weights)
    assert done.returncode == 0, done.stderr
    first = {
        layer.name: layer.blobs for layer in read_binary(tmp_path / "run" / "snapshot_iter_0.caffemodel", NetParameter()).layer
    }
    whole = {layer.name: layer.blobs for layer in read_binary(weights, NetParameter()).layer}
    assert whole["pair_batch"][0].data[0] > 0 == first["pair_batch"][0].data[0]
    assert first["conv"][0].data == whole["conv"][0].data and first["fc_embedding"][0].data == whole["fc_embedding"][0].data
    for other in ((), ("--weights", trained / "run" / "snapshot_iter_0.caffemodel")):
        done = train(solver, tmp_path / "run", *other)
        assert done.returncode == 1 and "was begun with other settings" in done.stderr and "    weights: {" in done.stderr
    copy = tmp_path / "set"
    shutil.copytree(small_set, copy)
    solver = write_solver(tmp_path / "other", copy, iterations=3)
    assert train(solver, tmp_path / "run2").returncode == 0
    for name, change in (("pairs_m16.npz", reversed_plan), ("set.json", other_content)):
        kept = (copy / name).read_bytes()
        change(copy / name)
        done = train(solver, tmp_path / "run2")
        assert done.returncode == 1 and "was begun with other settings" in done.stderr, name
        assert "    data: " in done.stderr, name
        (copy / name).write_bytes(kept)
    assert train(solver, tmp_path / "run2").returncode == 0


def reversed_plan(path):
    plan = dict(np.load(path))
    np.savez(path, **{**plan, "batches": plan["batches"][::-1]})


def other_content(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "content": "another"}))


def test_each_iteration_has_a_random_state_of_its_own():
    from tools.train import seed_of

    states = {seed_of(seed, iteration) for seed in range(5) for iteration in range(200)}
    assert len(states) == 1000 and seed_of(1, 7) == seed_of(1, 7)


def test_dropout_differs_from_iteration_to_iteration(tmp_path, small_set):
    """One batch, whole images, no learning: the losses differ by what is dropped alone. Without dropout they are one number."""
    plan = dict(np.load(small_set / "pairs_m16.npz"))
    np.savez(tmp_path / "pairs.npz", **{**plan, "batches": plan["batches"][:1]})
    for dropout, different in ((0.5, 4), (0.0, 1)):
        folder = tmp_path / str(dropout)
        solver = write_solver(folder, small_set, dropout=dropout, iterations=4, base_lr=0)
        net = (folder / "net.prototxt").read_text().replace('"crop": 14', '"crop": 16').replace('"mirror": true', '"mirror": false')
        (folder / "net.prototxt").write_text(net.replace(f"{small_set}/pairs_m16.npz", f"{tmp_path}/pairs.npz"))
        assert train(solver, folder / "run").returncode == 0
        with open(folder / "run/log.csv", newline="") as stream:
            assert len({row["loss"] for row in csv.DictReader(stream)}) == different


def test_a_copy_that_is_killed_is_no_word_of_caffe_s():
    """As the system does where memory runs out: the work is then done without a copy, and no full disk is reported."""
    assert in_copy(lambda: os.kill(os.getpid(), signal.SIGKILL)) == (False, None)
    written, refused = in_copy(lambda: os.kill(os.getpid(), signal.SIGXCPU))
    assert written and "signal" in refused and in_copy(lambda: None) == (True, None)


def test_which_snapshots_are_scored(tmp_path):
    from tools.score import stages

    (tmp_path / "run.json").write_text(json.dumps({"settings": {"iterations": 40000}, "versions": {}, "command": []}))
    for number in (0, 1000, 10000, 20000, 30000, 39871, 40000):
        (tmp_path / f"snapshot_iter_{number}.caffemodel").touch()
    found = stages(tmp_path)
    assert [suffix for suffix, _ in found] == ["_iter_10000", "_iter_20000", "_iter_30000", ""]
    assert [path.name for _, path in found][-2:] == ["snapshot_iter_30000.caffemodel", "model.caffemodel"]
