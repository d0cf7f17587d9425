"""The layers inside a real caffe.Net, and their settings."""

import json

import numpy as np
import pytest
from conftest import write_solver

from layer_support import read_param_str
from lifted_structured_loss import lifted_structured_loss
from prototxt.methods.contrastive import loss as contrastive_loss
from prototxt.text import render
from triplet_loss import triplet_loss

LOSS_NET = """
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 12 dim: 5 {dims} }} }} }}
layer {{ name: "y" type: "Input" top: "y" input_param {{ shape {{ dim: {labels} }} }} }}
layer {{ name: "loss" type: "Python" bottom: "x" bottom: "y" top: "loss" loss_weight: {weight}
  python_param {{ module: "lifted_structured_loss_layer" layer: "LiftedStructuredLossLayer" param_str: '{param}' }} }}
force_backward: true
"""


def loss_net(caffe, folder, weight=1, param='{"margin": 1.0}', dims="", labels=12):
    path = folder / "loss.prototxt"
    path.write_text(LOSS_NET.format(weight=weight, param=param, dims=dims, labels=labels))
    return caffe.Net(str(path), caffe.TRAIN)


@pytest.mark.parametrize("weight", [1, 3, 0.25])
@pytest.mark.parametrize("dims", ["", "dim: 1 dim: 1"])
def test_loss_layer_honours_loss_weight(caffe, tmp_path, weight, dims):
    net = loss_net(caffe, tmp_path, weight, dims=dims)
    x = np.random.default_rng(0).normal(size=net.blobs["x"].data.shape).astype(np.float32)
    y = np.arange(12) // 2
    net.blobs["x"].data[...], net.blobs["y"].data[...] = x, y
    assert net.blobs["loss"].data.shape == ()
    net.forward()
    net.blobs["y"].diff[...] = 7  # what an earlier pass left
    net.backward()
    loss, gradient = lifted_structured_loss(x, y)
    assert float(net.blobs["loss"].data) == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(net.blobs["x"].diff, weight * gradient, rtol=1e-6, atol=1e-9)
    assert np.abs(gradient).max() > 1e-3
    assert not net.blobs["y"].diff.any()


def test_loss_layer_takes_its_margin(caffe, tmp_path):
    net = loss_net(caffe, tmp_path, param='{"margin": 2.5}')
    x = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    net.blobs["x"].data[...], net.blobs["y"].data[...] = x, np.arange(12) // 2
    net.forward()
    assert float(net.blobs["loss"].data) == pytest.approx(float(lifted_structured_loss(x, np.arange(12) // 2, 2.5)[0]), rel=1e-6)


def test_loss_layer_refuses_nan_and_says_which_row(caffe, tmp_path):
    net = loss_net(caffe, tmp_path)
    net.blobs["y"].data[...] = np.arange(12) // 2
    net.blobs["x"].data[7, 0] = np.nan
    with pytest.raises(ValueError, match="not finite .* rows: 7"):
        net.forward()


def test_loss_layer_refuses_another_number_of_labels(caffe, tmp_path):
    with pytest.raises(ValueError, match="12 embeddings but 10 labels"):
        loss_net(caffe, tmp_path, labels=10)
    path = tmp_path / "loss.prototxt"
    path.write_text(
        LOSS_NET.format(weight=1, param="", dims="", labels=12).replace('bottom: "x" bottom: "y"', 'bottom: "y" bottom: "x"')
    )
    with pytest.raises(ValueError, match="swapped"):
        caffe.Net(str(path), caffe.TRAIN)


@pytest.mark.parametrize("weight, scaled", [("1", False), ("0", False), ("0", True)])
def test_a_loss_that_trains_nothing_says_so(caffe, tmp_path, capfd, weight, scaled):
    """Without a loss_weight Caffe passes no gradient on; a weight on a later layer is one."""
    loss_net(caffe, tmp_path)
    text = (tmp_path / "loss.prototxt").read_text().replace("loss_weight: 1", f"loss_weight: {weight}" if weight != "0" else "")
    if scaled:
        text += 'layer { name: "half" type: "Power" bottom: "loss" top: "half" loss_weight: 1 power_param { scale: 0.5 } }'
    (tmp_path / "loss.prototxt").write_text(text)
    for phase in (caffe.TEST, caffe.TRAIN):
        net = caffe.Net(str(tmp_path / "loss.prototxt"), phase)
        net.blobs["x"].data[...] = np.random.default_rng(0).normal(size=(12, 5))
        net.blobs["y"].data[...] = np.arange(12) // 2
        for _ in range(4):
            net.forward()
            net.backward()
    assert capfd.readouterr().err.count("loss_weight: 1") == (weight == "0" and not scaled)


@pytest.mark.parametrize(
    "labels, said", [(np.zeros(12), "one class"), (np.arange(12), "class of its own"), (np.arange(12) // 2, None)]
)
def test_batches_that_teach_nothing_are_said_once(caffe, tmp_path, capfd, labels, said):
    net = loss_net(caffe, tmp_path)
    net.blobs["x"].data[...] = np.random.default_rng(0).normal(size=(12, 5))
    net.blobs["y"].data[...] = labels
    for _ in range(25):
        net.forward()
        net.backward()
    found = capfd.readouterr().err
    assert found.count("WARNING") == (said is not None) and (said or "") in found


@pytest.mark.parametrize(
    "param, message",
    [
        ('{"margni": 1}', "unknown key 'margni' in param_str; the known ones are margin"),
        ("margin=1", "not JSON"),
        ("[1]", "must be a JSON object"),
        ('{"margin": "1"}', "must be a float, not '1'"),
        ('{"margin": NaN}', "must be a float, not nan"),
        ('{"margin": true}', "must be a float, not True"),
        ('{"margin": 1, "margin": 5}', "the key 'margin' is there twice"),
        (f'{{"margin": {10**400}}}', "must be a float, not 10000"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_loss_layer_refuses_a_wrong_param_str(caffe, tmp_path, param, message):
    with pytest.raises(ValueError, match=f"LiftedStructuredLossLayer: .*{message}"):
        loss_net(caffe, tmp_path, param=param)


def test_param_str_defaults_and_required_keys():
    assert read_param_str("", "Layer", margin=1.0) == {"margin": 1.0}
    assert read_param_str('{"margin": 2}', "Layer", margin=1.0, seed=1) == {"margin": 2.0, "seed": 1}
    with pytest.raises(ValueError, match="Layer: param_str lacks 'lmdb'; its keys are lmdb, seed"):
        read_param_str("{}", "Layer", lmdb=str, seed=1)
    with pytest.raises(ValueError, match=r"Layer: 'mean_file' in param_str must name a file, not 'a.x00b'"):
        read_param_str(r'{"mean_file": "a\u0000b"}', "Layer", mean_file="")


DATA_NET = """
layer {{ name: "pair_batch" type: "Python" top: "data" top: "label" param {{ lr_mult: 0 decay_mult: 0 }}
  python_param {{ module: "pair_batch_data_layer" layer: "PairBatchData" param_str: '{param}' }} }}
"""


def data_net(caffe, folder, small_set, phase=None, **changed):
    param = {"crop": 14, "lmdb": f"{small_set}/train.lmdb", "mean_file": f"{small_set}/mean.binaryproto",
             "plan": f"{small_set}/pairs_m16.npz", "seed": 3, **changed}  # fmt: skip
    path = folder / "data.prototxt"
    path.write_text(DATA_NET.format(param=json.dumps(param)))
    return caffe.Net(str(path), caffe.TRAIN if phase is None else phase)


def test_data_layer_keeps_its_counter_in_its_blob(caffe, tmp_path, small_set):
    net = data_net(caffe, tmp_path, small_set)
    batches = []
    for number in range(5):
        assert net.params["pair_batch"][0].data[0] == number
        net.forward()
        batches.append((net.blobs["data"].data.copy(), net.blobs["label"].data.copy()))
    net.params["pair_batch"][0].data[...] = 2
    net.forward()
    np.testing.assert_array_equal(net.blobs["data"].data, batches[2][0])
    np.testing.assert_array_equal(net.blobs["label"].data, batches[2][1])
    assert not np.array_equal(batches[2][0], batches[3][0])


def test_tests_during_training_leave_the_counter_alone(caffe, tmp_path, small_set):
    """A data layer of the same name in the TEST phase, BVLC's own convention, has the same blobs: Caffe shares them by name."""
    solvers = []
    for name, fields in (("without", {}), ("with", {"test_iter": 3, "test_interval": 4})):
        path = write_solver(tmp_path / name, small_set, dropout=0.5, **fields)
        net = tmp_path / name / "net.prototxt"
        training, rest = net.read_text().split('layer { name: "scale"')
        both = "".join(
            training.replace('type: "Python"', f'type: "Python" include {{ phase: {phase} }}', 1) for phase in ("TRAIN", "TEST")
        )
        net.write_text(both + 'layer { name: "scale"' + rest)
        solvers.append(caffe.get_solver(str(path)))
        for iteration in range(12):
            caffe.set_random_seed(iteration)
            solvers[-1].step(1)
    assert [solver.net.params["pair_batch"][0].data[0] for solver in solvers] == [12, 12]
    tested = solvers[1].test_nets[0]
    assert tested.params["pair_batch"][0].data[0] == 12 and tested.blobs["label"].data.any()
    for name, blobs in solvers[0].net.params.items():
        for blob, other in zip(blobs, solvers[1].net.params[name]):
            assert np.array_equal(blob.data, other.data), name


def test_a_counter_that_is_trained_is_refused(caffe, tmp_path, small_set):
    path = write_solver(tmp_path, small_set, base_lr=0.01, weight_decay=0.05)
    (tmp_path / "net.prototxt").write_text(
        (tmp_path / "net.prototxt").read_text().replace("param { lr_mult: 0 decay_mult: 0 }", "")
    )
    solver = caffe.get_solver(str(path))
    with pytest.raises(ValueError, match="lr_mult: 0 decay_mult: 0"):
        solver.step(3)


def test_data_layer_counter_survives_save_and_load(caffe, tmp_path, small_set):
    net = data_net(caffe, tmp_path, small_set)
    for _ in range(3):
        net.forward()
    net.save(str(tmp_path / "saved.caffemodel"))
    net.forward()
    other = data_net(caffe, tmp_path, small_set)
    other.copy_from(str(tmp_path / "saved.caffemodel"))
    other.forward()
    np.testing.assert_array_equal(other.blobs["data"].data, net.blobs["data"].data)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"crop": 17}, "holds images of 16x16, so crop must be 1 to 16, not 17"),
        ({"lmdb": "/nowhere.lmdb"}, "/nowhere.lmdb: cannot be opened as an LMDB"),
        ({"plan": "/nowhere.npz"}, "/nowhere.npz: cannot be read as a batch plan"),
        ({"mean_file": "/nowhere.binaryproto"}, "/nowhere.binaryproto: cannot be read as a mean file"),
        ({"seed": -1}, "seed must not be negative, not -1"),
        ({"colour": True}, "PairBatchData: unknown key 'colour'"),
        ({"crop": "14"}, "'crop' in param_str must be a int"),
        ({"lmdb": ""}, "PairBatchData: 'lmdb' in param_str must name a file, not ''"),
    ],
)
def test_data_layer_refuses_wrong_settings(caffe, tmp_path, small_set, changed, message):
    with pytest.raises(ValueError, match=message):
        data_net(caffe, tmp_path, small_set, **changed)


# --- triplet -----------------------------------------------------------------------------------------------------------

TRIPLET_NET = LOSS_NET.replace("lifted_structured_loss_layer", "triplet_loss_layer").replace("LiftedStructured", "Triplet")


@pytest.mark.parametrize("weight, margin", [(1, 1.0), (3, 0.2)])
def test_triplet_layer(caffe, tmp_path, weight, margin):
    (tmp_path / "loss.prototxt").write_text(
        TRIPLET_NET.format(weight=weight, param=json.dumps({"margin": margin}), dims="dim: 1 dim: 1", labels=12)
    )
    net = caffe.Net(str(tmp_path / "loss.prototxt"), caffe.TRAIN)
    x = np.random.default_rng(0).normal(size=(12, 5, 1, 1)).astype(np.float32)
    y = np.array([0, 1, 2, 3, 0, 1, 2, 3, 1, 2, 3, 0])
    net.blobs["x"].data[...], net.blobs["y"].data[...] = x, y
    net.forward()
    net.backward()
    loss, gradient = triplet_loss(x, y, margin)
    assert float(net.blobs["loss"].data) == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(net.blobs["x"].diff, weight * gradient, rtol=1e-6, atol=1e-9)
    assert np.abs(gradient).max() > 1e-3
    net.blobs["y"].data[...] = np.arange(12) // 2
    with pytest.raises(ValueError, match="are no triplets"):
        net.forward()
    with pytest.raises(ValueError, match="TripletLossLayer: unknown key 'margni'"):
        (tmp_path / "wrong.prototxt").write_text(TRIPLET_NET.format(weight=1, param='{"margni": 1}', dims="", labels=12))
        caffe.Net(str(tmp_path / "wrong.prototxt"), caffe.TRAIN)


# --- contrastive: stock layers -----------------------------------------------------------------------------------------

INPUTS = [
    {"name": "x", "type": "Input", "top": "x", "input_param": {"shape": {"dim": [20, 6]}}},
    {"name": "fc_embedding", "type": "Scale", "bottom": "x", "top": "fc_embedding"},  # by 1; weights make Caffe go back to it
    {"name": "label", "type": "Input", "top": "label", "input_param": {"shape": {"dim": [20]}}},
]


def contrastive_net(caffe, folder, margin=1.0):
    (folder / "net.prototxt").write_text(render({"layer": [*INPUTS, *contrastive_loss(margin)]}))
    return caffe.Net(str(folder / "net.prototxt"), caffe.TRAIN)


def equation_1(x, y, margin):
    """Loss and gradient of the paper's equation 1, pair by pair; and how many pairs of each of three kinds there are."""
    x, m = x.astype(np.longdouble), len(x)
    loss, gradient, kinds = np.longdouble(0), np.zeros_like(x), [0, 0, 0]
    for i in range(m // 2):
        j = i + m // 2
        distance = np.sqrt(sum((x[i] - x[j]) ** 2))
        if y[i] == y[j]:
            kinds[0] += 1
            loss += distance**2 / m
            pull = 2 * (x[i] - x[j]) / m
        elif distance < margin:
            kinds[1] += 1
            loss += (margin - distance) ** 2 / m
            pull = -2 * (margin - distance) * (x[i] - x[j]) / distance / m
        else:
            kinds[2] += 1
            continue
        gradient[i] += pull
        gradient[j] -= pull
    return float(loss), gradient.astype(np.float64), kinds


@pytest.mark.parametrize("margin, spread", [(1.0, 0.25), (0.4, 0.1), (2.0, 0.6)])
def test_contrastive_net_is_equation_1(caffe, tmp_path, margin, spread):
    """Its value, and its gradient up to Caffe's D + 1e-4 in the place of D."""
    net = contrastive_net(caffe, tmp_path, margin)
    random = np.random.default_rng(1)
    x = (random.normal(size=(20, 6)) * spread).astype(np.float32)
    y = np.concatenate([np.arange(10), np.arange(10)]) * 1000 + 7
    y[13:] += random.permutation(np.arange(1, 8))  # class ids that differ by 1 are different too
    net.blobs["x"].data[...], net.blobs["label"].data[...] = x, y
    net.forward()
    net.backward()
    loss, gradient, kinds = equation_1(x, y, margin)
    assert min(kinds) > 0
    assert float(net.blobs["loss"].data) == pytest.approx(loss, rel=1e-6)
    found = net.blobs["fc_embedding"].diff
    distances = np.linalg.norm(x[:10] - x[10:], axis=1)
    shrunk = np.where((y[:10] == y[10:]), 1, distances / (distances + 1e-4))
    np.testing.assert_allclose(found, gradient * np.tile(shrunk, 2)[:, None], rtol=1e-5, atol=1e-8)
    assert np.abs(found - gradient).max() <= 1e-4 / distances[y[:10] != y[10:]].min() * np.abs(gradient).max()
    assert (np.abs(found - gradient) > 1e-6 * np.abs(gradient)).any()  # the difference that README tells of is there


def test_contrastive_net_at_a_distance_of_zero(caffe, tmp_path):
    net = contrastive_net(caffe, tmp_path)
    net.blobs["x"].data[...] = 3.25
    net.blobs["label"].data[...] = np.arange(20)
    net.forward()
    net.backward()
    assert float(net.blobs["loss"].data) == pytest.approx(0.5)  # (1 - 0)^2 / 2 for each of the pairs
    assert not net.blobs["fc_embedding"].diff.any()
