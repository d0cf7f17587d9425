"""The ONNX export against real Caffe, as onnxruntime and OpenCV run it: the project's nets, and small nets of each layer."""

import math
import re

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from caffe_pb2 import NetParameter
from conftest import ROOT, tool
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.files import sha256
from tools import export_onnx
from tools.export_onnx import export

NETS = ROOT / "prototxt"
BOUND = 1e-4  # of the largest feature


def images(batch, shape, seed=0):
    """(batch, *shape) float32 in -128..128: areas of one colour and noise, so that features of two images differ."""
    random = np.random.default_rng(seed)
    channels, height, width = shape
    areas = random.uniform(-100, 100, (batch, channels, 4, 4)).repeat(-(-height // 4), 2).repeat(-(-width // 4), 3)
    return (areas[..., :height, :width] + random.uniform(-28, 28, (batch, *shape))).astype(np.float32)


def of_caffe(net, data):
    """(n, c): what Caffe computes."""
    net.blobs["data"].reshape(*data.shape)
    net.blobs["data"].data[...] = data
    net.forward()
    return net.blobs["fc_embedding"].data.reshape(len(data), -1).copy()


def of_onnxruntime(path, data):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["fc_embedding"], {"data": data})[0]


def of_opencv(path, data):
    net = cv2.dnn.readNetFromONNX(str(path))
    net.setInput(data)
    return net.forward("fc_embedding")


def check_equal(found, expected):
    assert found.shape == expected.shape and np.isfinite(expected).all()
    assert np.abs(expected).max() > 0
    assert np.abs(found - expected).max() <= BOUND * np.abs(expected).max()


def check_export(net, deploy, weights, out, opencv=True):
    """Export, and compare at batch 1 and 3."""
    export(deploy, weights, out, check=False)
    for batch in (1, 3):
        data = images(batch, net.blobs["data"].data.shape[1:], seed=batch)
        expected = of_caffe(net, data)
        check_equal(of_onnxruntime(out, data), expected)
        if opencv:
            check_equal(of_opencv(out, data), expected)


# --- the project's nets ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(caffe, tmp_path_factory):
    """{name: (net, deploy, weights)}: the project's nets, with weights under which unlike images have unlike features."""
    home, found = tmp_path_factory.mktemp("filled"), {}
    for name in ("demo", "cub"):
        deploy = NETS / name / "lifted_64" / "deploy.prototxt"
        # As they are, the fillers give twenty untrained layers features that hardly depend on the image: the biases' and the
        # rectified mean's share grows with each. So msra's, each filter without its mean, and small biases.
        text = re.sub(r'type: "xavier"|type: "gaussian"\s+std: \S+', 'type: "msra"', deploy.read_text())
        (home / f"{name}.prototxt").write_text(text)
        caffe.set_random_seed(1)
        net = caffe.Net(str(home / f"{name}.prototxt"), caffe.TEST)
        random = np.random.default_rng(1)
        for filters, biases in net.params.values():
            filters.data[...] -= filters.data.mean(axis=tuple(range(1, filters.data.ndim)), keepdims=True)
            biases.data[...] = random.normal(0, 0.2, biases.data.shape)
        net.save(str(home / f"{name}.caffemodel"))
        found[name] = (net, deploy, home / f"{name}.caffemodel")
    return found


@pytest.mark.parametrize("name", ["demo", "cub"])
def test_whole_nets(filled, tmp_path, name):
    net, deploy, weights = filled[name]
    features = of_caffe(net, images(4, net.blobs["data"].data.shape[1:]))  # (4, 64)
    assert features.shape == (4, 64)
    # neither dead, nor the same whatever the image
    assert (features.std(axis=0) > 0.05 * np.abs(features).max()).mean() > 0.5
    check_export(net, deploy, weights, tmp_path / "model.onnx")


def test_what_the_file_says(filled, tmp_path):
    _, deploy, weights = filled["demo"]
    assert export(deploy, weights, tmp_path / "model.onnx") <= BOUND
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 11)] and model.ir_version == 6
    assert model.producer_name == "lifted_structured_embedding tools/export_onnx.py"
    ends = [*model.graph.input, *model.graph.output]
    axes = [[axis.dim_param or axis.dim_value for axis in end.type.tensor_type.shape.dim] for end in ends]
    assert [end.name for end in ends] == ["data", "fc_embedding"] and axes == [["n", 3, 56, 56], ["n", 64]]
    notes = {each.key: each.value for each in model.metadata_props}
    assert notes["weights_sha256"] == sha256(weights) and notes["crop"] == "56x56"
    assert "BGR" in notes["input"] and "mean.binaryproto" in notes["mean"]
    before = (tmp_path / "model.onnx").read_bytes()
    export(deploy, weights, tmp_path / "model.onnx", check=False)
    assert (tmp_path / "model.onnx").read_bytes() == before


def test_the_command(filled, tmp_path):
    _, deploy, weights = filled["demo"]
    arguments = ("--net", deploy, "--weights", weights, "--out", tmp_path / "model.onnx")
    done = tool("tools/export_onnx.py", *arguments)
    assert done.returncode == 0, done.stderr
    measured = re.search(r"features at most (\S+) from Caffe's", done.stdout)
    assert float(measured[1]) <= BOUND
    assert "not compared with Caffe" in tool("tools/export_onnx.py", *arguments, "--no-check").stdout
    done = tool("tools/export_onnx.py", *arguments[:-1], tmp_path / "other.onnx", "--net", NETS / "none.prototxt")
    assert done.returncode == 1 and "no such file" in done.stderr and "Traceback" not in done.stderr


# --- small nets of each layer ------------------------------------------------------------------------------------------

DATA = 'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: {} dim: {} dim: {} }} }} }}\n'


def layer(kind, settings="", name="fc_embedding", bottom="data", top=None):
    bottoms = " ".join(f'bottom: "{each}"' for each in bottom.split())
    return f'layer {{ name: "{name}" type: "{kind}" {bottoms} top: "{top or name}" {settings} }}\n'


def small_net(caffe, folder, *layers, shape=(3, 9, 11)):
    """A net of `layers` and weights drawn for it: (net, deploy, weights)."""
    deploy, weights = folder / "deploy.prototxt", folder / "model.caffemodel"
    deploy.write_text(DATA.format(*shape) + "".join(layers))
    net = caffe.Net(str(deploy), caffe.TEST)
    random = np.random.default_rng(0)
    for parameters in net.params.values():
        for blob in parameters:
            blob.data[...] = random.normal(0, 0.3, blob.data.shape)
    net.save(str(weights))
    return net, deploy, weights


def convolution(settings, **names):
    return layer("Convolution", f"convolution_param {{ {settings} }}", **names)


def conv_1x1(name):
    return convolution("num_output: 4 kernel_size: 1", name=name)


SMALL = {
    "convolution": [convolution("num_output: 5 kernel_size: 3")],
    "convolution, even kernel, floor": [convolution("num_output: 5 kernel_size: 4 stride: 3 pad: 1")],
    "convolution, _h and _w": [convolution("num_output: 5 kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 1 pad_h: 2 pad_w: 0")],
    "convolution, one of pad_h and pad_w": [convolution("num_output: 5 kernel_size: 3 pad_w: 2")],
    "convolution, two numbers": [convolution("num_output: 4 kernel_size: 2 kernel_size: 3 stride: 1 stride: 2 pad: 0 pad: 1")],
    "convolution, dilated": [convolution("num_output: 4 kernel_size: 3 dilation: 2 pad: 2 stride: 2")],
    "convolution, dilated by two numbers": [convolution("num_output: 4 kernel_size: 3 dilation: 1 dilation: 3")],
    "convolution, groups, no bias": [convolution("num_output: 6 kernel_size: 3 group: 3 bias_term: false")],
    "relu in place, then read twice": [
        conv_1x1("a"),
        layer("ReLU", name="relu", bottom="a", top="a"),
        convolution("num_output: 4 kernel_size: 1", name="b", bottom="a"),
        layer("Concat", bottom="a b a"),
    ],
    "relu in place on the data": [layer("ReLU", name="relu", top="data"), layer("Dropout")],
    "relu in place on the output": [
        conv_1x1("fc_embedding"),
        layer("ReLU", name="relu", bottom="fc_embedding", top="fc_embedding"),
    ],
    "relu, leaky": [layer("ReLU", "relu_param { negative_slope: 0.2 }")],
    "dropout": [conv_1x1("a"), layer("Dropout", "dropout_param { dropout_ratio: 0.4 }", bottom="a")],
    "power: scale": [layer("Power", "power_param { scale: 0.015625 }")],
    "power: all three": [
        layer("Power", "power_param { power: 2 }", name="square"),
        layer("Power", "power_param { scale: 0.5 shift: 3 power: -0.75 }", bottom="square"),
    ],
    "power: nothing": [layer("Power")],
    "eltwise sum": [conv_1x1("a"), conv_1x1("b"), conv_1x1("c"), layer("Eltwise", bottom="a b c")],
    "eltwise sum with coefficients": [
        conv_1x1("a"),
        conv_1x1("b"),
        layer("Eltwise", "eltwise_param { coeff: 1 coeff: -0.5 }", bottom="a b"),
    ],
    "eltwise product": [
        conv_1x1("a"),
        conv_1x1("b"),
        conv_1x1("c"),
        layer("Eltwise", "eltwise_param { operation: PROD }", bottom="a b c"),
    ],
    "eltwise maximum": [
        conv_1x1("a"),
        conv_1x1("b"),
        conv_1x1("c"),
        layer("Eltwise", "eltwise_param { operation: MAX }", bottom="a b c"),
    ],
    "concat of channels": [conv_1x1("a"), layer("Concat", bottom="a data")],
    "concat of rows": [layer("Concat", "concat_param { axis: -2 }", bottom="data data")],
    "concat of columns, 2014's field": [layer("Concat", "concat_param { concat_dim: 3 }", bottom="data data")],
    "inner product": [layer("InnerProduct", "inner_product_param { num_output: 7 }")],
    "inner product, transposed, no bias": [
        layer("InnerProduct", "inner_product_param { num_output: 7 transpose: true bias_term: false }")
    ],
    "two inner products": [
        layer("InnerProduct", "inner_product_param { num_output: 7 }", name="a"),
        layer("InnerProduct", "inner_product_param { num_output: 5 }", bottom="a"),
    ],
    "lrn, Caffe's defaults": [layer("LRN")],
    "lrn, the paper's": [layer("LRN", "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")],
    "lrn, all set": [conv_1x1("a"), layer("LRN", "lrn_param { local_size: 3 alpha: 0.02 beta: 0.6 k: 2 }", bottom="a")],
    "lrn of one channel": [layer("LRN", "lrn_param { local_size: 1 alpha: 0.5 }")],
    "lrn of more channels than there are": [layer("LRN", "lrn_param { local_size: 9 alpha: 0.5 }")],
    "global pooling": [layer("Pooling", "pooling_param { pool: AVE global_pooling: true }")],
    "global pooling, largest": [layer("Pooling", "pooling_param { pool: MAX global_pooling: true }")],
}


@pytest.mark.parametrize("layers", SMALL.values(), ids=SMALL.keys())
def test_small_nets(caffe, tmp_path, layers):
    check_export(*small_net(caffe, tmp_path, *layers), tmp_path / "model.onnx")


# --- pooling -----------------------------------------------------------------------------------------------------------


def pooling(kind, kernel, stride, pad, rounded="CEIL"):
    fields = [f"{name}_{side}: {value}" for name, values in (("kernel", kernel), ("stride", stride), ("pad", pad))
              for side, value in zip("hw", values)]  # fmt: skip
    return layer("Pooling", f"pooling_param {{ pool: {kind} round_mode: {rounded} {' '.join(fields)} }}")


# image, kernel, stride, pad -> windows along height and width, counted by hand
POOLS = {
    "fits exactly": ((7, 9), (3, 3), (2, 2), (0, 0), (3, 4)),
    "last window hangs over": ((8, 6), (3, 3), (2, 2), (0, 0), (4, 3)),
    "hangs over the padded border": ((6, 8), (3, 3), (2, 2), (1, 1), (4, 5)),
    "last window has one row": ((6, 6), (2, 2), (2, 2), (1, 1), (4, 4)),
    "last window in the padding, dropped": ((5, 5), (2, 2), (2, 2), (1, 1), (3, 3)),
    "dropped along one side": ((6, 7), (3, 3), (4, 4), (2, 2), (2, 3)),
    "dropped without padding of its own": ((5, 5), (1, 2), (3, 2), (0, 1), (2, 3)),
    "larger than the image": ((2, 3), (3, 4), (2, 2), (0, 0), (1, 1)),
    "stride above the kernel": ((7, 8), (1, 2), (3, 3), (0, 0), (3, 3)),
    "wide": ((5, 13), (2, 5), (1, 3), (0, 2), (4, 5)),
    "GoogLeNet's": ((28, 28), (3, 3), (1, 1), (1, 1), (28, 28)),
}


@pytest.mark.parametrize("kind", ["MAX", "AVE"])
@pytest.mark.parametrize("image, kernel, stride, pad, windows", POOLS.values(), ids=POOLS.keys())
def test_pooling(caffe, tmp_path, kind, image, kernel, stride, pad, windows):
    net, *files = small_net(caffe, tmp_path, pooling(kind, kernel, stride, pad), shape=(2, *image))
    assert net.blobs["fc_embedding"].data.shape[2:] == windows
    check_export(net, *files, tmp_path / "model.onnx")


sizes = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    image=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=sizes,
    stride=sizes,
    rounded=st.sampled_from(["CEIL", "FLOOR"]),
    kind=st.sampled_from(["MAX", "AVE"]),
    data=st.data(),
)
def test_pooling_drawn(caffe, tmp_path_factory, image, kernel, stride, rounded, kind, data):
    pad = tuple(data.draw(st.integers(0, size - 1)) for size in kernel)
    text = pooling(kind, kernel, stride, pad, rounded)
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "deploy.prototxt").write_text(DATA.format(2, *image) + text)
    try:
        export_onnx.Graph(folder / "deploy.prototxt")
    except ValueError as error:  # on some of these Caffe aborts
        assert "without a pixel" in str(error)
        return
    check_export(*small_net(caffe, folder, text, shape=(2, *image)), folder / "model.onnx")


# --- what is refused, and what is left of it -----------------------------------------------------------------------------


REFUSED = {
    "another kind": ([layer("Softmax")], "layer 'fc_embedding' of type Softmax cannot be exported"),
    "a Python layer": ([layer("Python", name="loss")], "layer 'loss' of type Python cannot be exported"),
    "stochastic pooling": ([layer("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 }")], "neither MAX nor AVE"),
    "lrn within channels": ([layer("LRN", "lrn_param { norm_region: WITHIN_CHANNEL }")], "within channels"),
    "lrn of an even size": ([layer("LRN", "lrn_param { local_size: 4 }")], "an even number"),
    "a window of padding": ([pooling("MAX", (1, 1), (4, 4), (0, 0))], "has a window without a pixel of its input"),
    "padding of the kernel's size": ([pooling("MAX", (2, 2), (1, 1), (2, 2))], "has a window without a pixel"),
    "one of pad_h and pad_w": ([layer("Pooling", "pooling_param { kernel_size: 3 pad_h: 1 }")], "one of pad_h and pad_w"),
    "a global kernel": ([layer("Pooling", "pooling_param { global_pooling: true kernel_size: 3 }")], "has no kernel"),
    "no kernel": ([layer("Pooling")], "numbers above 0"),
    "kernel_size and kernel_h": ([convolution("num_output: 4 kernel_size: 3 kernel_h: 3 kernel_w: 3")], "two sides are expected"),
    "a kernel too large": ([convolution("num_output: 4 kernel_size: 12")], "a kernel that is larger than its padded input"),
    "groups that do not divide": ([convolution("num_output: 4 kernel_size: 1 group: 2")], "numbers that the groups divide"),
    "another axis": ([layer("InnerProduct", "inner_product_param { num_output: 4 axis: 2 }")], "axis 1"),
    "images of unlike size": ([conv_1x1("a"), layer("Eltwise", bottom="a data")], "of one shape"),
    "a concat of batches": ([layer("Concat", "concat_param { axis: 0 }", bottom="data data")], "along axis 0"),
    "an unknown input": ([conv_1x1("a"), layer("ReLU", bottom="b")], "reads 'b', which no layer above it writes"),
    "two outputs": ([layer("Pooling", 'top: "mask" pooling_param { kernel_size: 3 }')], "outputs ['fc_embedding', 'mask']"),
    "one phase": ([layer("ReLU", "include { phase: TEST }")], "no include or exclude"),
    "two layers of one name": ([conv_1x1("a"), convolution("num_output: 3 kernel_size: 1", name="a", bottom="a", top="b")],
                               "the name of another layer"),
    "read before it is written in place": ([layer("ReLU"), layer("ReLU", name="relu", top="data")], "writes 'data'"),
    "a convolution in place": ([convolution("num_output: 3 kernel_size: 1", top="data")], "writes 'data'"),
    "no fc_embedding": ([conv_1x1("a")], "needs the blobs 'data' and 'fc_embedding'; it has data, a"),
}  # fmt: skip


@pytest.mark.parametrize("layers, message", REFUSED.values(), ids=REFUSED.keys())
def test_nets_that_are_refused(tmp_path, layers, message):
    path = tmp_path / "deploy.prototxt"
    path.write_text(DATA.format(3, 9, 11) + "".join(layers))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        export(path, tmp_path / "model.caffemodel", tmp_path / "model.onnx")
    assert str(path) in str(error.value)
    assert not list(tmp_path.glob("*.onnx")) and not list(tmp_path.glob(".*"))


def test_nets_of_another_format(tmp_path):
    for text in ('layers { name: "a" type: RELU }', 'input: "data" input_dim: 1', "layer {"):
        (tmp_path / "deploy.prototxt").write_text(text)
        with pytest.raises(ValueError, match="deploy.prototxt: is not a"):
            export(tmp_path / "deploy.prototxt", tmp_path / "model.caffemodel", tmp_path / "model.onnx")


def test_weights_that_are_refused(filled, tmp_path):
    _, deploy, weights = filled["demo"]

    def refuse(path, message):
        with pytest.raises(ValueError, match=message) as error:
            export(deploy, path, tmp_path / "model.onnx")
        assert str(path) in str(error.value) and not (tmp_path / "model.onnx").exists()

    refuse(tmp_path / "none.caffemodel", "no such file")
    refuse(filled["cub"][2], "no weights for the net's layer 'conv1'.*another net")
    (tmp_path / "cut.caffemodel").write_bytes(weights.read_bytes()[:-1000])
    refuse(tmp_path / "cut.caffemodel", "damaged")
    edits = {
        "layer 'conv2' has weights of shape": lambda blobs: blobs[0].shape.dim.__setitem__(0, 32),
        "is damaged: layer 'conv2' has not as many weights": lambda blobs: blobs[1].data.pop(),
        "layer 'conv2' has 1 weights that are not finite": lambda blobs: blobs[0].data.__setitem__(7, math.nan),
        "layer 'conv2' has 2 weights that are not finite": lambda blobs: blobs[1].data.__setitem__(slice(2), [math.inf] * 2),
    }
    for message, edit in edits.items():
        net = NetParameter()
        net.ParseFromString(weights.read_bytes())
        edit(next(each.blobs for each in net.layer if each.name == "conv2"))
        (tmp_path / "edited.caffemodel").write_bytes(net.SerializeToString())
        refuse(tmp_path / "edited.caffemodel", message)


def test_weights_of_2014(filled, tmp_path):
    """The layers in the field of old, each shape as four numbers: the same model but for the sum of the file."""
    _, deploy, weights = filled["demo"]
    new, old = NetParameter(), NetParameter()
    new.ParseFromString(weights.read_bytes())
    for each in new.layer:
        copy = old.layers.add(name=each.name, blobs=each.blobs)
        for blob in copy.blobs:
            blob.num, blob.channels, blob.height, blob.width = [1] * (4 - len(blob.shape.dim)) + list(blob.shape.dim)
            blob.ClearField("shape")
    (tmp_path / "old.caffemodel").write_bytes(old.SerializeToString())
    graphs = [export_onnx.make_model(deploy, path).graph for path in (weights, tmp_path / "old.caffemodel")]
    assert graphs[0].SerializeToString(deterministic=True) == graphs[1].SerializeToString(deterministic=True)


@pytest.mark.parametrize("spoil", ["a constant", "not a number"])
def test_a_model_that_differs_from_caffe_does_not_get_its_name(filled, tmp_path, monkeypatch, spoil):
    """One weight in 30,000 is enough; the file that was there stays."""
    _, deploy, weights = filled["demo"]
    out = tmp_path / "model.onnx"
    out.write_bytes(b"the last one")
    real = export_onnx.read_weights

    def spoiled(*arguments):
        arrays = real(*arguments)
        arrays["conv2"][0][0, 0, 1, 1] += 0.5 if spoil == "a constant" else np.nan
        return arrays

    monkeypatch.setattr(export_onnx, "read_weights", spoiled)
    with pytest.raises(ValueError, match="model.onnx: not written; onnxruntime's features differ from Caffe's by (inf|[0-9.e-]+)"):
        export(deploy, weights, out)
    assert out.read_bytes() == b"the last one" and [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    assert export(deploy, weights, out, check=False) is None
    assert out.read_bytes() != b"the last one"
