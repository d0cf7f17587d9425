"""Caffe's files, read and checked in Python: Caffe itself aborts the whole process on a wrong one."""

from pathlib import Path

import numpy as np
from caffe_pb2 import NetParameter, SolverState
from google.protobuf import text_format
from google.protobuf.message import DecodeError


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


def saved_shapes(path):
    """{layer name: [shapes of its blobs]} of the .caffemodel at `path`, of today's format or of 2014's (V1)."""
    net = read_binary(path, NetParameter())
    return {layer.name: [tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width) for blob in layer.blobs]
            for layer in [*net.layers, *net.layer]}  # fmt: skip


def check_weights(net, path, new=()):
    """Raise ValueError unless the .caffemodel at `path` has every parameter of `net` (a caffe.Net) in its shape.

    Caffe would leave a layer that the file lacks at its random start without a word, and abort on another shape. The
    layers named in `new` may be missing.
    """
    saved = saved_shapes(path)
    wanted = {name: [tuple(blob.data.shape) for blob in blobs] for name, blobs in net.params.items()}
    if missing := [name for name in wanted if not saved.get(name) and name not in new]:
        more = f" and {len(missing) - 1} more of its {len(wanted)} layers" if len(missing) > 1 else ""
        raise ValueError(f"{path}: has no weights for the net's layer {missing[0]!r}{more}; it was made for another net")
    for name, shapes in wanted.items():
        if saved.get(name) and not (len(shapes) == len(saved[name]) and all(map(_same_shape, saved[name], shapes))):
            raise ValueError(f"{path}: layer {name!r} has weights of shape {saved[name]}, the net needs {shapes}")


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
    if found not in (wanted, wanted * 2):
        raise ValueError(f"{path}: has {len(found)} histories of other shapes than the net's {len(wanted)} parameters")
    check_weights(net, state.learned_net)
    weights = read_binary(state.learned_net, NetParameter())
    for file, blobs in ((path, state.history), (state.learned_net, (blob for layer in weights.layer for blob in layer.blobs))):
        for blob in blobs:
            values = np.array(blob.data, np.float32)
            if values.size != np.prod(blob.shape.dim) or not np.isfinite(values).all():
                raise ValueError(f"{file}: holds values that are not finite, or not as many as its shapes say")


def _same_shape(saved, wanted):
    """Whether Caffe takes the one for the other: 2014's files write every shape with four numbers, ones first."""
    return saved == wanted or (len(saved) == 4 and saved == (1,) * (4 - len(wanted)) + wanted)
