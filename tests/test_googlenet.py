"""The paper's nets against the published GoogLeNet, BVLC's own file, and real Caffe; the solvers against their sources."""

import functools
import itertools
import json
import tarfile

import lmdb
import numpy as np
import pytest
from caffe_pb2 import BlobProto, Datum, NetParameter, SolverParameter
from conftest import ROOT
from google.protobuf import text_format

from prototxt.generate import files, is_committed

FILES = files()  # test_prototxt.py: the committed ones are these
NETS = ROOT / "prototxt"
SETS = ("cub", "cars196", "sop")
SIZES = (64, 128, 256, 512)
METHODS = ("lifted", "contrastive", "triplet")
EVERY = list(itertools.product(SETS, METHODS, SIZES))

# Szegedy et al. 2015, table 1: output side and depth; #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
PUBLISHED = {
    "3a": (28, 256, 64, 96, 128, 16, 32, 32),
    "3b": (28, 480, 128, 128, 192, 32, 96, 64),
    "4a": (14, 512, 192, 96, 208, 16, 48, 64),
    "4b": (14, 512, 160, 112, 224, 24, 64, 64),
    "4c": (14, 512, 128, 128, 256, 24, 64, 64),
    "4d": (14, 528, 112, 144, 288, 32, 64, 64),
    "4e": (14, 832, 256, 160, 320, 32, 128, 128),
    "5a": (7, 832, 256, 160, 320, 32, 128, 128),
    "5b": (7, 1024, 384, 192, 384, 48, 128, 128),
}


def published_convolutions():
    """Name -> (outputs, inputs, kernel, side of the output at an input of 227)."""
    found = {
        "conv1/7x7_s2": (64, 3, 7, 114),
        "conv2/3x3_reduce": (64, 64, 1, 57),
        "conv2/3x3": (192, 64, 3, 57),
    }
    inputs = 192
    for module, (side, depth, conv1, reduce3, conv3, reduce5, conv5, projection) in PUBLISHED.items():
        found[f"inception_{module}/1x1"] = (conv1, inputs, 1, side)
        found[f"inception_{module}/3x3_reduce"] = (reduce3, inputs, 1, side)
        found[f"inception_{module}/3x3"] = (conv3, reduce3, 3, side)
        found[f"inception_{module}/5x5_reduce"] = (reduce5, inputs, 1, side)
        found[f"inception_{module}/5x5"] = (conv5, reduce5, 5, side)
        found[f"inception_{module}/pool_proj"] = (projection, inputs, 1, side)
        inputs = depth
    return found


def bvlc_names():
    """BVLC's layer names in their order, without data and loss1/..., loss2/..., loss3/..."""
    names = ["conv1/7x7_s2", "conv1/relu_7x7", "pool1/3x3_s2", "pool1/norm1", "conv2/3x3_reduce", "conv2/relu_3x3_reduce",
             "conv2/3x3", "conv2/relu_3x3", "conv2/norm2", "pool2/3x3_s2"]  # fmt: skip
    for module in PUBLISHED:
        names += [
            f"inception_{module}/{layer}"
            for layer in ("1x1", "relu_1x1", "3x3_reduce", "relu_3x3_reduce", "3x3", "relu_3x3", "5x5_reduce", "relu_5x5_reduce",
                          "5x5", "relu_5x5", "pool", "pool_proj", "relu_pool_proj", "output")
        ]  # fmt: skip
        names += {"3b": ["pool3/3x3_s2"], "4e": ["pool4/3x3_s2"], "5b": ["pool5/7x7_s1", "pool5/drop_7x7_s1"]}.get(module, [])
    return names


@functools.cache
def read(path):
    kind = SolverParameter if "solver" in path else NetParameter
    return text_format.Parse(FILES[path], kind())


def trunk(path):
    return [layer for layer in read(path).layer if layer.name in bvlc_names()]


# --- the trunk -------------------------------------------------------------------------------------------------------


def check_convolutions(path):
    """The published numbers in the file itself: on a misfit of blobs Caffe ends the process, and the tests with it."""
    convolutions = {layer.name: layer.convolution_param for layer in read(path).layer if layer.type == "Convolution"}
    assert convolutions.keys() == published_convolutions().keys()
    for name, (outputs, _, kernel, _) in published_convolutions().items():
        settings = convolutions[name]
        assert (settings.num_output, settings.kernel_size) == (outputs, [kernel]), name
        assert (settings.pad or [0], settings.stride or [1]) == ([kernel // 2], [2 if name.endswith("_s2") else 1]), name


def load(caffe, path, phase):
    check_convolutions(path)
    return caffe.Net(str(NETS / path), phase)


@pytest.fixture(scope="module")
def deploy(caffe):
    return load(caffe, "cub/lifted_64/deploy.prototxt", caffe.TEST)


def test_every_convolution_has_the_published_size(deploy):
    expected = published_convolutions()
    for _, depth, conv1, _, conv3, _, conv5, projection in PUBLISHED.values():
        assert conv1 + conv3 + conv5 + projection == depth  # the table agrees with itself
    built = {}
    for name, layer in deploy.layer_dict.items():
        if layer.type == "Convolution":
            weights, bias = deploy.params[name]
            outputs, inputs, height, width = weights.data.shape
            assert height == width and bias.data.shape == (outputs,) and deploy.blobs[name].data.shape[1] == outputs
            assert deploy.blobs[name].data.shape[2] == deploy.blobs[name].data.shape[3]
            built[name] = (outputs, inputs, height, deploy.blobs[name].data.shape[3])
    assert built == expected


def test_parameters_and_multiply_adds(deploy):
    """Both without fc_embedding: its 64 x 1024 + 64 parameters and 65,536 multiply-adds come on top."""
    shapes = published_convolutions().values()
    parameters = sum(outputs * inputs * kernel**2 + outputs for outputs, inputs, kernel, _ in shapes)
    multiply_adds = sum(outputs * inputs * kernel**2 * side**2 for outputs, inputs, kernel, side in shapes)
    assert parameters == 5_973_552
    assert multiply_adds == 1_598_860_032 and round(multiply_adds / 1e9, 3) == 1.599
    built = {name: [blob.data for blob in blobs] for name, blobs in deploy.params.items()}
    embedding = built.pop("fc_embedding")
    assert [blob.shape for blob in embedding] == [(64, 1024), (64,)]
    assert sum(blob.size for blobs in built.values() for blob in blobs) == parameters
    assert sum(weights.size * deploy.blobs[name].data[0, 0].size for name, (weights, _) in built.items()) == multiply_adds


def test_blob_shapes(deploy):
    for name, channels, side in (
        ("data", 3, 227),
        ("conv1/7x7_s2", 64, 114),
        ("pool1/3x3_s2", 64, 57),
        ("pool1/norm1", 64, 57),
        ("conv2/3x3", 192, 57),
        ("conv2/norm2", 192, 57),
        ("pool2/3x3_s2", 192, 28),
        ("inception_3a/pool", 192, 28),
        ("inception_3a/output", 256, 28),
        ("inception_3b/output", 480, 28),
        ("pool3/3x3_s2", 480, 14),
        ("inception_4a/output", 512, 14),
        ("inception_4b/output", 512, 14),
        ("inception_4c/output", 512, 14),
        ("inception_4d/output", 528, 14),
        ("inception_4e/output", 832, 14),
        ("pool4/3x3_s2", 832, 7),
        ("inception_5a/output", 832, 7),
        ("inception_5b/output", 1024, 7),
        ("pool5/7x7_s1", 1024, 1),
    ):
        assert deploy.blobs[name].data.shape == (1, channels, side, side), name


def test_layers_and_their_names_are_bvlcs():
    layers = trunk("cub/lifted_64/train_val.prototxt")
    assert [layer.name for layer in layers] == bvlc_names()
    by_name = {layer.name: layer for layer in layers}
    for layer in layers:
        name = layer.name
        if "/relu_" in name:
            convolution = name.replace("relu_7x7", "7x7_s2").replace("relu_", "")
            assert layer.type == "ReLU" and layer.bottom == layer.top == [convolution]
        elif name == "pool5/drop_7x7_s1":
            assert layer.type == "Dropout" and layer.bottom == layer.top == ["pool5/7x7_s1"]
            assert layer.dropout_param.dropout_ratio == pytest.approx(0.4)
        else:
            assert layer.top == [name]
        if name in published_convolutions():
            fillers = layer.convolution_param.weight_filler, layer.convolution_param.bias_filler
            assert [filler.type for filler in fillers] == ["xavier", "constant"]
            assert fillers[1].value == pytest.approx(0.2)
        if layer.type == "Pooling":
            average = name == "pool5/7x7_s1"
            stride = 2 if name.endswith("_s2") else 1
            settings = layer.pooling_param
            assert settings.pool == (settings.AVE if average else settings.MAX)
            assert (settings.kernel_size, settings.stride, settings.pad) == (7 if average else 3, stride, name.endswith("/pool"))
        if layer.type == "LRN":
            settings = layer.lrn_param
            assert (settings.local_size, settings.alpha, settings.beta) == (5, pytest.approx(1e-4), pytest.approx(0.75))
            assert settings.norm_region == settings.ACROSS_CHANNELS
    before = "pool2/3x3_s2"
    for module in PUBLISHED:
        here = f"inception_{module}"
        for branch in ("1x1", "3x3_reduce", "5x5_reduce", "pool"):
            assert by_name[f"{here}/{branch}"].bottom == [before]
        # the order is that of the channels which the next layer's weights were trained on
        assert by_name[f"{here}/output"].bottom == [f"{here}/{branch}" for branch in ("1x1", "3x3", "5x5", "pool_proj")]
        before = {"3b": "pool3/3x3_s2", "4e": "pool4/3x3_s2"}.get(module, f"{here}/output")


def bvlc_file(name):
    """One of BVLC's files of this net, from the source package that make env fetched and keeps."""
    archives = list((ROOT / ".caffe" / "downloads").glob("caffe_*.orig.tar.gz"))
    if not archives:
        pytest.skip("no Caffe source package in .caffe/downloads (make env fetches it)")
    with tarfile.open(archives[0]) as archive:
        for member in archive:
            if member.name.removeprefix("./").endswith(f"models/bvlc_googlenet/{name}"):
                return archive.extractfile(member).read().decode()
    raise AssertionError(f"{archives[0]}: holds no {name} of bvlc_googlenet")


def test_trunk_equals_bvlcs_own_file():
    bvlc = text_format.Parse(bvlc_file("train_val.prototxt"), NetParameter())
    kept = [layer for layer in bvlc.layer if layer.name != "data" and not layer.name.startswith(("loss1/", "loss2/", "loss3/"))]
    for layer, ours in itertools.zip_longest(kept, trunk("cub/lifted_64/train_val.prototxt")):
        assert ours == layer
    # Caffe would load a layer of BVLC's into one of ours that had its name
    assert not {layer.name for layer in bvlc.layer} & {"pair_batch", "fc_embedding", "loss"}


# --- every set and size ----------------------------------------------------------------------------------------------


def test_files_of_the_paper():
    expected = {f"{s}/{method}_{size}/{name}.prototxt" for s, method, size in EVERY for name in ("train_val", "deploy", "solver")}
    expected |= {f"cub/{method}_{size}/solver_authors.prototxt" for method in METHODS for size in SIZES}
    expected |= {
        f"{s}/{method}_64/{name}_paired.prototxt" for s in SETS for method in METHODS[:2] for name in ("train_val", "solver")
    }
    assert {path for path in FILES if not path.startswith("demo/")} == expected
    committed = [path for path in expected if is_committed(path)]
    assert len(committed) == 46 + 26 and all("lifted" in path or "_64/" in path for path in committed)


def check_training_net(path, data_layer, method, size):
    """Everything but the data layer's own settings; returns that layer."""
    layers = list(read(path).layer)
    own = {"contrastive": CONTRASTIVE}.get(method, ["loss"])
    assert [layer.name for layer in layers] == [data_layer, *bvlc_names(), "fc_embedding", *own]
    data, *others = layers
    embedding, loss = layers[-len(own) - 1], layers[-1]
    assert others[: -len(own) - 1] == trunk("cub/lifted_64/train_val.prototxt")
    for layer in layers:
        expected = {"Convolution": [(1, 1), (2, 0)], "InnerProduct": [(10, 1), (20, 0)]}.get(layer.type, [])
        expected = [(0, 0)] if layer.name == "pair_batch" else expected
        assert [(multipliers.lr_mult, multipliers.decay_mult) for multipliers in layer.param] == expected, layer.name
        assert not layer.include and not layer.exclude
    assert data.top == ["data", "label"]
    check_embedding(embedding, size)
    assert loss.top == ["loss"]
    if method == "contrastive":
        assert loss.type == "ContrastiveLoss" and loss.bottom == ["embedding_left", "embedding_right", "similar"]
        assert loss.contrastive_loss_param.margin == 1 and not loss.contrastive_loss_param.legacy_version
    else:
        assert loss.bottom == ["fc_embedding", "label"] and loss.loss_weight == [1]
        names = {
            "lifted": "lifted_structured_loss_layer LiftedStructuredLossLayer",
            "triplet": "triplet_loss_layer TripletLossLayer",
        }
        assert f"{loss.python_param.module} {loss.python_param.layer}" == names[method]
        assert json.loads(loss.python_param.param_str) == {"margin": 1.0}
    return data


CONTRASTIVE = ["embedding_halves", "label_halves", "label_difference", "label_distance", "different", "similar", "loss"]


def check_embedding(layer, size):
    settings = layer.inner_product_param
    assert layer.bottom == ["pool5/7x7_s1"] and settings.num_output == size
    assert (settings.weight_filler.type, settings.bias_filler.type, settings.bias_filler.value) == ("xavier", "constant", 0)


@pytest.mark.parametrize("data_set, method, size", EVERY)
def test_training_net(data_set, method, size):
    data = check_training_net(f"{data_set}/{method}_{size}/train_val.prototxt", "pair_batch", method, size)
    assert (data.python_param.module, data.python_param.layer) == ("pair_batch_data_layer", "PairBatchData")
    assert json.loads(data.python_param.param_str) == {
        "lmdb": f"data/{data_set}/train.lmdb",
        "plan": f"data/{data_set}/{'triplets' if method == 'triplet' else 'pairs'}.npz",
        "mean_file": f"data/{data_set}/mean.binaryproto",
        "crop": 227,
        "mirror": True,
        "seed": 1,
    }


@pytest.mark.parametrize("data_set, method", list(itertools.product(SETS, METHODS[:2])))
def test_training_net_on_the_authors_layout(data_set, method):
    data = check_training_net(f"{data_set}/{method}_64/train_val_paired.prototxt", "data", method, 64)
    assert data.type == "Data"
    assert (data.data_param.source, data.data_param.batch_size) == (f"data/{data_set}/train_paired.lmdb", 128)
    assert data.data_param.backend == data.data_param.LMDB
    assert (data.transform_param.crop_size, data.transform_param.mirror) == (227, True)
    assert data.transform_param.mean_file == f"data/{data_set}/mean.binaryproto"


@pytest.mark.parametrize("data_set, method, size", EVERY)
def test_deploy_net(caffe, data_set, method, size):
    data, *layers, embedding = read(f"{data_set}/{method}_{size}/deploy.prototxt").layer
    assert (data.name, data.type, data.top) == ("data", "Input", ["data"])
    assert [list(shape.dim) for shape in data.input_param.shape] == [[1, 3, 227, 227]]
    assert layers == trunk("cub/lifted_64/train_val.prototxt")
    training = read(f"{data_set}/{method}_{size}/train_val.prototxt").layer
    assert embedding == next(layer for layer in training if layer.name == "fc_embedding")
    check_embedding(embedding, size)
    if method != "lifted":
        return  # the same net under another name
    net = load(caffe, f"{data_set}/lifted_{size}/deploy.prototxt", caffe.TEST)
    assert net.outputs == ["fc_embedding"] and net.blobs["fc_embedding"].data.shape == (1, size)
    assert [blob.data.shape for blob in net.params["fc_embedding"]] == [(size, 1024), (size,)]


def expected_solver(data_set, method, size, variant=""):
    values = {
        "net": f"prototxt/{data_set}/{method}_{size}/train_val.prototxt",
        "base_lr": {"cub": 1e-6, "cars196": 1e-4, "sop": 1e-4}[data_set],
        "lr_policy": "step",
        "gamma": 0.96,
        "stepsize": 32000,
        "momentum": 0.9,
        "weight_decay": 2e-4,
        "max_iter": 40000 if variant == "_authors" else 20000,
        "display": 5,
        "snapshot": 10000,
        "snapshot_prefix": f"runs/{data_set}/{method}_{size}/caffe/snapshot{variant}",
        "random_seed": 1,
        "solver_mode": SolverParameter.CPU,
    }
    if variant == "_paired":
        values["net"] = f"prototxt/{data_set}/{method}_{size}/train_val_paired.prototxt"
    return SolverParameter(**values)


@pytest.mark.parametrize("data_set, method, size", EVERY)
def test_solver(data_set, method, size):
    """The baselines have the lifted loss's solver: none of theirs was published."""
    assert read(f"{data_set}/{method}_{size}/solver.prototxt") == expected_solver(data_set, method, size)


@pytest.mark.parametrize("method, size", list(itertools.product(METHODS, SIZES)))
def test_solver_of_the_authors_for_cub(method, size):
    assert read(f"cub/{method}_{size}/solver_authors.prototxt") == expected_solver("cub", method, size, "_authors")


@pytest.mark.parametrize("data_set, method", list(itertools.product(SETS, METHODS[:2])))
def test_solver_on_the_authors_layout(data_set, method):
    assert read(f"{data_set}/{method}_64/solver_paired.prototxt") == expected_solver(data_set, method, 64, "_paired")


# --- in real Caffe, on four images -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the committed prototxt/ and a data/cub of four images of 256 pixels, one batch."""
    home = tmp_path_factory.mktemp("project")
    (home / "prototxt").symlink_to(NETS)
    (home / "runs/cub/lifted_64/caffe").mkdir(parents=True)
    data = home / "data/cub"
    data.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 256, 256), np.uint8)
    for name in ("train.lmdb", "train_paired.lmdb"):
        with lmdb.open(str(data / name), map_size=1 << 23) as environment, environment.begin(write=True) as transaction:
            for number, image in enumerate(pixels):
                datum = Datum(channels=3, height=256, width=256, data=image.tobytes(), label=number // 2)
                transaction.put(b"%08d" % number, datum.SerializeToString())
    np.savez(data / "pairs.npz", batches=np.array([[0, 2, 1, 3]], np.int32), images=4)
    mean = BlobProto(num=1, channels=3, height=256, width=256, data=[110.0] * pixels[0].size)
    (data / "mean.binaryproto").write_bytes(mean.SerializeToString())
    return home


def test_real_caffe_trains_from_the_weights_of_bvlc(caffe, project, monkeypatch):
    """The committed solver and net as they are: BVLC's layers load by name, and a step moves every layer."""
    monkeypatch.chdir(project)
    (project / "bvlc.prototxt").write_text(bvlc_file("deploy.prototxt").replace("dim: 10 dim: 3", "dim: 1 dim: 3"))
    bvlc = caffe.Net("bvlc.prototxt", caffe.TEST)
    bvlc.save("bvlc.caffemodel")

    check_convolutions("cub/lifted_64/train_val.prototxt")
    solver = caffe.get_solver("prototxt/cub/lifted_64/solver.prototxt")
    new = [blob.data.copy() for blob in solver.net.params["fc_embedding"]]
    loaded = set(published_convolutions())
    assert set(solver.net.params) == {"pair_batch", "fc_embedding", *loaded}
    assert set(bvlc.params) == {"loss3/classifier", *loaded}
    for name in loaded:  # before Caffe compares them, and aborts
        assert [blob.data.shape for blob in solver.net.params[name]] == [blob.data.shape for blob in bvlc.params[name]], name
    solver.net.copy_from("bvlc.caffemodel")
    for name in loaded:
        for blob, theirs in zip(solver.net.params[name], bvlc.params[name]):
            np.testing.assert_array_equal(blob.data, theirs.data)
    for blob, before in zip(solver.net.params["fc_embedding"], new):
        np.testing.assert_array_equal(blob.data, before)
    assert solver.net.params["pair_batch"][0].data[0] == 0

    solver.step(1)
    assert solver.net.blobs["data"].data.shape == (4, 3, 227, 227)
    assert list(solver.net.blobs["label"].data) == [0, 1, 0, 1]
    assert np.isfinite(solver.net.blobs["loss"].data) and solver.net.blobs["loss"].data > 0
    assert solver.net.params["pair_batch"][0].data[0] == 1
    for name in loaded:
        # The update; that of a bias, which is not decayed, is its gradient's alone.
        assert np.abs(solver.net.params[name][1].diff).max() > 0, name


def test_real_caffe_reads_the_authors_layout(caffe, project, monkeypatch):
    monkeypatch.chdir(project)
    net = load(caffe, "cub/lifted_64/train_val_paired.prototxt", caffe.TRAIN)
    net.forward(end="data")
    assert net.blobs["data"].data.shape == (128, 3, 227, 227)
    np.testing.assert_array_equal(net.blobs["label"].data, np.tile([0, 0, 1, 1], 32))
    assert abs(net.blobs["data"].data.mean() - (127.5 - 110)) < 1
    assert net.blobs["fc_embedding"].data.shape == (128, 64)
