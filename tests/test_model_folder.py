"""A model folder: OpenCV's embeddings are Caffe's, and what is missing, damaged or of another net is named."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from caffe_pb2 import NetParameter
from conftest import ROOT, tool
from PIL import Image, ImageDraw

from data_prep.image import load_image
from data_prep.write_set import mean_bytes
from tools import model_folder
from tools.model_folder import Embedder, read_model, write_model

DEPLOY = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 14 dim: 14 } } }
layer { name: "scale" type: "Power" bottom: "data" top: "scaled" power_param { scale: 0.015625 } }
layer { name: "conv" type: "Convolution" bottom: "scaled" top: "conv"
  convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "fc_embedding" type: "InnerProduct" bottom: "pool" top: "fc_embedding"
  inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
"""


def random_weights(deploy, path):
    """Weights by the net's own fillers, drawn with a fixed seed."""
    import caffe

    caffe.set_mode_cpu()
    caffe.set_random_seed(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    caffe.Net(str(deploy), caffe.TEST).save(str(path))


def make_model(folder, data_set):
    """`folder` as a model of 8 dimensions for the images of `small_set`."""
    deploy = folder.parent / "deploy.prototxt"
    folder.mkdir(parents=True)
    deploy.write_text(DEPLOY)
    random_weights(deploy, folder / "model.caffemodel")
    write_model(folder, data_set, deploy)
    return folder


def make_set(folder, size, mean=None, **record):
    """What write_model reads of data/<set>: set.json and a mean image, by default one that is nowhere the same."""
    folder.mkdir()
    mean = np.random.default_rng(2).uniform(90, 140, (3, size, size)) if mean is None else mean
    (folder / "mean.binaryproto").write_bytes(mean_bytes(mean))
    (folder / "set.json").write_text(json.dumps({"name": folder.name, "size": size, **record}))
    return folder


def drawn(count, size, seed=5):
    """(count, 3, size, size) uint8: a shaded ground, a few shapes with edges, noise; as varied as photographs."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        ground = cv2.resize(random.uniform(0, 255, (4, 4, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
        image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
        for _ in range(8):
            first, second = np.sort(random.integers(0, size, (2, 2)), axis=0)
            ImageDraw.Draw(image).ellipse([*first.tolist(), *second.tolist()], tuple(random.integers(0, 256, 3).tolist()))
        images.append(np.clip(np.asarray(image) + random.normal(0, 8, (size, size, 3)), 0, 255))
    return np.array(images).astype(np.uint8).transpose(0, 3, 1, 2)


@pytest.fixture(scope="module")
def model(small_set, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "runs" / "small" / "lifted_8" / "seed1", small_set)


@pytest.fixture
def copy(model, tmp_path):
    return Path(shutil.copytree(model, tmp_path / "copy"))


# --- the same embedding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, size", [("cub", 256), ("demo", 64)])
def test_opencv_computes_what_caffe_does(caffe, tmp_path, name, size):
    """The whole way from stored images, with Caffe's own crop and mean on its side."""
    from data_prep.imagenet import imagenet_mean
    from pair_batch import centre_crop, transform

    mean = imagenet_mean() if name == "cub" else None
    data_set, deploy = make_set(tmp_path / name, size, mean), ROOT / "prototxt" / name / "lifted_64" / "deploy.prototxt"
    random_weights(deploy, tmp_path / "run" / "model.caffemodel")
    write_model(tmp_path / "run", data_set, deploy)
    embedder, images = Embedder(tmp_path / "run"), drawn(3, size)

    net = caffe.Net(str(deploy), str(tmp_path / "run" / "model.caffemodel"), caffe.TEST)
    crop = net.blobs["data"].data.shape[-1]
    net.blobs["data"].reshape(len(images), 3, crop, crop)
    for image, slot in zip(images, net.blobs["data"].data):
        transform(image, embedder.mean, crop, *centre_crop((size - crop, size - crop)), False, slot)
    net.forward()
    expected = net.blobs["fc_embedding"].data.copy()

    assert expected.shape == (3, 64)
    largest = np.abs(expected).max()
    apart = [np.abs(expected[i] - expected[j]).max() / largest for i in range(3) for j in range(i)]
    assert min(apart) > 0.02, "the images are all the same to this net: nothing is compared"
    assert (np.abs(expected) > 0.01 * largest).mean() > 0.5, "most numbers are next to nothing"
    found = embedder.embed(images)
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.abs(found - expected).max() / largest <= model_folder.PARITY


@pytest.mark.parametrize("old, new", [("kernel_size: 3 stride: 2", "kernel_size: 2 stride: 2"), ("0.015625", "0.015635")])
def test_a_net_that_opencv_computes_otherwise_is_refused(model, small_set, tmp_path, monkeypatch, old, new):
    opened = model_folder._open_net
    changed = DEPLOY.replace(old, new).encode()
    assert changed != DEPLOY.encode()
    monkeypatch.setattr(model_folder, "_open_net", lambda deploy, weights, where: opened(changed, weights, where))
    shutil.copy(model / "model.caffemodel", tmp_path)
    with pytest.raises(ValueError, match="deploy.prototxt: OpenCV computes other"):
        write_model(tmp_path, small_set, model / "deploy.prototxt")
    assert not (tmp_path / "model.json").exists()


def test_an_embedding_does_not_depend_on_its_batch(model):
    embedder, images = Embedder(model), drawn(model_folder.BATCH + 3, 16)
    together = embedder.embed(images)
    np.testing.assert_array_equal(together, np.concatenate([embedder.embed(image[None]) for image in images]))
    assert embedder.embed(images[:0]).shape == (0, 8)
    with pytest.raises(ValueError, match=r"uint8 \(n, 3, 16, 16\), not float64"):
        embedder.embed(images / 2)
    with pytest.raises(ValueError, match="not uint8"):
        embedder.embed(images[:, :, :14, :14])


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_files_of_a_model(model, small_set):
    from pair_batch import read_mean

    record = read_model(model)
    assert {key: record[key] for key in ("name", "image_size", "crop", "resize", "upright", "blob", "dimensions", "set")} == {
        "name": "small/lifted_8/seed1", "image_size": 16, "crop": 14, "resize": "plain", "upright": True, "blob": "fc_embedding",
        "dimensions": 8, "set": "set"}  # fmt: skip
    mean = np.load(model / "mean.npy")
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, read_mean(str(small_set / "mean.binaryproto")))
    assert (model / "deploy.prototxt").read_text() == DEPLOY


@pytest.mark.parametrize("record, resize, upright", [({"options": {"resize": "crop15"}}, "crop15", False), ({}, "plain", False),
                                                     ({"images": "photos"}, "plain", True)])  # fmt: skip
def test_images_are_made_as_those_of_the_set(model, tmp_path, record, resize, upright):
    shutil.copytree(model, tmp_path / "run")
    write_model(tmp_path / "run", make_set(tmp_path / "sop", 16, **record), model / "deploy.prototxt")
    embedder = Embedder(tmp_path / "run")
    assert (embedder.model["resize"], embedder.model["upright"], embedder.model["set"]) == (resize, upright, "sop")
    turned = Image.fromarray(drawn(1, 40)[0].transpose(1, 2, 0))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    np.testing.assert_array_equal(embedder.load(tmp_path / "turned.png"), load_image(tmp_path / "turned.png", 16, resize, upright))


def test_writing_again_and_from_the_command_line(copy, small_set):
    written = {path.name: path.read_bytes() for path in copy.iterdir()}
    done = tool("tools/model_folder.py", "--run", copy, "--set", small_set, "--net", copy / "deploy.prototxt")
    assert done.returncode == 0 and "a model of 8 dimensions for images of 16x16" in done.stdout, done.stderr
    assert f"python tools/search.py index <folder> --model {copy}" in done.stdout
    assert {path.name: path.read_bytes() for path in copy.iterdir() if path.name != "model.json"} == {
        name: content for name, content in written.items() if name != "model.json"
    }


@pytest.mark.parametrize("change, says", [
    (lambda text: 'layer { name: "l" type: "Python" bottom: "data" top: "l" }' + text, "'l' of type Python: it is made to train"),
    (lambda text: text + 'layer { name: "s" type: "SoftmaxWithLoss" bottom: "a" top: "s" }', "'s' of type SoftmaxWithLoss"),
    (lambda text: text.replace('type: "Input"', 'type: "DummyData"'), "'data' of type DummyData"),
    (lambda text: text.replace("fc_embedding", "features"), "has no layer and blob fc_embedding"),
    (lambda text: text.replace('"data"', '"image"'), "expected an input `data`"),
    (lambda text: text.replace("dim: 14 dim: 14", "dim: 14 dim: 15"), "expected an input `data` of shape .*, found .1, 3, 14, 15"),
    (lambda text: text.replace("dim: 14", "dim: 17"), "takes crops of 17, but .* images of 16x16"),
    (lambda text: text.replace("num_output: 8 kernel", "num_output: 9 kernel"), "layer 'conv' has weights of shape"),
    (lambda text: text + "layer {", "is not a NetParameter"),
])  # fmt: skip
def test_a_net_that_does_not_fit_is_refused(copy, small_set, tmp_path, change, says):
    (tmp_path / "net.prototxt").write_text(change(DEPLOY))
    before = (copy / "model.json").read_bytes()
    with pytest.raises(ValueError, match=says):
        write_model(copy, small_set, tmp_path / "net.prototxt")
    assert (copy / "model.json").read_bytes() == before and read_model(copy)


def test_what_is_missing_to_write(copy, small_set, tmp_path):
    with pytest.raises(ValueError, match="model.caffemodel: no such file; tools/train.py makes it"):
        write_model(tmp_path, small_set, copy / "deploy.prototxt")
    with pytest.raises(ValueError, match="set.json: is missing or damaged; make data-"):
        write_model(copy, tmp_path, copy / "deploy.prototxt")
    with pytest.raises(ValueError, match="none.prototxt: no such file"):
        write_model(copy, small_set, copy / "none.prototxt")


def spoil(folder, value=np.nan):
    """Put a NaN into the weights of a model, as training would."""
    net = NetParameter()
    net.ParseFromString((folder / "model.caffemodel").read_bytes())
    next(layer for layer in net.layer if layer.name == "fc_embedding").blobs[0].data[0] = value
    (folder / "model.caffemodel").write_bytes(net.SerializeToString())


def test_weights_that_are_not_finite(copy, small_set):
    spoil(copy)
    with pytest.raises(ValueError, match="model.caffemodel: its embeddings are not finite.*diverged"):
        write_model(copy, small_set, copy / "deploy.prototxt")
    agree(copy)
    with pytest.raises(ValueError, match="^b.png: its embedding is not finite .1 of 2 images.; did the training of .*copy/model"):
        images = drawn(2, 16)
        embedder = Embedder(copy)
        embedder.net = Once(embedder.net)
        embedder.embed(images, ["a.png", "b.png"])
    with pytest.raises(ValueError, match="^image 0: its embedding is not finite .2 of 2 images"):
        Embedder(copy).embed(drawn(2, 16))


class Once:
    """A net whose first row is always finite."""

    def __init__(self, net):
        self.setInput, self.net = net.setInput, net

    def forward(self, blob):
        found = self.net.forward(blob)
        found[0] = 0
        return found


def agree(folder):
    """Write the SHA-256 of the files as they are into model.json."""
    record = json.loads((folder / "model.json").read_text())
    record |= {
        key: model_folder.hashlib.sha256((folder / name).read_bytes()).hexdigest() for key, name in model_folder.FILES.items()
    }
    (folder / "model.json").write_text(json.dumps(record))


# --- reading what is damaged -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deploy.prototxt", "model.caffemodel", "mean.npy", "model.json"])
def test_files_that_are_missing_or_damaged(copy, name):
    content = (copy / name).read_bytes()
    for damaged in (content[:-7], content[: len(content) // 2], b"", content[:-9] + b"\xff" + content[-8:]):
        (copy / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}: is .*tools/model_folder.py"):
            Embedder(copy)
    (copy / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: not there.*tools/model_folder.py"):
        read_model(copy)


@pytest.mark.parametrize("name, content, says", [
    ("model.caffemodel", b"\x00\x01 weights", "copy: OpenCV cannot"),
    ("deploy.prototxt", b"layer { bad", "copy: OpenCV cannot read the net or its weights"),
    ("model.caffemodel", b"", "OpenCV cannot"),
    ("mean.npy", b"no array", "mean.npy: cannot be read as an array"),
    ("mean.npy", None, "mean.npy: expected finite float32 .3, 16, 16., found float64 .3, 8, 8."),
    ("mean.npy", "pickle", "mean.npy: cannot be read as an array"),
    ("mean.npy", "npz", "mean.npy: cannot be read as an array .*python tools/model_folder.py"),
])  # fmt: skip
def test_files_that_agree_with_model_json_and_are_none(copy, name, content, says):
    if content == "npz":
        with open(copy / name, "wb") as stream:
            np.savez(stream, mean=np.zeros((3, 16, 16), np.float32))
    elif content is None or content == "pickle":
        np.save(copy / name, np.zeros((3, 8, 8)) if content is None else np.array([{}]))
    else:
        (copy / name).write_bytes(content)
    agree(copy)
    with pytest.raises(ValueError, match=says):
        Embedder(copy).embed(drawn(1, 16))


@pytest.mark.parametrize("key, value", [("crop", 0), ("crop", 17), ("crop", "14"), ("resize", "stretch"), ("upright", 1),
                                        ("dimensions", None), ("image_size", True), ("weights", [])])  # fmt: skip
def test_a_record_that_makes_no_sense(copy, key, value):
    record = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**record, key: value}))
    with pytest.raises(ValueError, match=f"model.json: is damaged.*{key}"):
        read_model(copy)
    (copy / "model.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="model.json: is damaged"):
        read_model(copy)


def test_a_net_of_other_dimensions_than_recorded(copy):
    record = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**record, "dimensions": 9}))
    with pytest.raises(ValueError, match="gives 8 numbers an image, model.json says 9"):
        Embedder(copy).embed(drawn(1, 16))
