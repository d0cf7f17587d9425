"""What scripts written for pycaffe in its day call, under today's Python, numpy, scikit-image and protobuf."""

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from data_prep.files import read_record

SCRIPTS = ROOT / ".caffe/caffe/python"
pytestmark = [
    pytest.mark.skipif(
        "edits" not in read_record(ROOT / ".caffe/caffe/caffe.json"),
        reason="the pycaffe that was named to make env is used as it is",
    ),
    pytest.mark.filterwarnings("error::DeprecationWarning"),  # what the next numpy or scikit-image refuses
]

# The mean of each channel, so that what comes out tells what went in.
NET = """
name: "means"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 10 dim: 3 dim: 8 dim: 8 } } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "mean" type: "Flatten" bottom: "pool" top: "mean" }
"""


@pytest.fixture(scope="module")
def net(caffe, tmp_path_factory):
    """(deploy.prototxt, weights, of which it has none) as text."""
    folder = tmp_path_factory.mktemp("net")
    (folder / "deploy.prototxt").write_text(NET)
    paths = str(folder / "deploy.prototxt"), str(folder / "means.caffemodel")
    caffe.Net(paths[0], caffe.TEST).save(paths[1])
    return paths


@pytest.fixture
def image(tmp_path):
    """(path, pixels) of a random PNG."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return str(tmp_path / "image.png"), pixels


def test_load_image(caffe, image, tmp_path):
    path, pixels = image
    assert caffe.io.load_image(path) == pytest.approx(pixels / 255)
    grey = caffe.io.load_image(path, color=False)
    assert grey.shape == (12, 10, 1) and grey[..., 0] == pytest.approx(pixels / 255 @ [0.2125, 0.7154, 0.0721], abs=1e-6)
    alpha = np.dstack((pixels, np.full((12, 10), 9, np.uint8)))
    for name, stored, expected in (("alpha", alpha, pixels), ("grey", pixels[..., 0], np.repeat(pixels[..., :1], 3, axis=2))):
        Image.fromarray(stored).save(tmp_path / f"{name}.png")
        assert caffe.io.load_image(str(tmp_path / f"{name}.png")) == pytest.approx(expected / 255)


def test_datum(caffe):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    for array, field in ((pixels, "data"), (pixels.astype(np.float32) / 2, "float_data")):
        datum = caffe.io.array_to_datum(array, label=7)
        assert len(getattr(datum, field)) == 12 and datum.label == 7
        again = caffe.io.datum_to_array(datum)
        assert np.array_equal(again, array)
        again += 1  # it is the caller's own


def test_blobs(caffe):
    data, diff = np.arange(6.0).reshape(2, 3), np.ones((2, 3))
    blob = caffe.io.array_to_blobproto(data, diff)
    assert np.array_equal(caffe.io.blobproto_to_array(blob), data)
    assert np.array_equal(caffe.io.blobproto_to_array(blob, return_diff=True), diff)
    (again,) = caffe.io.blobprotovector_str_to_arraylist(caffe.io.arraylist_to_blobprotovector_str([data]))
    assert np.array_equal(again, data)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_resize_image(caffe, channels):
    """To a quarter: the mean of the four pixels in the middle of each 4 x 4, which is bilinear without a blur before it."""
    image = np.random.default_rng(0).random((8, 16, channels), dtype=np.float32)
    small = caffe.io.resize_image(image, (2, 4))
    if channels == 2:  # scipy's zoom, whose corners are those of the image
        assert small[[0, 0, 1, 1], [0, 3, 0, 3]] == pytest.approx(image[[0, 0, 7, 7], [0, 15, 0, 15]], abs=1e-6)
    else:
        blocks = image.reshape(2, 4, 4, 4, channels)
        assert small == pytest.approx(blocks[:, 1:3, :, 1:3].mean(axis=(1, 3)), abs=1e-6)
    assert caffe.io.resize_image(np.full_like(image, 3), (2, 4)) == pytest.approx(np.full((2, 4, channels), 3))


def test_transformer(caffe, image):
    transformer = caffe.io.Transformer({"data": (1, 3, 12, 10)})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_channel_swap("data", (2, 1, 0))
    transformer.set_raw_scale("data", 255)
    transformer.set_mean("data", np.array([104.0, 117.0, 123.0]))
    transformer.set_input_scale("data", 0.5)
    made = transformer.preprocess("data", image[1] / 255)
    assert made == pytest.approx((image[1][..., ::-1] - [104, 117, 123.0]).transpose(2, 0, 1) / 2, abs=1e-4)
    assert transformer.deprocess("data", made) == pytest.approx(image[1] / 255, abs=1e-6)
    mean = np.random.default_rng(1).random((3, 24, 20))
    transformer.set_mean("data", mean)  # of another size: pairs of pixels
    assert transformer.mean["data"] == pytest.approx(mean.reshape(3, 12, 2, 10, 2).mean(axis=(2, 4)), abs=1e-6)


def test_classifier(caffe, net, image):
    pixels = image[1].astype(np.float32)
    classifier = caffe.Classifier(*net, image_dims=(12, 10), mean=np.array([1.0, 2.0, 3.0]), channel_swap=(2, 1, 0))
    corners = [pixels[top : top + 8, left : left + 8] for top in (0, 4) for left in (0, 2)]
    for oversample, crops in ((True, [*corners, pixels[2:10, 1:9]]), (False, [pixels[2:10, 1:9]])):
        found = classifier.predict([pixels, pixels], oversample=oversample)
        expected = np.mean(crops, axis=(0, 1, 2))[::-1] - [1, 2, 3]
        assert found == pytest.approx(np.array([expected, expected]), abs=1e-3)


def test_detector(caffe, net, image):
    path, pixels = image
    detector = caffe.Detector(*net, mean=np.array([10.0, 20.0, 30.0]), raw_scale=255, channel_swap=(2, 1, 0))
    windows = np.array([[0, 0, 8, 8], [4, 2, 12, 10]])
    found = detector.detect_windows(zip([path], [windows]))
    assert [entry["filename"] for entry in found] == [path] * 2
    for entry, (top, left, bottom, right) in zip(found, windows):
        expected = pixels[top:bottom, left:right].mean(axis=(0, 1))[::-1] - [10, 20, 30]
        assert entry["prediction"] == pytest.approx(expected, abs=1e-3)


def test_detector_with_context(caffe, net, tmp_path):
    """A window of 5 x 5 in a corner, doubled by its context, 11 x 11 from (-2, -2): 1 of 8 rows and columns is outside."""
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "plain.png")
    detector = caffe.Detector(*net, mean=np.array([10.0, 20.0, 30.0]), raw_scale=255, channel_swap=[2, 1, 0], context_pad=2)
    (found,) = detector.detect_windows([(str(tmp_path / "plain.png"), np.array([[0, 0, 4, 4]]))])
    # Outside is the mean, of which nothing is left.
    assert found["prediction"] == pytest.approx(np.array([40.0, 80.0, 170.0]) * 49 / 64, abs=1e-3)


def test_net_spec_and_coordinates(caffe):
    from caffe import layers, params
    from caffe.coord_map import coord_map_from_to, crop

    spec = caffe.NetSpec()
    spec.data, spec.label = layers.Data(batch_size=4, backend=params.Data.LMDB, source="x", ntop=2)
    spec.conv = layers.Convolution(spec.data, kernel_size=5, num_output=np.int64(2), stride=2, weight_filler={"type": "xavier"})
    spec.up = layers.Deconvolution(spec.conv, convolution_param={"num_output": 2, "kernel_size": 3, "stride": 2})
    spec.relu = layers.ReLU(spec.up, in_place=True)
    spec.crop = crop(spec.data, spec.up)
    net = spec.to_proto()
    assert [layer.type for layer in net.layer] == ["Data", "Convolution", "Deconvolution", "ReLU", "Crop"]
    assert net.layer[1].convolution_param.num_output == 2 and list(net.layer[3].top) == ["up"]
    # Pixel 2 of the data is in the middle of the first window, whose value is spread around pixel 1.
    assert coord_map_from_to(spec.data, spec.up) == (1, 1, -1) and list(net.layer[4].crop_param.offset) == [1]
    assert caffe.to_proto(spec.conv).layer[1].type == "Convolution"


def test_timer(caffe):
    timer = caffe.Timer()
    timer.start()
    time.sleep(0.02)
    timer.stop()
    assert 20 <= timer.ms < 2000


def test_passes(caffe, tmp_path):
    net = f"""{NET} layer {{ name: "ip" type: "InnerProduct" bottom: "mean" top: "ip" inner_product_param {{ num_output: 2
        weight_filler {{ type: "xavier" }} }} }} force_backward: true"""
    (tmp_path / "net.prototxt").write_text(net)
    trained = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    data = np.random.default_rng(0).random((13, 3, 8, 8), dtype=np.float32)
    weights = trained.params["ip"][0].data
    outputs, gradients = trained.forward_backward_all(data=data, ip=np.ones((13, 2), np.float32))
    assert outputs["ip"] == pytest.approx(data.mean(axis=(2, 3)) @ weights.T, abs=1e-5)
    assert gradients["data"][12, :, 0, 0] == pytest.approx(weights.sum(axis=0) / 64, abs=1e-6)
    assert trained.forward_all(data=data)["ip"].shape == (13, 2) and list(trained.top_names["ip"]) == ["ip"]
    assert list(trained.layer_dict) == list(trained.blob_loss_weights) == ["data", "pool", "mean", "ip"]


def script(name, *arguments):
    command = [sys.executable, SCRIPTS / name, *map(str, arguments)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_classify_py(net, image, tmp_path):
    given = ("--model_def", net[0], "--pretrained_model", net[1], "--mean_file", "", "--images_dim", "12,10", "--center_only")
    script("classify.py", image[0], tmp_path / "out.npy", *given)
    expected = image[1][2:10, 1:9].mean(axis=(0, 1))[::-1]
    assert np.load(tmp_path / "out.npy").ravel() == pytest.approx(expected, abs=1e-3)


def test_detect_py(net, image, tmp_path):
    pytest.importorskip("pandas", reason="detect.py needs pandas, which make env does not install")
    (tmp_path / "windows.csv").write_text(f"filename,xmin,ymin,xmax,ymax\n{image[0]},0,0,8,8\n{image[0]},2,4,10,12\n")
    given = ("--model_def", net[0], "--pretrained_model", net[1], "--mean_file", "", "--crop_mode", "list", "--context_pad", 0)
    script("detect.py", tmp_path / "windows.csv", tmp_path / "out.csv", *given)
    rows = np.loadtxt(tmp_path / "out.csv", delimiter=",", skiprows=1, usecols=range(1, 8))
    windows = [image[1][:8, :8], image[1][4:, 2:]]
    assert rows[:, :4].tolist() == [[0, 0, 8, 8], [4, 2, 12, 10]]
    assert rows[:, 4:] == pytest.approx(np.array([window.mean(axis=(0, 1))[::-1] for window in windows]), abs=1e-3)


def test_draw(caffe, net):
    import caffe.draw
    from google.protobuf import text_format

    drawn = caffe.draw.get_pydot_graph(text_format.Parse(NET, caffe.proto.caffe_pb2.NetParameter()), "LR").to_string()
    for word in ("digraph means", "(Input)", "(Pooling AVE)", "-> mean"):
        assert word in drawn


@pytest.mark.skipif(not shutil.which("dot"), reason="draw_net.py needs Graphviz, which make env does not install")
def test_draw_net_py(net, tmp_path):
    script("draw_net.py", net[0], tmp_path / "net.png")
    assert Image.open(tmp_path / "net.png").size[0] > 100
