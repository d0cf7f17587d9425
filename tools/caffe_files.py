"""Caffe's files, read and checked in Python: Caffe itself aborts the whole process on a wrong one."""

import contextlib
import importlib
import math
import os
import re
import resource
import signal
from pathlib import Path

import numpy as np
from caffe_pb2 import NetParameter, SolverState
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from tools.device import loaded

# What Caffe's learning rate policies need; it looks at them in the first update, and aborts or divides by zero.
POLICIES = {"fixed": (), "step": ("gamma", "stepsize"), "exp": ("gamma",), "inv": ("gamma", "power"),
            "multistep": ("gamma", "stepvalue"), "poly": ("power",), "sigmoid": ("gamma", "stepsize")}  # fmt: skip


def check_solver(solver, path):
    """Raise ValueError for what Caffe finds wrong in the SolverParameter of `path` only while it trains."""
    needed = POLICIES.get(solver.lr_policy)
    if needed is None:
        raise ValueError(f"{path}: lr_policy {solver.lr_policy!r} is none of Caffe's: {', '.join(POLICIES)}")
    if lacking := [name for name in needed if not getattr(solver, name)]:
        raise ValueError(f"{path}: lr_policy {solver.lr_policy!r} needs {lacking[0]}")
    if solver.regularization_type not in ("L1", "L2"):
        raise ValueError(f"{path}: regularization_type {solver.regularization_type!r} is neither L1 nor L2")
    if solver.max_iter < 1:
        raise ValueError(f"{path}: max_iter must be positive, not {solver.max_iter}")
    if solver.iter_size > 1:
        raise ValueError(
            f"{path}: iter_size {solver.iter_size} is no larger batch for a loss over the pairs of a batch: no pair reaches "
            "from one pass to the next. A plan of more images a batch is (BATCH=, data_prep/batch_plan.py). The stock "
            "binary averages the gradients of several batches with it; here log.csv would tell of the last alone"
        )


def check_loss(net, path):
    """Raise ValueError where no layer of `net`, a NetParameter, has a loss to be made smaller: Caffe would train nothing."""
    if not any(any(layer.loss_weight) or (layer.type.endswith("Loss") and not layer.loss_weight) for layer in net.layer):
        last = [layer.name for layer in net.layer if "loss" in layer.top]
        raise ValueError(
            f"{path}: trains nothing: no layer has a loss weight. Add this line to the layer {last[-1]!r}:  loss_weight: 1"
        )


def load_modules(net, path):
    """Import the modules of the Python layers of `net`, a NetParameter; where one fails Caffe shows only `SystemError`."""
    for layer in net.layer:
        given = layer.python_param
        if layer.type == "Python" and not hasattr(importlib.import_module(given.module), given.layer):
            raise ValueError(f"{path}: layer {layer.name!r} wants {given.layer!r}, which the module {given.module!r} has not")


def in_copy(work):
    """Call work() in a copy of this process, which Caffe may end: (whether there was a copy, what Caffe said where it ended it).

    There is none with CUDA, which a copy of a process cannot use, nor where memory has no room for one. Caffe ends it by
    SIGABRT; one that is killed was ended from outside, and counts as none.
    """
    reading, writing = os.pipe()
    try:
        child = None if loaded("libcudart") else os.fork()
    except OSError:
        child = None
    if child == 0:
        os.dup2(writing, 2)
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(BaseException):
            work()
        os._exit(0)
    os.close(writing)
    with open(reading, errors="replace") as stream:
        if child is None:
            return False, None
        said = stream.read()
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        return True, None
    if os.WTERMSIG(status) == signal.SIGKILL:  # not Caffe: where memory runs out, the system ends the copy
        return False, None
    why = re.search(r"^F\d.*?\] *(.+)$", said, re.MULTILINE)
    return True, why[1] if why else f"it was ended by a signal {said.strip()[-300:]}"


def constructed(make, path):
    """make(), which lets Caffe construct the net or solver of the prototxt at `path`; ValueError with what Caffe has against it."""
    _, refused = in_copy(make)
    if refused:
        raise ValueError(f"{path}: Caffe refuses it: {refused}")
    return make()  # also where it failed in Python: the error comes again


def read_text(path, message):
    """Parse the prototxt at `path` into `message` and return it; ValueError names the path and the line."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file (the committed ones: make prototxt)")
    try:
        return text_format.Parse(path.read_text(), message)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not a {type(message).__name__} in Caffe's text format: {error}") from None


def read_binary(path, message):
    """Parse the binary file at `path` into `message` and return it; ValueError names the path."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        message.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path}: is not a {type(message).__name__} of Caffe, or is damaged ({error})") from None
    return message


def saved_blobs(path):
    """[(layer name, its blobs)] of the .caffemodel at `path`, of today's format or of 2014's (V1)."""
    net = read_binary(path, NetParameter())
    return [(layer.name, layer.blobs) for layer in [*net.layers, *net.layer]]


def check_start(path, names):
    """Raise ValueError unless the .caffemodel at `path` has weights for each of the layers `names`: before any work is done.

    Their shapes are compared when the net is there (check_weights).
    """
    saved = saved_blobs(path)
    held = [name for name, its in saved if its]
    if missing := [name for name in names if name not in held]:
        more = f" and {len(missing) - 1} more of its {len(names)} layers" if len(missing) > 1 else ""
        raise ValueError(
            f"{path}: has no weights for the net's layer {missing[0]!r}{more}; it was made for another net. "
            f"Its own layers are {', '.join(held[:3]) or 'none'}, ..."
        )


def check_trunk(path, trunk):
    """check_start for a Trunk (prototxt/trunks/)."""
    check_start(path, [layer["name"] for layer in trunk.layers() if "param" in layer])


def shape_of(blob):
    """The shape of a BlobProto."""
    return tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)


def check_weights(net, path, new=()):
    """Raise ValueError unless the .caffemodel at `path` has every parameter of `net` (a caffe.Net) in its shape.

    Caffe would leave a layer that the file lacks at its random start without a word, and abort on another shape. The
    layers named in `new` may be missing. Returns saved_blobs(path).
    """
    blobs = saved_blobs(path)
    saved = {name: list(map(shape_of, its)) for name, its in blobs if its}
    wanted = {name: [tuple(blob.data.shape) for blob in blobs] for name, blobs in net.params.items()}
    if missing := [name for name in wanted if not saved.get(name) and name not in new]:
        more = f" and {len(missing) - 1} more of its {len(wanted)} layers" if len(missing) > 1 else ""
        raise ValueError(f"{path}: has no weights for the net's layer {missing[0]!r}{more}; it was made for another net")
    for name, its in blobs:
        shapes, found = wanted.get(name, []), list(map(shape_of, its))
        if its and name in net.layer_dict and not (len(shapes) == len(found) and all(map(_same_shape, found, shapes))):
            raise ValueError(f"{path}: layer {name!r} has weights of shape {found}, the net needs {shapes}")
        if any(len(blob.data or blob.double_data) != math.prod(shape_of(blob)) for blob in its):
            raise ValueError(f"{path}: is damaged: layer {name!r} has not as many weights as their shape {found} says")
    return blobs


def load_weights(net, path, new=()):
    """check_weights, and the weights of the .caffemodel at `path` into `net`; layers that the net has not are passed over.

    Not by Caffe: where a read fails, it takes what it has read so far for the whole file, and leaves the rest at random.
    """
    for name, saved in check_weights(net, path, new):
        for blob, its in zip(net.params.get(name, ()), saved):
            blob.data[...] = np.array(its.data or its.double_data, np.float32).reshape(blob.data.shape)


def check_state(net, path, iteration):
    """Raise ValueError unless the .solverstate at `path` is one that Caffe can go on from with `net` (a caffe.Net).

    It must be of `iteration`, have a history (one of SGD, two of Adam) of the shape of each parameter, and weights that fit;
    all of them finite. Caffe would abort on a wrong shape, and go on with NaN.
    """
    state = read_binary(path, SolverState())
    if state.iter != iteration:
        raise ValueError(f"{path}: is of iteration {state.iter}, not of {iteration} as its name says")
    # Layers that share a blob have one history.
    wanted = list({blob.data.ctypes.data: tuple(blob.data.shape) for blobs in net.params.values() for blob in blobs}.values())
    found = [tuple(blob.shape.dim) for blob in state.history]
    if found not in (wanted, wanted * 2) or any(len(blob.data) != math.prod(blob.shape.dim) for blob in state.history):
        raise ValueError(f"{path}: has {len(found)} histories, not of the shapes of the net's {len(wanted)} parameters")
    weights = os.fsdecode(state.learned_net)  # protobuf gives bytes where a name is no UTF-8
    if Path(weights).name != f"{Path(path).stem}.caffemodel":
        raise ValueError(f"{path}: belongs to {weights!r}, not to the .caffemodel beside it")
    saved = (blob for _, its in check_weights(net, weights) for blob in its)
    for file, blobs in ((path, state.history), (weights, saved)):
        if not all(np.isfinite(np.array(blob.data, np.float32)).all() for blob in blobs):
            raise ValueError(f"{file}: holds values that are not finite")


def _same_shape(saved, wanted):
    """Whether Caffe takes the one for the other: 2014's files write every shape with four numbers, ones first."""
    return saved == wanted or (len(saved) == 4 and saved == (1,) * (4 - len(wanted)) + wanted)
