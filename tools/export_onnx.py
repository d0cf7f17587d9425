"""A deploy net with its weights as an ONNX model, for runtimes other than Caffe.

    .venv/bin/python tools/export_onnx.py --net prototxt/demo/lifted_64/deploy.prototxt \\
                                          --weights runs/demo/lifted_64/seed1/model.caffemodel --out model.onnx

The model takes `data` (n, 3, crop, crop) float32, BGR in 0..255 with the set's mean image subtracted, n free, and gives
`fc_embedding` (n, c). Before the file gets its name, onnx's own checker reads it, and onnxruntime's embeddings are
compared with Caffe's. Layers: Input, Convolution, ReLU, Pooling (MAX, AVE), LRN across channels, InnerProduct, Concat,
Dropout, Power, Eltwise; any other is an error.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import importlib.util
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
from caffe_pb2 import EltwiseParameter, LRNParameter, NetParameter, PoolingParameter
from onnx import TensorProto, helper, numpy_helper

from data_prep.files import require_writable, sha256, written_aside
from tools.blas import choose_kernels
from tools.caffe_files import check_weights, read_binary, read_text
from tools.device import use_device

INPUT, OUTPUT = "data", "fc_embedding"
# 11 (2019) has every operator used here in the form of today (explicit pads above all), so onnxruntime since 1.0
# and OpenCV 4 read it; a later one would add nothing to these nets, and shut out older runtimes.
OPSET, IR_VERSION = 11, 6
IN_PLACE = ("ReLU", "Dropout", "Power")
BOUND = 1e-4  # largest |difference| from Caffe's features, relative to the largest |feature|


class Graph:
    """The ONNX graph of a deploy net, made layer by layer. Shapes are without the batch axis.

    Raises ValueError, naming the file and the layer, for what has no conversion here and for what Caffe would abort on.
    """

    def __init__(self, path):
        self.path = path
        self.nodes, self.constants = [], []
        self.parameters = {}  # layer name -> shapes of its weights, which are added once they have been checked
        self.tensors, self.shapes = {}, {}  # blob -> the tensor that holds it now, its shape
        self.read = set()  # blobs that are read as they are now
        net = read_text(path, NetParameter())
        if not net.layer or net.input:
            raise ValueError(f"{path}: is not a net in today's format that begins with an Input layer; give a deploy.prototxt "
                             "(Caffe's upgrade_net_proto_text rewrites an old one)")  # fmt: skip
        for layer in net.layer:
            self.add_layer(layer)
        if INPUT not in self.tensors or OUTPUT not in self.tensors:
            raise ValueError(f"{path}: needs the blobs {INPUT!r} and {OUTPUT!r}; it has {', '.join(self.tensors)}")
        # as tools/extract.py: one row an image
        self.nodes.append(helper.make_node("Flatten", [self.tensors[OUTPUT]], [OUTPUT], OUTPUT, axis=1))

    def add_layer(self, layer):
        if layer.type not in LAYERS:
            self.fail(layer, f"cannot be exported; these can: {', '.join(LAYERS)}")
        if layer.include or layer.exclude:
            self.fail(layer, "is in some phases only; a deploy net has no include or exclude")
        if len(layer.top) != 1 or bool(layer.bottom) == (layer.type == "Input"):
            self.fail(layer, f"has the inputs {list(layer.bottom)} and outputs {list(layer.top)}; it needs some of the one "
                             "(an Input layer none) and one of the other")  # fmt: skip
        if len(layer.bottom) > 1 and layer.type not in ("Concat", "Eltwise"):
            self.fail(layer, f"has {len(layer.bottom)} inputs, expected 1")
        if unknown := [name for name in layer.bottom if name not in self.tensors]:
            self.fail(layer, f"reads {unknown[0]!r}, which no layer above it writes")
        top = layer.top[0]
        if top in self.tensors and (layer.type not in IN_PLACE or [top] != list(layer.bottom) or top in self.read):
            self.fail(layer, f"writes {top!r}, which is there already; Caffe lets {', '.join(IN_PLACE)} do that to their own "
                             "input, when no layer before them reads it")  # fmt: skip
        self.read = (self.read | set(layer.bottom)) - {top}
        LAYERS[layer.type](self, layer)

    def fail(self, layer, problem):
        raise ValueError(f"{self.path}: layer {layer.name!r} of type {layer.type} {problem}")

    def node(self, layer, kind, others=(), shape=None, inputs=None, **attributes):
        """Append a node that reads the layer's inputs (or `inputs`) and then `others`, and is its output until the next one."""
        inputs = [self.tensors[bottom] for bottom in layer.bottom] if inputs is None else inputs
        # A blob that is written in place has several tensors: ONNX gives each its own name.
        name = f"{layer.name}:{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [*inputs, *others], [name], name, **attributes))
        self.tensors[layer.top[0]] = name
        self.shapes[layer.top[0]] = shape or self.shapes[layer.bottom[0]]
        return name

    def constant(self, layer, values):
        """The name of a new tensor that holds `values`, float32."""
        name = f"{layer.name}:constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def parameter(self, layer, *shapes):
        """The names of the layer's weights, of these shapes."""
        if layer.name in self.parameters:
            self.fail(layer, "has the name of another layer; Caffe could not tell their weights apart")
        self.parameters[layer.name] = shapes
        return [f"{layer.name}:weights{place}" for place in range(len(shapes))]

    def image(self, layer):
        """(channels, height, width) of the layer's input."""
        if len(shape := self.shapes[layer.bottom[0]]) != 3:
            self.fail(layer, f"needs images (channels, height, width), not {shape}")
        return shape


def given(settings):
    """The names of the fields that a prototxt sets."""
    return {field.name for field, _ in settings.ListFields()}


def sides(settings, field, default=0):
    """(height, width) of what Caffe takes as one number, as two, or as <name>_h and <name>_w; () for both, which it refuses."""
    names = [f"{field.removesuffix('_size')}_{side}" for side in "hw"]
    known = settings.DESCRIPTOR.fields_by_name
    if names[0] in known and any(map(settings.HasField, names)):
        return () if field in given(settings) else tuple(getattr(settings, name) for name in names)
    value = getattr(settings, field)
    values = [value] if isinstance(value, int) else list(value) or [default]
    return tuple(values * 2)[:2] if len(values) < 3 else tuple(values)


def window(graph, layer, settings):
    """Kernel, pad, stride, dilation: (height, width) each."""
    kernel, pad, stride = (sides(settings, "kernel_size"), sides(settings, "pad"), sides(settings, "stride", 1))
    dilation = sides(settings, "dilation", 1) if hasattr(settings, "dilation") else (1, 1)
    if any(len(each) != 2 for each in (kernel, pad, stride, dilation)) or min(*kernel, *stride, *dilation) < 1:
        graph.fail(layer, f"has kernel {kernel}, pad {pad}, stride {stride}, dilation {dilation}; two sides are expected, and "
                          "numbers above 0 for all but pad")  # fmt: skip
    return kernel, pad, stride, dilation


def image_input(graph, layer):
    shapes = [tuple(shape.dim) for shape in layer.input_param.shape]
    if list(layer.top) != [INPUT] or len(shapes) != 1 or len(shapes[0]) != 4 or min(shapes[0]) < 1:
        graph.fail(layer, f"has the outputs {list(layer.top)} of {shapes}; expected {INPUT!r} alone, (1, channels, height, width)")
    graph.tensors[INPUT], graph.shapes[INPUT] = INPUT, shapes[0][1:]


def convolution(graph, layer):
    settings = layer.convolution_param
    channels, *image = graph.image(layer)
    kernel, pad, stride, dilation = window(graph, layer, settings)
    outputs, group = settings.num_output, settings.group
    if settings.axis not in (1, -3) or outputs < 1 or group < 1 or channels % group or outputs % group:
        graph.fail(layer, f"has axis {settings.axis} and makes {outputs} channels of {channels} in {group} groups; axis 1 and "
                          "numbers that the groups divide are expected")  # fmt: skip
    out = [(side + 2 * p - (d * (k - 1) + 1)) // s + 1 for side, k, p, s, d in zip(image, kernel, pad, stride, dilation)]
    if min(out) < 1:
        graph.fail(layer, f"has a kernel that is larger than its padded input, {tuple(image)}")
    names = graph.parameter(layer, (outputs, channels // group, *kernel), *[(outputs,)] * settings.bias_term)
    graph.node(layer, "Conv", names, (outputs, *out), kernel_shape=kernel, pads=[*pad, *pad], strides=stride,
               dilations=dilation, group=group)  # fmt: skip


def pooling(graph, layer):
    """Pooling with Caffe's number of windows, written as explicit pads: runtimes read ceil_mode in different ways."""
    settings = layer.pooling_param
    channels, *image = graph.image(layer)
    if settings.pool not in (PoolingParameter.MAX, PoolingParameter.AVE):
        graph.fail(layer, "is neither MAX nor AVE")
    # Caffe aborts on these two.
    if ("pad_h" in given(settings)) != ("pad_w" in given(settings)):
        graph.fail(layer, "sets one of pad_h and pad_w; both are expected, or neither")
    if settings.global_pooling and given(settings) - {"pool", "global_pooling", "engine", "round_mode"}:
        graph.fail(layer, f"is global, and sets {', '.join(sorted(given(settings)))}; it has no kernel, pad or stride")
    if settings.global_pooling:
        kernel, pad, stride = tuple(image), (0, 0), (1, 1)
    else:
        kernel, pad, stride, _ = window(graph, layer, settings)
    rounded = math.floor if settings.round_mode == PoolingParameter.FLOOR else math.ceil
    out, after, pixels, counted = [], [], [], []
    for side, k, p, s in zip(image, kernel, pad, stride):
        windows = rounded((side + 2 * p - k) / s) + 1
        # Caffe: "if we have padding, ensure that the last pooling starts strictly inside the image", on either axis
        if any(pad) and (windows - 1) * s >= side + p:
            windows -= 1
        starts = np.arange(windows) * s  # in the padded image
        if p >= k or windows < 1 or starts[-1] >= side + p:
            graph.fail(layer, f"of kernel {kernel}, pad {pad} and stride {stride} has a window without a pixel of its input, "
                              f"{tuple(image)}")  # fmt: skip
        out.append(windows)
        after.append(max(0, int(starts[-1]) + k - side - p))
        pixels.append(np.minimum(starts + k, side + p) - np.maximum(starts, p))
        # Caffe's mean counts padding up to the padded border, and nothing beyond it.
        counted.append(np.minimum(starts + k, side + 2 * p) - starts)
    shape, window_of = (channels, *out), {"kernel_shape": kernel, "pads": [*pad, *after], "strides": stride}
    if settings.pool == PoolingParameter.MAX:
        graph.node(layer, "MaxPool", shape=shape, **window_of)
        return
    # Runtimes agree on the mean of the pixels that are there; what they count of the padding differs (count_include_pad).
    mean = graph.node(layer, "AveragePool", shape=shape, **window_of)
    factors = np.outer(*pixels) / np.outer(*counted)  # (height, width) of the output
    if (factors != 1).any():
        graph.node(layer, "Mul", [graph.constant(layer, factors[None, None])], shape, inputs=[mean])


def relu(graph, layer):
    if slope := layer.relu_param.negative_slope:
        graph.node(layer, "LeakyRelu", alpha=slope)
    else:
        graph.node(layer, "Relu")


def normalisation(graph, layer):
    settings = layer.lrn_param
    graph.image(layer)
    if settings.norm_region != LRNParameter.ACROSS_CHANNELS or settings.local_size % 2 == 0:
        graph.fail(layer, "normalises within channels, or over an even number of them; only an odd number across is exported")
    # Both divide alpha by the size.
    graph.node(layer, "LRN", size=settings.local_size, alpha=settings.alpha, beta=settings.beta, bias=settings.k)


def inner_product(graph, layer):
    settings = layer.inner_product_param
    if settings.axis != 1 or settings.num_output < 1:
        graph.fail(layer, f"has axis {settings.axis} and {settings.num_output} outputs; axis 1 and at least one are expected")
    shape = graph.shapes[layer.bottom[0]]
    weights = (settings.num_output, math.prod(shape))
    names = graph.parameter(layer, weights[::-1] if settings.transpose else weights, *[weights[:1]] * settings.bias_term)
    rows = graph.node(layer, "Flatten", shape=(weights[1],), axis=1)
    graph.node(layer, "Gemm", names, weights[:1], inputs=[rows], transB=int(not settings.transpose))


def concat(graph, layer):
    settings = layer.concat_param
    shapes = [graph.shapes[bottom] for bottom in layer.bottom]
    axis = settings.concat_dim if settings.HasField("concat_dim") else settings.axis
    axis += (len(shapes[0]) + 1) * (axis < 0)
    others = {(*shape[: axis - 1], *shape[axis:]) for shape in shapes}
    if not 1 <= axis <= len(shapes[0]) or len(others) > 1 or len({len(shape) for shape in shapes}) > 1:
        graph.fail(layer, f"joins {shapes} along axis {axis}; shapes that are equal but for an axis from 1 on are expected")
    joined = list(shapes[0])
    joined[axis - 1] = sum(shape[axis - 1] for shape in shapes)
    graph.node(layer, "Concat", shape=tuple(joined), axis=axis)


def dropout(graph, layer):
    """Caffe scales while it trains; in a deploy net the layer does nothing."""
    for known in (graph.tensors, graph.shapes):
        known[layer.top[0]] = known[layer.bottom[0]]


def power(graph, layer):
    """(shift + scale x)^power"""
    settings = layer.power_param
    here = graph.tensors[layer.bottom[0]]
    steps = ("Mul", settings.scale, 1), ("Add", settings.shift, 0), ("Pow", settings.power, 1)
    for kind, value, neutral in steps:
        if value != neutral:
            here = graph.node(layer, kind, [graph.constant(layer, value)], inputs=[here])
    graph.tensors[layer.top[0]], graph.shapes[layer.top[0]] = here, graph.shapes[layer.bottom[0]]


def eltwise(graph, layer):
    settings = layer.eltwise_param
    shapes = {graph.shapes[bottom] for bottom in layer.bottom}
    inputs = [graph.tensors[bottom] for bottom in layer.bottom]
    factors = list(settings.coeff)
    wrong = factors and (settings.operation != EltwiseParameter.SUM or len(factors) != len(inputs))
    if len(shapes) > 1 or len(inputs) < 2 or wrong:
        graph.fail(layer, f"combines {len(inputs)} inputs of {shapes} with {len(factors)} coefficients; two or more of one shape "
                          "are expected, and a coefficient for each if it is a SUM")  # fmt: skip
    for place, factor in enumerate(factors):
        if factor != 1:
            inputs[place] = graph.node(layer, "Mul", [graph.constant(layer, factor)], inputs=[inputs[place]])
    if settings.operation == EltwiseParameter.PROD:  # ONNX multiplies two at a time
        for other in inputs[1:]:
            inputs[0] = graph.node(layer, "Mul", [other], inputs=inputs[:1])
    else:
        graph.node(layer, "Sum" if settings.operation == EltwiseParameter.SUM else "Max", inputs=inputs)


LAYERS = {"Input": image_input, "Convolution": convolution, "ReLU": relu, "Pooling": pooling, "LRN": normalisation,
          "InnerProduct": inner_product, "Concat": concat, "Dropout": dropout, "Power": power, "Eltwise": eltwise}  # fmt: skip


def read_weights(path, parameters):
    """{layer name: its arrays, float32} of the .caffemodel at `path`, for `parameters`, {layer name: their shapes}.

    Raises ValueError naming the path and the layer when one is missing, has another shape, or is not finite.
    """
    shaped = {name: [SimpleNamespace(data=np.broadcast_to(np.float32(0), shape)) for shape in shapes]
              for name, shapes in parameters.items()}  # fmt: skip
    check_weights(SimpleNamespace(params=shaped, layer_dict=shaped), path)
    net, found = read_binary(path, NetParameter()), {}
    for layer in [*net.layers, *net.layer]:
        if layer.name not in parameters or not layer.blobs:
            continue
        arrays = [np.array(blob.data or blob.double_data, np.float32) for blob in layer.blobs]
        for values in arrays:
            if bad := np.count_nonzero(~np.isfinite(values)):
                raise ValueError(f"{path}: layer {layer.name!r} has {bad:,} weights that are not finite numbers; export a "
                                 "snapshot from before the training diverged")  # fmt: skip
        found[layer.name] = [values.reshape(shape) for values, shape in zip(arrays, parameters[layer.name])]
    return found


def make_model(deploy, weights):
    """The ONNX ModelProto of the net `deploy` with `weights`. ValueError names the file that is wrong, and the layer."""
    graph = Graph(deploy)
    arrays = read_weights(weights, graph.parameters)
    stored = [numpy_helper.from_array(values, f"{name}:weights{place}")
              for name, each in arrays.items() for place, values in enumerate(each)]  # fmt: skip
    crop = graph.shapes[INPUT]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])]
            for name, shape in ((INPUT, crop), (OUTPUT, [math.prod(graph.shapes[OUTPUT])]))]  # fmt: skip
    model = helper.make_model(
        helper.make_graph(graph.nodes, Path(deploy).parent.name or "deploy", *ends, [*stored, *graph.constants]),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="lifted_structured_embedding tools/export_onnx.py",
    )
    notes = {
        "net": str(deploy),
        "weights_sha256": sha256(weights),
        "crop": f"{crop[-2]}x{crop[-1]}",
        "input": f"{INPUT} (n, {', '.join(map(str, crop))}) float32: BGR, 0..255, minus the mean",
        "mean": "the mean image of the set that the net was trained on, data/<set>/mean.binaryproto; image and mean are both "
        "cropped at the centre, and subtracted pixel by pixel; it is not part of the model",
    }
    helper.set_model_props(model, notes)
    return model


def compare(content, deploy, weights):
    """The largest |difference| of onnxruntime's features, of a model's content, from Caffe's, relative to the largest |feature|.

    Of noise at batch 1 and 3, on the CPU; infinite where one of the two is not finite.
    """
    choose_kernels()
    os.environ.setdefault("GLOG_minloglevel", "2")  # Caffe's errors only
    import caffe
    import onnxruntime

    use_device()
    net = caffe.Net(str(deploy), str(weights), caffe.TEST)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    random, worst = np.random.default_rng(0), 0.0
    for batch in (1, 3):
        data = random.uniform(-128, 128, (batch, *net.blobs[INPUT].data.shape[1:])).astype(np.float32)
        net.blobs[INPUT].reshape(*data.shape)
        net.blobs[INPUT].data[...] = data
        net.forward()
        expected = net.blobs[OUTPUT].data.reshape(batch, -1)  # (n, c)
        (found,) = session.run([OUTPUT], {INPUT: data})
        if not (np.isfinite(found).all() and np.isfinite(expected).all()):
            return math.inf
        largest = np.abs(expected).max()
        worst = max(worst, float(np.abs(found - expected).max() / (largest or 1)))
    return worst


def export(deploy, weights, out, check=True):
    """Write the ONNX model of `deploy` with `weights` to `out`; `check` compares it with Caffe before.

    Returns the measured difference (`compare`), None when unchecked. Raises ValueError for a net that cannot be exported,
    for weights that do not fit it, and for a difference above BOUND; `out` is then left as it was.
    """
    require_writable(out)
    model = make_model(deploy, weights)
    content = model.SerializeToString(deterministic=True)
    onnx.checker.check_model(content, full_check=True)
    difference = compare(content, deploy, weights) if check else None
    if check and difference > BOUND:
        raise ValueError(f"{out}: not written; onnxruntime's features differ from Caffe's by {difference:.1e} of the largest, "
                         f"expected {BOUND:.0e} at most; report it with {deploy} and what make check prints")  # fmt: skip
    with written_aside(out) as aside:
        aside.write_bytes(content)
    return difference


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", type=Path, required=True, help="deploy.prototxt")
    parser.add_argument("--weights", type=Path, required=True, help=".caffemodel")
    parser.add_argument("--out", type=Path, required=True, help=".onnx to write")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction,
                        help="compare with Caffe (default: where onnxruntime is installed)")  # fmt: skip
    arguments = parser.parse_args()
    here = importlib.util.find_spec("onnxruntime") is not None
    if arguments.check and not here:
        raise ValueError("--check needs onnxruntime, which is not installed; make env installs it")
    check = here if arguments.check is None else arguments.check
    difference = export(arguments.net, arguments.weights, arguments.out, check)
    told = "not compared with Caffe" if difference is None else f"at most {difference:.1e} from Caffe's, relative to the largest"
    print(f"{arguments.out}: ONNX opset {OPSET}, {arguments.out.stat().st_size:,} bytes; features {told}")


if __name__ == "__main__":
    run("export_onnx", main)
