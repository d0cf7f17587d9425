"""A trained run as a model that can be used without Caffe: four files, which can be copied to another machine.

    .venv/bin/python tools/model_folder.py --run runs/demo/lifted_64/seed1 --set data/demo \\
        --net prototxt/demo/lifted_64/deploy.prototxt

The run folder then holds, besides what training left there:

    deploy.prototxt   the net without data and loss
    model.caffemodel  its weights, as training wrote them
    mean.npy          the set's mean image, float32 (3, h, w), blue, green, red
    model.json        what is done to an image before the net sees it, and the SHA-256 of the other three; written last

Writing needs Caffe: the embeddings that OpenCV computes from these files are compared with Caffe's own first. Reading and
embedding (`Embedder`) need OpenCV and numpy alone.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import hashlib
import io
import json
import os
import shlex
from pathlib import Path

import cv2
import numpy as np

from data_prep.files import locked, read_record, user_path, written_aside
from data_prep.image import RESIZES, load_image

BLOB = "fc_embedding"
BATCH = 16  # images at a time: more is no faster, and GoogLeNet takes tens of MB for each
PARITY = 1e-4  # largest difference between OpenCV's and Caffe's embeddings, of the largest value; seen: 1e-6
FILES = {"net": "deploy.prototxt", "weights": "model.caffemodel", "mean": "mean.npy"}  # key of its SHA-256 -> file
KINDS = {"name": str, "image_size": int, "crop": int, "resize": str, "upright": bool, "blob": str, "dimensions": int,
         "weights": str, "net": str, "mean": str, "set": str}  # fmt: skip
MAKE = ".venv/bin/python tools/model_folder.py --run <run> --set data/<set> --net <deploy.prototxt>"


# --- reading, without Caffe ------------------------------------------------------------------------------------------


def read_model(folder):
    """What model.json in `folder` says, a dict with the keys of KINDS, once the other three files are what it says.

    `image_size`, `crop`: pixels a side; `resize`, `upright`: as load_image takes them; `weights`, `net`, `mean`: SHA-256 of
    the files. Raises ValueError naming the file, what was expected, and the next command.
    """
    return _read(Path(folder))[0]


def _read(folder):
    """(record, mean (3, h, w) float32, content of deploy.prototxt, content of model.caffemodel)."""
    path = folder / "model.json"
    if not path.is_file():
        raise ValueError(f"{path}: not there; expected a model folder ({', '.join(FILES.values())}, model.json). "
                         f"`{MAKE}` makes one from a trained run")  # fmt: skip
    record = read_record(path)
    wrong = [name for name, kind in KINDS.items() if type(record.get(name)) is not kind]
    if not wrong and not 0 < record["crop"] <= record["image_size"]:
        wrong = ["crop"]
    if not wrong and record["resize"] not in RESIZES:
        wrong = ["resize"]
    if wrong:
        raise ValueError(f"{path}: is damaged, or not what tools/model_folder.py writes ({wrong[0]!r}); `{MAKE}` writes it again")
    content = {}
    for key, name in FILES.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: not there, or no file; a model folder has it beside model.json. Copy it again, or "
                             f"`{MAKE}`")  # fmt: skip
        content[key] = (folder / name).read_bytes()
        if (found := hashlib.sha256(content[key]).hexdigest()) != record[key]:
            raise ValueError(f"{folder / name}: is not the file that model.json was written for (SHA-256 {record[key][:12]}... "
                             f"expected, {found[:12]}... found). Copy it again, or `{MAKE}`")  # fmt: skip
    try:
        mean = np.lib.format.read_array(io.BytesIO(content["mean"]), allow_pickle=False)
    except Exception as error:  # whatever is wrong with the file
        raise ValueError(f"{folder / FILES['mean']}: cannot be read as an array ({error}); `{MAKE}` writes it again") from None
    expected = (3, record["image_size"], record["image_size"])
    if mean.shape != expected or mean.dtype != np.float32 or not np.isfinite(mean).all():
        raise ValueError(f"{folder / FILES['mean']}: expected finite float32 {expected}, found {mean.dtype} {mean.shape}; "
                         f"`{MAKE}` writes it again")  # fmt: skip
    return record, mean, content["net"], content["weights"]


def _open_net(deploy, weights, where):
    """OpenCV's net from the contents of a prototxt and a .caffemodel; ValueError names the folder or file `where`."""
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise ValueError(f"OpenCV {cv2.__version__} reads no Caffe nets any more; `pip install 'opencv-python-headless<5'`")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what goes wrong is said in the exception too
    try:
        return cv2.dnn.readNetFromCaffe(np.frombuffer(deploy, np.uint8), np.frombuffer(weights, np.uint8))
    except cv2.error as error:
        raise ValueError(f"{where}: OpenCV cannot read the net or its weights ({error.err}); `{MAKE}`") from None


def _forward(net, blob, data, where):
    """(n, c) float32: what `blob` holds for the net's input `data` (n, 3, crop, crop) float32."""
    try:
        net.setInput(data, "data")
        return net.forward(blob).reshape(len(data), -1)
    except cv2.error as error:
        raise ValueError(f"{where}: OpenCV cannot compute {blob} ({error.err}). Do {FILES['net']} and {FILES['weights']} "
                         f"belong together? `{MAKE}`") from None  # fmt: skip


class Embedder:
    """The model in a folder, computed by OpenCV; `model` is what read_model returns. Not for several threads at once.

    Raises ValueError naming the file for a folder that is no model, or a damaged one.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.model, self.mean, deploy, weights = _read(self.folder)
        self.net = _open_net(deploy, weights, self.folder)

    def load(self, source):
        """The image at a path or in bytes as `embed` takes it: uint8 (3, s, s). OSError or ValueError where it is none."""
        return load_image(source, self.model["image_size"], self.model["resize"], self.model["upright"])

    def embed(self, images, names=None):
        """Embeddings (n, c) float32 of images (n, 3, s, s) uint8, blue, green, red: centre crop, the mean subtracted.

        An image's embedding does not depend on what else is in its batch. Raises ValueError naming the image, by `names`
        where given, when its embedding is not finite.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.mean.shape or images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 (n, {', '.join(map(str, self.mean.shape))}), not {images.dtype} {images.shape}")
        crop = self.model["crop"]
        first = (self.model["image_size"] - crop) // 2  # rounded as in Caffe's DataTransformer
        window = np.s_[..., first : first + crop, first : first + crop]
        embeddings = np.empty((len(images), self.model["dimensions"]), np.float32)
        for start in range(0, len(images), BATCH):
            data = images[start : start + BATCH][window] - self.mean[window]  # (BATCH, 3, crop, crop)
            found = _forward(self.net, self.model["blob"], np.ascontiguousarray(data), self.folder)
            if found.shape[1] != embeddings.shape[1]:
                raise ValueError(f"{self.folder / FILES['net']}: gives {found.shape[1]} numbers an image, model.json says "
                                 f"{embeddings.shape[1]}; `{MAKE}` writes it again")  # fmt: skip
            embeddings[start : start + BATCH] = found
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if bad.size:
            name = names[bad[0]] if names is not None else f"image {bad[0]}"
            raise ValueError(f"{name}: its embedding is not finite ({bad.size} of {len(images)} images); did the training of "
                             f"{self.folder / FILES['weights']} diverge? Its log.csv tells")  # fmt: skip
        return embeddings


# --- writing, with Caffe ---------------------------------------------------------------------------------------------


def write_model(folder, data_set, deploy):
    """Make the run folder `folder` a model folder; returns what model.json holds. May be called again.

    `data_set`: data/<set>, for its mean and for how its images are resized; `deploy`: the prototxt of the net without data
    and loss. Raises ValueError naming the file when one of them does not fit, or when OpenCV's embeddings are not Caffe's.
    """
    folder, data_set, deploy = Path(folder), Path(data_set), Path(deploy)
    if not (folder / FILES["weights"]).is_file():
        raise ValueError(f"{folder / FILES['weights']}: no such file; tools/train.py makes it when training is complete")
    try:
        from pair_batch import read_mean
        from tools.caffe_files import NetParameter, read_text
    except ImportError as error:
        raise ValueError(f"{error}: a model folder is written where Caffe is (`make env`, .venv/bin/python); copied, it is used "
                         "anywhere") from None  # fmt: skip
    crop = check_deploy(deploy, read_text(deploy, NetParameter()))
    made = read_record(data_set / "set.json")
    size = made.get("size")
    if not isinstance(size, int):
        raise ValueError(f"{data_set / 'set.json'}: is missing or damaged; make data-<set> makes a set of ours, "
                         "data_prep/build_set.py any other")  # fmt: skip
    mean = read_mean(str(data_set / "mean.binaryproto"))
    if mean.shape != (3, size, size) or crop > size:
        raise ValueError(f"{deploy}: takes crops of {crop}, but {data_set} has images of {size}x{size} and a mean of {mean.shape}; "
                         "give the net and the set that the run was trained with")  # fmt: skip
    with locked(folder, "working"):
        array = io.BytesIO()
        np.save(array, mean)
        content = {"net": deploy.read_bytes(), "weights": (folder / FILES["weights"]).read_bytes(), "mean": array.getvalue()}
        dimensions, difference = compare_with_caffe(deploy, folder / FILES["weights"], content, crop)
        record = {
            "name": "/".join(folder.resolve().parts[-3:]),
            "image_size": size,
            "crop": crop,
            "resize": (made.get("options") or {}).get("resize", "plain"),
            "upright": "images" in made,  # sets made from a folder apply an EXIF rotation, the paper's do not
            "blob": BLOB,
            "dimensions": dimensions,
            **{key: hashlib.sha256(content[key]).hexdigest() for key in FILES},
            "set": made.get("name", data_set.name),
        }
        for key in ("net", "mean"):
            with written_aside(folder / FILES[key]) as aside:
                aside.write_bytes(content[key])
        with written_aside(folder / "model.json") as aside:
            aside.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{folder}: a model of {dimensions} dimensions for images of {size}x{size}; OpenCV's embeddings differ from Caffe's by "
          f"{difference:.0e} of the largest value")  # fmt: skip
    return record


def check_deploy(path, net):
    """Pixels a side of what the parsed `net` takes; ValueError naming `path` when it is no net to embed single images with."""
    for layer in net.layer:
        if layer.type == "Python" or layer.type.endswith(("Data", "Loss", "Accuracy")):
            raise ValueError(f"{path}: has the layer {layer.name!r} of type {layer.type}: it is made to train. Give the "
                             "deploy.prototxt beside it (`make prototxt`)")  # fmt: skip
    if not any(layer.name == BLOB and BLOB in layer.top for layer in net.layer):
        raise ValueError(
            f"{path}: has no layer and blob {BLOB}, the embedding; give a deploy.prototxt of prototxt/ (`make prototxt`)"
        )
    shapes = {name: list(shape.dim) for name, shape in zip(net.input, net.input_shape)}
    shapes |= {layer.top[0]: list(layer.input_param.shape[0].dim) for layer in net.layer
               if layer.type == "Input" and layer.top and layer.input_param.shape}  # fmt: skip
    shape = shapes.get("data", [])
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[3] < 1:
        raise ValueError(f"{path}: expected an input `data` of shape (1, 3, crop, crop), found {shape or 'none'}; "
                         "give a deploy.prototxt of prototxt/ (`make prototxt`)")  # fmt: skip
    return shape[3]


def compare_with_caffe(deploy, weights, content, crop):
    """(dimensions, largest difference between OpenCV's and Caffe's embeddings of two made-up images, of the largest value).

    Raises ValueError when they are not the same embedding, or not finite. `content`: of the two files, as `_open_net` takes it.
    """
    os.environ.setdefault("GLOG_minloglevel", "2")  # Caffe's errors only
    from tools.blas import choose_kernels
    from tools.device import use_device

    choose_kernels()
    import caffe

    from tools.caffe_files import constructed, load_weights

    coarse = np.random.default_rng(1).normal(0, 60, (2, 3, 8, 8)).astype(np.float32)
    data = np.array([[cv2.resize(channel, (crop, crop), interpolation=cv2.INTER_CUBIC) for channel in image] for image in coarse])
    use_device()
    net = constructed(lambda: caffe.Net(str(deploy), caffe.TEST), deploy)
    load_weights(net, weights)
    net.blobs["data"].reshape(*data.shape)
    net.blobs["data"].data[...] = data
    net.forward()
    theirs = net.blobs[BLOB].data.reshape(len(data), -1)
    if not np.isfinite(theirs).all() or not theirs.any():
        raise ValueError(f"{weights}: its embeddings are not finite, or all zero: the training diverged (log.csv). "
                         "Train again with a lower learning rate")  # fmt: skip
    ours = _forward(_open_net(content["net"], content["weights"], deploy), BLOB, data, deploy)
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max() if ours.shape == theirs.shape else np.inf
    if not difference <= PARITY:
        raise ValueError(f"{deploy}: OpenCV computes other embeddings than Caffe (they differ by {difference:.1e} of the largest "
                         f"value, {PARITY:g} is allowed); use tools/extract.py for this net")  # fmt: skip
    return theirs.shape[1], difference


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=user_path, required=True, help="folder of a finished run, runs/<set>/<method>_<dim>/<run>")
    parser.add_argument("--set", type=user_path, required=True, help="folder of the set it was trained on, data/<set>")
    parser.add_argument("--net", type=user_path, required=True, help="deploy.prototxt")
    arguments = parser.parse_args()
    write_model(arguments.run, arguments.set, arguments.net)
    print(
        f"Search your own images with it: .venv/bin/python tools/search.py index <folder> --model {shlex.quote(str(arguments.run))}"
    )


if __name__ == "__main__":
    run("model_folder", main)
