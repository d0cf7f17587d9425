"""`make train-cub`, `train-cars196`, `train-sop` from a miniature archive to the comparison table, as a person calls them."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time

import miniature
import numpy as np
import pytest
from caffe_pb2 import BlobProto, NetParameter, SolverState, V1LayerParameter
from conftest import ROOT, draw_images, start, stock_caffe, tool
from google.protobuf import text_format

from pair_batch import draw_crops, read_mean
from tools.caffe_files import check_weights, read_binary, read_text
from tools.experiment import Paper
from tools.features import load_features


@pytest.fixture(scope="module")
def weights(caffe, tmp_path_factory):
    """A file like bvlc_googlenet.caffemodel: random weights for the whole trunk, 2014's format, and layers that we lack."""
    caffe.set_random_seed(1)
    net = caffe.Net(str(ROOT / "prototxt/cub/lifted_64/deploy.prototxt"), caffe.TEST)
    old = NetParameter(name="GoogleNet")
    for name, blobs in net.params.items():
        if name != "fc_embedding":
            old.layers.append(
                V1LayerParameter(name=name, type=V1LayerParameter.CONVOLUTION, blobs=[legacy(blob.data) for blob in blobs])
            )
    old.layers.append(V1LayerParameter(name="loss3/classifier", type=V1LayerParameter.INNER_PRODUCT,
                                       blobs=[legacy(np.zeros((10, 1024))), legacy(np.zeros(10))]))  # fmt: skip
    path = tmp_path_factory.mktemp("weights") / "start.caffemodel"
    path.write_bytes(old.SerializeToString())
    return path


def legacy(array):
    """A blob whose shape is written with four numbers."""
    num, channels, height, width = (1,) * (4 - array.ndim) + array.shape
    return BlobProto(num=num, channels=channels, height=height, width=width, data=array.ravel().tolist())


@pytest.fixture
def checkout(tmp_path):
    """A folder with this checkout's code and build, and no data or runs of its own yet."""
    home = tmp_path / "checkout"
    home.mkdir()
    for name in ("Makefile", "requirements.txt", "prototxt", "python_layers", "tools", "data_prep", ".venv", ".caffe"):
        (home / name).symlink_to(ROOT / name)
    return home


def make(home, *arguments, **environment):
    """`make` in the folder `home`; env is passed over, since the checkout has it."""
    command = ["make", "-o", "env", *map(str, arguments)]
    return subprocess.run(command, cwd=home, text=True, capture_output=True, timeout=300, env={**os.environ, **environment})


ARCHIVES = {"cub": miniature.cub, "cars196": miniature.cars_in_two, "sop": miniature.sop}
PUBLISHED = {"cub": ("GoogLeNet, size not stated", "42.8"), "cars196": ("GoogLeNet, size not stated", "49.5"),
             "sop": ("GoogLeNet, 512 dimensions", "62.1")}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_from_archive_to_table(name, checkout, weights, tmp_path):
    archive = ARCHIVES[name](tmp_path)
    given = (f"train-{name}", f"ARCHIVE={archive}", f"WEIGHTS={weights}", "COUNTS=any", "BATCH=8", "ITERS=2", "DIM=128")
    done = make(checkout, *given)
    assert done.returncode == 0, done.stderr
    run = checkout / f"runs/{name}/lifted_128_m8/seed1"
    report = (run / "report.md").read_text()
    assert report.split("\n", 2)[2] in done.stdout
    above, _, below = report.partition("| here: after 2 iterations")
    assert "This is not the official set" in above and "- train: 18 images, published" in above
    net, first = PUBLISHED[name]
    assert re.search(rf"\| published: lifted, {net} \[\d\] +\| +{first} \|", above)
    base_lr = "1e-06" if name == "cub" else "0.0001"
    assert f"Recipe: base_lr {base_lr}, 2 iterations, batch 8, seed 1 (prototxt/{name}/lifted_128/solver.prototxt)" in below
    assert "The starting weights were not BVLC's GoogLeNet" in below and "[1] Song et al." in below
    assert (run / "retrieval.png").read_bytes().startswith(b"\x89PNG")
    features = load_features(run / "features.npz")
    assert features.features.shape == (18, 128) and features.about["set"]["official"] is False
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["recall_at"]) == ({"1", "10"} if name == "sop" else {"1", "2", "4", "8"})

    # The trunk began with the given weights, the embedding at random with its own filler.
    first = {layer.name: layer.blobs for layer in read_binary(run / "snapshot_iter_0.caffemodel", NetParameter()).layer}
    for layer in read_binary(weights, NetParameter()).layers:
        if layer.name in first:
            np.testing.assert_array_equal(first[layer.name][0].data, layer.blobs[0].data)
    embedding = np.array(first["fc_embedding"][0].data)
    assert embedding.size == 128 * 1024 and abs(embedding).max() <= (3 / 1024) ** 0.5 < 1.01 * abs(embedding).max()
    assert first["pair_batch"][0].data[0] == 0

    again = make(checkout, *given)
    assert again.returncode == 0 and "is made already" in again.stdout and "trained already" in again.stdout
    assert report.split("\n", 2)[2] in again.stdout
    before = (run / "metrics.json").stat().st_mtime_ns
    assert make(checkout, *given).returncode == 0 and (run / "metrics.json").stat().st_mtime_ns == before


def test_a_sweep_over_the_methods(checkout, weights, tmp_path):
    given = (f"ARCHIVE={miniature.cub(tmp_path)}", f"WEIGHTS={weights}", "COUNTS=any", "ITERS=2")
    sweep = ("-j2", "reproduce-cub", *given, "METHODS=contrastive,triplet,pool5", "DIMS=128", "BATCH=6")
    (checkout / "prototxt").unlink()  # nets that are not committed are written there
    shutil.copytree(ROOT / "prototxt", checkout / "prototxt", ignore=lambda folder, names: [n for n in names if n.endswith("_128")])
    done = make(checkout, *sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 done of 3 cells" in done.stdout
    report = (checkout / "runs/cub/report.md").read_text()
    for row in ("contrastive 128, batch 6, lr 1e-06, 2 it", "triplet 128, batch 6, lr 1e-06, 2 it", "pool5 1024, not fine-tuned"):
        assert f": {row}" in report, report
    assert "not fine-tuned" in report
    assert "published no solver" in report
    assert (checkout / "runs/cub/curves.png").read_bytes().startswith(b"\x89PNG")
    assert load_features(checkout / "runs/cub/pool5_1024/pretrained/features.npz").features.shape == (18, 1024)
    logs = {path.stem: path.stat().st_size for path in (checkout / "runs/cub/sweep").glob("*.log")}
    assert logs.keys() == {"contrastive_128_m6_seed1", "triplet_128_m6_seed1", "pool5"}
    before = {
        path: path.stat().st_mtime_ns for path in (checkout / "runs/cub").rglob("*") if path.suffix in (".npz", ".caffemodel")
    }
    assert make(checkout, *sweep).returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}  # what is done is not done again


def test_interrupted_and_called_again_it_ends_as_if_undisturbed(checkout, weights, tmp_path):
    given = [f"ARCHIVE={miniature.cub(tmp_path)}", f"WEIGHTS={weights}", "COUNTS=any", "BATCH=4", "ITERS=5"]
    assert make(checkout, "train-cub", *given, "RUN=whole").returncode == 0
    run = checkout / "runs/cub/lifted_64_m4/seed1"
    options = ["--set", "data/cub", "--batch", "4", "--weights", weights, "--iterations", "5", "--run", run.relative_to(checkout)]
    command = [checkout / ".venv/bin/python", "tools/train.py", "--solver", "prototxt/cub/lifted_64/solver.prototxt", *options]
    process = start(command, cwd=checkout)
    deadline = time.monotonic() + 120
    while not ((run / "log.csv").exists() and len((run / "log.csv").read_text().splitlines()) > 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output = process.communicate()[0]
    assert process.returncode == 130 and "the same command goes on" in output, output
    done = make(checkout, "train-cub", *given)
    assert done.returncode == 0 and "going on from iteration" in done.stdout, done.stderr
    for name in ("model.caffemodel", "metrics.json", "log.csv"):
        found, whole = ((folder / name).read_bytes() for folder in (run, run.with_name("whole")))
        if name == "log.csv":  # but for the time it took
            found, whole = ([row[:-1] for row in csv.reader(text.decode().splitlines())] for text in (found, whole))
        if name == "metrics.json":
            found, whole = (json.loads(text)["recall_at"] for text in (found, whole))
        assert found == whole, name


def literal_batch(source, mean, tops, lefts, mirrored):
    """Crop, subtract the mean, mirror: pixel by pixel (paper, section 5: random crop of 227 from 256, and mirror)."""
    out = np.empty((len(source), 3, 227, 227), np.float32)
    for number, image in enumerate(source):
        for row in range(227):
            for column in range(227):
                target = 226 - column if mirrored[number] else column
                for channel in range(3):
                    pixel = image[channel][tops[number] + row][lefts[number] + column]
                    out[number, channel, row, target] = (
                        np.float32(pixel) - mean[channel][tops[number] + row][lefts[number] + column]
                    )
    return out


def test_the_first_batch_is_the_literal_transform(caffe, tmp_path, monkeypatch):
    """What GoogLeNet sees first, from the JPEGs in the archive and the crops and mirrors drawn for batch 0."""
    from data_prep.image import load_image

    options = ("--set", "cub", "--out", tmp_path / "data/cub", "--counts", "any", "--batch", 4)
    assert tool("data_prep/paper_sets.py", *options, "--archive", miniature.cub(tmp_path)).returncode == 0
    net = (ROOT / "prototxt/cub/lifted_64/train_val.prototxt").read_text().replace("pairs.npz", "pairs_m4.npz")
    message = text_format.Parse(net, NetParameter())
    del message.layer[1:]
    (tmp_path / "data_only.prototxt").write_text(text_format.MessageToString(message))
    monkeypatch.chdir(tmp_path)
    net = caffe.Net("data_only.prototxt", caffe.TRAIN)
    net.forward()
    members = miniature.cub_members()
    with open("data/cub/train.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    images = np.load("data/cub/pairs_m4.npz")["batches"][0]
    source = [load_image(members[rows[place]["path"]], 256).tolist() for place in images]
    mean = read_mean("data/cub/mean.binaryproto")
    crops = draw_crops(1, 0, 4, (29, 29))
    assert {0, 1} == set(np.concatenate([crops[2], draw_crops(1, 1, 4, (29, 29))[2]]).tolist())
    np.testing.assert_array_equal(net.blobs["data"].data, literal_batch(source, mean, *crops))
    assert net.blobs["label"].data.tolist() == [int(rows[place]["label"]) for place in images]


def test_the_paired_layout_under_the_stock_binary(caffe, checkout, weights, tmp_path, monkeypatch):
    """Caffe's own Data layer on the authors' LMDB gives the batches that our layer reads from the image-once LMDB."""
    done = make(checkout, "data-cub", f"ARCHIVE={miniature.cub(tmp_path)}", "COUNTS=any", "BATCH=8", "LAYOUT=paired")
    assert done.returncode == 0, done.stderr
    folder = checkout / "prototxt/cub/lifted_64"
    paired = (folder / "train_val_paired.prototxt").read_text()
    monkeypatch.chdir(checkout)
    small = paired.replace("train_paired.lmdb", "train_paired_m8.lmdb").replace("batch_size: 128", "batch_size: 8")
    assert small.count("_m8") == 1 and small.count("batch_size: 8") == 1
    ours = text_format.Parse((folder / "train_val.prototxt").read_text().replace("pairs.npz", "pairs_m8.npz"), NetParameter())
    stock = text_format.Parse(small, NetParameter())
    assert stock.layer[0].transform_param.mirror
    stock.layer[0].transform_param.mirror = False  # Caffe's layer would mirror in TEST too
    for message, name in ((ours, "ours"), (stock, "stock")):
        del message.layer[1:]
        (tmp_path / f"{name}.prototxt").write_text(text_format.MessageToString(message))
    nets = [caffe.Net(str(tmp_path / f"{name}.prototxt"), caffe.TEST) for name in ("ours", "stock")]  # centre crops
    for _ in range(35):  # one pass has 33
        for net in nets:
            net.forward()
        np.testing.assert_array_equal(nets[0].blobs["label"].data, nets[1].blobs["label"].data)
        np.testing.assert_array_equal(nets[0].blobs["data"].data, nets[1].blobs["data"].data)

    for method in ("lifted", "contrastive"):
        folder = checkout / f"prototxt/cub/{method}_64"
        paired = (folder / "train_val_paired.prototxt").read_text()
        small = paired.replace("train_paired.lmdb", "train_paired_m8.lmdb").replace("batch_size: 128", "batch_size: 8")
        (tmp_path / "train_val.prototxt").write_text(small)
        solver = (folder / "solver_paired.prototxt").read_text()
        solver = re.sub(r'net: ".*"', f'net: "{tmp_path}/train_val.prototxt"', solver).replace("max_iter: 20000", "max_iter: 2")
        (tmp_path / "solver.prototxt").write_text(solver)
        done = stock_caffe("train", "-solver", tmp_path / "solver.prototxt", "-weights", weights, cwd=checkout)
        assert done.returncode == 0, done.stderr[-2000:]
        state = read_binary(checkout / f"runs/cub/{method}_64/caffe/snapshot_paired_iter_2.solverstate", SolverState())
        assert state.iter == 2


def test_the_stock_binary_trains_a_run_s_files_and_make_takes_it_up(checkout, weights, tmp_path):
    """What the message on a CPU advises: `caffe train` elsewhere, then the same make command scores what it saved."""
    given = [f"ARCHIVE={miniature.cub(tmp_path)}", f"WEIGHTS={weights}", "COUNTS=any", "BATCH=4", "ITERS=3"]
    assert make(checkout, "train-cub", *given, "RUN=python").returncode == 0
    run = checkout / "runs/cub/lifted_64_m4"
    (run / "stock").mkdir()
    for name in ("solver.prototxt", "train_val.prototxt"):
        (run / "stock" / name).write_text((run / "python" / name).read_text().replace("lifted_64_m4/python", "lifted_64_m4/stock"))
    record = (run / "python" / "run.json").read_text()
    (run / "stock" / "run.json").write_text(record)
    done = stock_caffe("train", "-solver", "runs/cub/lifted_64_m4/stock/solver.prototxt", "-weights", weights, cwd=checkout)
    assert done.returncode == 0, done.stderr[-2000:]
    done = make(checkout, "train-cub", *given, "RUN=stock")
    assert done.returncode == 0 and "going on from iteration 3" in done.stdout, done.stderr
    found, ours = ({layer.name: layer.blobs for layer in read_binary(run / name / "model.caffemodel", NetParameter()).layer}
                   for name in ("stock", "python"))  # fmt: skip
    assert found.keys() == ours.keys()
    assert found["pair_batch"][0].data[0] == ours["pair_batch"][0].data[0] == 3


def test_weights_are_checked_before_caffe_aborts(caffe, weights, tmp_path):
    net = caffe.Net(str(ROOT / "prototxt/cub/lifted_64/deploy.prototxt"), caffe.TEST)
    check_weights(net, weights, new=("fc_embedding",))
    with pytest.raises(ValueError, match="has no weights for the net's layer 'fc_embedding'"):
        check_weights(net, weights)
    whole = read_binary(weights, NetParameter())

    def changed(change):
        message = NetParameter.FromString(whole.SerializeToString())
        change(message)
        (tmp_path / "changed.caffemodel").write_bytes(message.SerializeToString())
        return tmp_path / "changed.caffemodel"

    def drop(message):
        del message.layers[5]

    def rename_all(message):
        for layer in message.layers:
            layer.name += "_"

    for change, expected in (
        (drop, "has no weights for the net's layer 'inception_3a/3x3'; it was made for another net"),
        (rename_all, "has no weights for the net's layer 'conv1/7x7_s2' and 56 more of its 58 layers"),
        (
            lambda message: message.layers[0].blobs.pop(),
            r"layer 'conv1/7x7_s2' has weights of shape \[\(64, 3, 7, 7\)\], the net needs",
        ),
        (lambda message: setattr(message.layers[0].blobs[0], "num", 32), r"has weights of shape \[\(32, 3, 7, 7\)"),
    ):
        with pytest.raises(ValueError, match=expected):
            check_weights(net, changed(change), new=("fc_embedding",))


def test_a_start_without_trunk_weights_stops(checkout, weights, tmp_path):
    given = ("ARCHIVE=~/CUB_200_2011.tgz", "COUNTS=any", "BATCH=4", "ITERS=1")
    miniature.cub(tmp_path)
    message = read_binary(weights, NetParameter())
    del message.layers[30]
    (tmp_path / "lacking.caffemodel").write_bytes(message.SerializeToString())
    done = make(checkout, "train-cub", *given, "WEIGHTS=~/lacking.caffemodel", HOME=str(tmp_path))
    assert done.returncode != 0 and "lacking.caffemodel: " in done.stderr and "'inception_4c" in done.stderr
    message = read_binary(weights, NetParameter())
    message.layers[7].blobs[1].data[0] = np.nan
    (tmp_path / "nan.caffemodel").write_bytes(message.SerializeToString())
    done = make(checkout, "train-cub", *given, f"WEIGHTS={tmp_path}/nan.caffemodel", "RUN=nan", HOME=str(tmp_path))
    assert done.returncode != 0 and "nan.caffemodel: the weights of layer 'inception_3a/5x5' are not finite" in done.stderr
    assert not list((checkout / "runs").rglob("*.caffemodel"))


def test_wrong_calls_stop_before_the_work(checkout, tmp_path):
    (tmp_path / "text").write_text("no weights")
    for arguments, message in (
        (("WEIGHTS=/nowhere",), "/nowhere: no such file (WEIGHTS)"),
        ((f"WEIGHTS={tmp_path}/text",), "text: is no .caffemodel, or is damaged"),
        ((f"ARCHIVE={tmp_path}/nowhere", f"WEIGHTS={ROOT}/tests/golden/empty"), "golden/empty: no such file"),
    ):
        done = make(checkout, "train-cub", *arguments)
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (checkout / "data").exists()


@pytest.mark.parametrize("layers", ["layer", "layers"])
def test_weights_of_another_architecture_are_refused_before_the_work(checkout, tmp_path, layers):
    """A ResNet's, in today's format and in 2014's: by the name of a layer that it lacks."""
    net = NetParameter()
    for name in ("conv1", "res2a_branch1", "res2a_branch2a"):
        getattr(net, layers).add(name=name).blobs.add(shape={"dim": [1]}, data=[0.5])
    (tmp_path / "resnet.caffemodel").write_bytes(net.SerializeToString())
    images = draw_images(tmp_path / "images", 4, 2)
    for call in (("weights",), ("train-cub",), ("train", f"DATA={images}", "NAME=x")):
        done = make(checkout, *call, f"WEIGHTS={tmp_path}/resnet.caffemodel")
        assert done.returncode != 0 and "conv1/7x7_s2" in done.stderr and "res2a_branch1" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not (checkout / "data").exists()


def test_without_network_and_archive(checkout, weights):
    dead = dict.fromkeys(("http_proxy", "https_proxy", "ftp_proxy"), "http://127.0.0.1:9")
    done = make(checkout, "train-cub", f"WEIGHTS={weights}", **dead)
    assert done.returncode != 0 and "CUB_200_2011.tgz (1,150,585,339 bytes" in done.stderr
    assert "put it at data/downloads/CUB_200_2011.tgz" in done.stderr and "make data-cub ARCHIVE=" in done.stderr
    done = make(checkout, "train-cub", **dead)
    assert done.returncode != 0 and "put it at data/bvlc_googlenet.caffemodel" in done.stderr and "WEIGHTS=" in done.stderr
    assert {path.name for path in checkout.rglob("*") if path.is_file() and not path.is_symlink()} == {".lock"}


def test_recipes(monkeypatch):
    """RECIPE=authors trains CUB's other solver, in a run folder of its own."""

    def trained(name, **given):
        calls = []
        monkeypatch.setattr("tools.experiment.step", lambda script, *words, **options: calls.append((script, options)))
        Paper(name, given).fit()
        (options,) = (options for script, options in calls if script == "tools/train.py")
        return str(options["solver"]), str(options["run"])

    assert trained("cub") == ("prototxt/cub/lifted_64/solver.prototxt", "runs/cub/lifted_64/seed1")
    assert trained("cub", RECIPE="authors", DIM="512", SEED="3") == (
        "prototxt/cub/lifted_512/solver_authors.prototxt",
        "runs/cub/lifted_512/authors_seed3",
    )
    assert trained("sop", RUN="x", BATCH="8") == ("prototxt/sop/lifted_64/solver.prototxt", "runs/sop/lifted_64_m8/x")
    assert (
        read_text(ROOT / "prototxt/cub/lifted_512/solver_authors.prototxt", __import__("caffe_pb2").SolverParameter()).max_iter
        == 40000
    )
