"""Caffe's files, read and checked in Python: Caffe itself aborts the whole process on a wrong one."""

from pathlib import Path

from caffe_pb2 import NetParameter
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


def check_weights(net, path):
    """Raise ValueError unless the .caffemodel at `path` has every parameter of `net` (a caffe.Net) in its shape.

    Caffe would leave a layer that the file lacks at its random start without a word, and abort on another shape.
    """
    saved = {layer.name: layer.blobs for layer in read_binary(path, NetParameter()).layer}
    for name, blobs in net.params.items():
        wanted = [tuple(blob.data.shape) for blob in blobs]
        if name not in saved:
            raise ValueError(f"{path}: has no weights for the net's layer {name!r}; it was made for another net")
        found = [tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width) for blob in saved[name]]
        if found != wanted:
            raise ValueError(f"{path}: layer {name!r} has weights of shape {found}, the net needs {wanted}")
