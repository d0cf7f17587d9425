"""Watching a training: what stops it is explained with its batch, what looks wrong is warned about once."""

import re
import shutil
from types import SimpleNamespace

import lmdb
import numpy as np
import pytest
from caffe_pb2 import TEST, TRAIN, NetParameter
from conftest import tool, write_solver

from pair_batch import ImageDatabase
from prototxt.methods.contrastive import loss as contrastive_loss
from prototxt.text import render
from tools.watch import Watch


def blob(values):
    return SimpleNamespace(data=np.array(values, np.float32), diff=np.array(values, np.float32))


def watch(tmp_path, embeddings=((0, 0), (3, 4), (3, 4.5)), loss=1.0):
    blobs = {"loss": blob(loss), "fc_embedding": blob(embeddings), "label": blob(range(len(embeddings)))}
    net = SimpleNamespace(blobs=blobs, params={"conv": [blob([1, 2]), blob([3])], "fc": [blob([4])]})
    solver = SimpleNamespace(net=net, iter=0, lr=0.25, add_callback=lambda begun, ready: setattr(net, "ready", ready))
    return Watch(solver, NetParameter(), tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_loss_and_gradients_that_are_not_finite(tmp_path, value):
    found = watch(tmp_path)
    found.net.ready()  # the callback that Caffe calls before the update
    found.net.params["conv"][1].diff[0] = value
    with pytest.raises(ValueError, match="the gradient of layer 'conv' is not finite"):
        found.net.ready()
    found.net.blobs["loss"].data[...] = value
    with pytest.raises(ValueError, match="the loss is -?(nan|inf)"):
        found.net.ready()


def test_the_data_layer_is_the_one_that_trains(tmp_path):
    """A net for both phases has one of each, of one name."""
    net = NetParameter()
    for phase, param in ((TEST, "test.lmdb"), (TRAIN, "train.lmdb")):
        layer = net.layer.add(name="pair_batch", include=[{"phase": phase}])
        layer.python_param.layer, layer.python_param.param_str = "PairBatchData", param
    solver = SimpleNamespace(net=None, iter=0, add_callback=lambda begun, ready: None)
    assert Watch(solver, net, tmp_path).data_layer.python_param.param_str == "train.lmdb"


def test_gradients_are_looked_at_as_often_as_asked_and_the_loss_always(tmp_path):
    found = watch(tmp_path)
    found.every, found.solver.iter = 5, 4
    found.net.params["fc"][0].diff[0] = np.nan
    found.net.ready()
    found.solver.iter = 5
    with pytest.raises(ValueError, match="gradient"):
        found.net.ready()
    found.solver.iter, found.net.blobs["loss"].data[...] = 6, np.nan
    with pytest.raises(ValueError, match="loss"):
        found.net.ready()


def test_what_is_said_of_the_iteration(tmp_path):
    found = watch(tmp_path, [(0, 0), (3, 4), (np.nan, 1), (3, 4.5)])
    found.solver.iter = 17
    text = str(found.stopped(ValueError("why")))
    assert text.startswith("training stopped at iteration 17, before its update: why\nsmallest distance 0.5; learning rate 0.25")
    with np.load(tmp_path / "stopped_after_17.npz", allow_pickle=False) as batch:
        np.testing.assert_array_equal(batch["embeddings"], found.net.blobs["fc_embedding"].data)
        np.testing.assert_array_equal(batch["labels"], [0, 1, 2, 3])


def test_in_a_real_training_the_batch_is_named_and_kept(tmp_path, small_set):
    solver = write_solver(tmp_path, small_set, base_lr=1e15, lr_policy='"step"', stepsize=1000, gamma=0.1)
    net = tmp_path / "net.prototxt"
    text = net.read_text()
    net.write_text(text[: text.index('layer { name: "loss"')] + render({"layer": contrastive_loss()}))
    done = tool("tools/train.py", "--solver", solver, "--run", tmp_path / "run")
    said = r"batch (\d+) of (\S+): images (\S+), (\S+), .*learning rate 1e\+15; the batch is in (\S+)"
    found = re.search(rf"stopped at iteration (\d+).*\n{said}", done.stderr)
    assert done.returncode == 1 and found, done.stderr
    iteration, number, plan, first, second, path = found.groups()
    assert int(number) == int(iteration)  # each iteration takes one batch, counted from 0
    keys = ImageDatabase(str(small_set / "train.lmdb")).keys
    with np.load(path, allow_pickle=False) as batch, np.load(plan) as planned:
        expected = [keys[place].decode() for place in planned["batches"][int(number) % len(planned["batches"])]]
        assert batch["keys"].tolist() == expected and [first, second] == expected[:2]
        assert batch["data"].shape == (16, 3, 14, 14) and np.isfinite(batch["data"]).all() and batch["data"].any()


def test_a_damaged_image_is_all_that_is_said(tmp_path, small_set):
    data = shutil.copytree(small_set, tmp_path / "set")
    with lmdb.open(str(data / "train.lmdb"), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for number in range(1, 30):  # the first is looked at before the training
            transaction.put(b"%08d" % number, b"\xff\xff\xff")
    done = tool("tools/train.py", "--solver", write_solver(tmp_path, data), "--run", tmp_path / "run")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = r"train: training stopped at iteration 0: \S+train.lmdb: key '\d+' holds no Datum of Caffe \(.*\)\nThe last snapshot"
    assert re.search(said + " is kept. Make the set again, and the same command goes on.\n$", done.stderr), done.stderr
    assert not list((tmp_path / "run").glob("stopped*"))


def test_a_collapsed_embedding_is_warned_about_once(tmp_path):
    found = watch(tmp_path, np.full((5, 3), 7) + np.eye(5, 3) * 1e-4)
    (warning,) = found.look(1.0, 1000)
    assert "collapsed" in warning and "WARNING at iteration 0" in warning
    assert found.look(0.9, 1000) == []
    assert watch(tmp_path, np.eye(5, 3) * 2e-3).look(1.0, 1000) == []


def test_a_loss_that_falls_no_more_is_warned_about_once(tmp_path):
    found, said = watch(tmp_path), []
    for iteration, loss in ((100, 3.0), (200, 2.0), (300, 2.5), (440, 2.0), (450, 2.1), (460, 1.0), (700, 1.0), (720, 1.5)):
        found.solver.iter = iteration
        said += [(iteration, text) for text in found.look(loss, 1000)]
    ((iteration, text),) = said
    assert iteration == 450 and "has not fallen below 2" in text
