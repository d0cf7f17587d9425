"""One's own images, from a folder or a list to the report, as a person calls it; and what is chosen for them."""

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from caffe_pb2 import NetParameter, SolverParameter
from conftest import ROOT, draw_images
from google.protobuf import text_format
from PIL import Image

from data_prep.batch_plan import make_plan
from data_prep.files import locked
from data_prep.folder import read_images
from data_prep.imagenet import MEAN_SHA1
from prototxt import own
from prototxt.records import methods, trunks
from tools.own import choose_batch, choose_iterations, choose_net

SMALL, GOOGLENET = trunks()["small"], trunks()["googlenet"]


@pytest.fixture
def checkout(tmp_path):
    home = tmp_path / "checkout"
    home.mkdir()
    for name in ("Makefile", "requirements.txt", "prototxt", "python_layers", "tools", "data_prep", ".venv", ".caffe"):
        (home / name).symlink_to(ROOT / name)
    return home


def make(home, *arguments):
    command = ["make", "-o", "env", "train", *map(str, arguments)]
    return subprocess.run(command, cwd=home, text=True, capture_output=True, timeout=300)


def test_from_a_folder_to_report_and_search(checkout, tmp_path):
    images = draw_images(tmp_path / "my photos", 8, 6)
    given = (f"DATA={images}", "NAME=shoes", "ITERS=4", "SIZE=32", "DIM=128")
    done = make(checkout, *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The small net of the demo" in done.stdout and "a CPU trains it in minutes" in done.stdout
    assert re.search(r"training: 24 images, \d+ a batch \(\d+ batches\), 4 iterations", done.stdout)
    (home,) = (checkout / "runs/shoes").glob("lifted_128*/seed1")
    page = (home / "report.html").read_text()
    assert "NAME=shoes" in page and "make train" in page and "lifted structured embedding" in page.lower()
    metrics = json.loads((home / "metrics.json").read_text())
    assert "of 24 images of classes that training never saw" in (home / "report.md").read_text()  # the verdict
    assert metrics["n"] == 24 and metrics["classes"] == 4 and set(metrics["baselines"]) == {"untrained", "raw_pixels"}
    again = make(checkout, *given)
    assert again.returncode == 0 and "trained already" in again.stdout and "made from these images" in again.stdout

    # What is printed at the end is the next command, and works.
    command = re.search(r"^search: (.*)$", done.stdout, re.MULTILINE)[1]
    found = subprocess.run(["bash", "-c", command], cwd=checkout, text=True, capture_output=True, timeout=120)
    assert found.returncode == 0, found.stderr
    query = [".venv/bin/python", "tools/search.py", "query", str(images / "class003/2.png"), "--model", str(home)]
    found = subprocess.run(query, cwd=checkout, text=True, capture_output=True, timeout=120)
    assert found.returncode == 0 and "class003/2.png" in found.stdout, found.stderr


@pytest.mark.parametrize("method", ["contrastive", "triplet"])
def test_from_a_list_with_another_loss(checkout, tmp_path, method):
    draw_images(tmp_path / "stock", 6, 4)
    with open(tmp_path / "stock/list.csv", "w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["class", "note", "path"])
        for path in sorted((tmp_path / "stock").rglob("*.png")):
            inside = path.relative_to(tmp_path / "stock")
            rows.writerow([f"kind, {inside.parent.name}", "", inside if path.stem == "0" else path])  # some absolute
    done = make(checkout, f"DATA={tmp_path}/stock/list.csv", "NAME=kinds", "ITERS=2", f"METHOD={method}", "SIZE=32", "MIRRORED=no")
    assert done.returncode == 0, done.stdout + done.stderr
    batch = re.search(r"12 images, (\d+) a batch \(\d+ batches\), 2 iterations", done.stdout)[1]
    home = checkout / f"runs/kinds/{method}_64{'' if batch in ('128', '120') else f'_m{batch}'}"
    assert '"mirror": false' in (home / "seed1/net/train_val.prototxt").read_text()
    assert (home / "seed1/report.html").exists()
    with open(checkout / "data/kinds/train.csv", newline="") as stream:
        assert all(row["class"].startswith("kind, class") for row in csv.DictReader(stream))


@pytest.mark.parametrize(
    "given, message",
    [
        (["DATA=x"], "NAME="),
        (["DATA=nowhere", "NAME=x"], "nowhere: no such folder"),
        (["DATA={images}", "NAME=cub"], "NAME="),
        (["DATA={images}", "NAME=../x"], "NAME="),
        (["DATA={images}", "NAME=x", "SIZE=12"], "SIZE="),
        (["DATA={images}", "NAME=x", "NET=googlenet", "SIZE=64"], "SIZE="),
        (["DATA={images}", "NAME=x", "WEIGHTS=nowhere.caffemodel"], "nowhere.caffemodel: no such file (WEIGHTS)"),
        (["DATA={images}", "NAME=x", "TEST=0.1"], "TEST="),
    ],
)
def test_wrong_calls(checkout, tmp_path, given, message):
    images = draw_images(tmp_path / "images", 4, 3)
    done = make(checkout, *(text.format(images=images) for text in given))
    assert done.returncode != 0 and message in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert not (checkout / "runs").exists() and not (checkout / "data/x").exists()


def test_too_few_classes(checkout, tmp_path):
    done = make(checkout, f"DATA={draw_images(tmp_path / 'images', 2, 9)}", "NAME=x")
    assert done.returncode != 0 and "has 2 classes" in done.stderr and not (checkout / "data").exists()


def test_googlenet_from_given_weights(caffe, checkout, tmp_path):
    caffe.set_random_seed(1)
    caffe.Net(str(ROOT / "prototxt/cub/lifted_64/deploy.prototxt"), caffe.TEST).save(str(tmp_path / "start.caffemodel"))
    images = draw_images(tmp_path / "images", 4, 2)
    done = make(checkout, f"DATA={images}", "NAME=deep", "ITERS=1", "METHOD=triplet", f"WEIGHTS={tmp_path}/start.caffemodel")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"net: GoogLeNet, from {tmp_path}/start.caffemodel." in done.stdout
    (home,) = (checkout / "runs/deep").glob("triplet_64_m*/seed1")
    model = json.loads((home / "model.json").read_text())
    assert (model["image_size"], model["crop"], model["dimensions"]) == (256, 227, 64)
    assert hashlib.sha1((checkout / "data/deep/mean.binaryproto").read_bytes()).hexdigest() == MEAN_SHA1
    assert json.loads((home / "run.json").read_text())["settings"]["weights"]["bvlc_googlenet"] is False


def test_few_classes_are_enough_and_a_small_report_says_what_it_lacks(checkout, tmp_path):
    images = draw_images(tmp_path / "images", 4, 3)
    done = make(checkout, f"DATA={images}", "NAME=few", "ITERS=2", "SIZE=32", "TEST=0.9")
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = (checkout / "runs/few").glob("*/seed1/report.html")
    assert "map of 6 images" in report.read_text() and (report.parent / "model.json").exists()


def test_nothing_to_measure_is_said_before_the_training(checkout, tmp_path):
    images = draw_images(tmp_path / "images", 6, 1)
    done = make(checkout, f"DATA={images}", "NAME=lone", "ITERS=2", "SIZE=32")
    assert done.returncode == 2 and "has two images" in done.stderr
    assert not (checkout / "runs").exists()


def test_names_with_anything_in_them(checkout, tmp_path):
    images = draw_images(tmp_path / """it's $HOME "a" $$b""", 4, 3)
    done = make(checkout, f"DATA={images}", "NAME=x", "ITERS=1", "SIZE=32")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((checkout / "data/x/set.json").read_text())["images"] == str(images)


def test_a_set_is_not_replaced_under_its_runs(checkout, tmp_path):
    """Another split or size would give runs of one NAME different test classes, some of them seen in training."""
    images = draw_images(tmp_path / "images", 6, 4)
    given = (f"DATA={images}", "NAME=mine", "ITERS=2", "SIZE=32")
    by_hand = ["data_prep/build_set.py", "--images", images, "--out", "data/mine", "--batch", "16", "--size", "32"]
    subprocess.run([".venv/bin/python", *by_hand], cwd=checkout, check=True)
    content = (checkout / "data/mine/set.json").read_text()
    done = make(checkout, *given)
    assert done.returncode == 2 and "NAME" in done.stderr
    assert (checkout / "data/mine/set.json").read_text() == content
    shutil.rmtree(checkout / "data/mine")
    assert make(checkout, *given).returncode == 0
    content = (checkout / "data/mine/set.json").read_text()
    for other in ("SPLIT=2", "TEST=0.4", "SIZE=48"):
        done = make(checkout, *given[:3], *([] if "SIZE" in other else given[3:]), other)
        assert done.returncode == 2, done.stdout
        assert "data/mine: holds a set of other images" in done.stderr and "give another NAME" in done.stderr
    assert (checkout / "data/mine/set.json").read_text() == content
    # Other settings of a run that is there are refused, and leave its solver as it is; so is a call while one is at work.
    (folder,) = (checkout / "runs/mine").glob("*/seed1")
    solver = (folder / "net/solver.prototxt").read_text()
    done = make(checkout, *given[:2], "ITERS=3", given[3])
    assert done.returncode == 2 and "ITERS: 2 then, 3 now" in done.stderr and "RUN=" in done.stderr
    with locked(folder / "net", "training"):
        assert "another process" in make(checkout, *given).stderr
    assert (folder / "net/solver.prototxt").read_text() == solver
    assert make(checkout, *given, "SEED=2").returncode == 0  # another seed of the training is another run on the same split
    metrics = [json.loads(path.read_text()) for path in (checkout / "runs/mine").glob("*/seed[12]/metrics.json")]
    assert len(metrics) == 2 and metrics[0]["about"]["set"] == metrics[1]["about"]["set"]


def test_choices():
    assert choose_net(None, None)[0] == SMALL and choose_net(None, "file")[0] == GOOGLENET
    assert "random weights" in choose_net("googlenet", None)[1]
    with pytest.raises(ValueError, match="NET=googlenet"):
        choose_net("small", "file")
    assert repr(choose_iterations(7580, 128, SMALL)) == "3000"  # the demo's; Caffe takes no 3000.0
    assert choose_iterations(100, 128, SMALL) == 500 and choose_iterations(10**6, 128, SMALL) == 6000
    labels = np.repeat(np.arange(50), 5)
    assert choose_batch(labels, "pairs")[0] == 128 and choose_batch(labels, "triplets")[0] == 120
    assert choose_batch([0, 0, 1, 1], "pairs")[0] == 4  # 6 positive pairs with self-pairs, 8 negative ones: all are used
    for classes, each in ((4, 5), (10, 3), (2, 5), (3, 40)):
        labels = np.repeat(np.arange(classes), each)
        facts = make_plan(labels, choose_batch(labels, "pairs")[0])[1]
        assert facts["negative_pairs"] >= 0.9 * facts["negatives_per_image"] * len(labels), (classes, each)
    assert choose_batch([0, 0, 1, 1], "triplets")[0] == 6  # 2 triplets
    with pytest.raises(ValueError, match="triplets need"):
        choose_batch([0, 1], "triplets")


@pytest.mark.parametrize("trunk, size", [(SMALL, 64), (SMALL, 96), (GOOGLENET, 256)])
def test_the_nets_load(caffe, tmp_path, trunk, size):
    files = own.files("x", trunk, methods()["lifted"], 32, size, True, "pairs.npz", 700, tmp_path)
    (tmp_path / "deploy.prototxt").write_text(files["deploy.prototxt"])
    net = caffe.Net(str(tmp_path / "deploy.prototxt"), caffe.TEST)
    assert net.blobs["data"].data.shape[2:] == {64: (56, 56), 96: (84, 84), 256: (227, 227)}[size]
    assert net.blobs["fc_embedding"].data.shape == (1, 32)
    text_format.Parse(files["solver.prototxt"], SolverParameter())
    text_format.Parse(files["train_val.prototxt"], NetParameter())
    assert "max_iter: 700\n" in files["solver.prototxt"] and "stepsize: 560\n" in files["solver.prototxt"]


# --- lists of images ---------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path):
    def write(text):
        for name in ("a.png", "b b.png", "-c\r\n.png"):
            Image.new("RGB", (4, 4)).save(tmp_path / name)
        (tmp_path / "list.csv").write_bytes(text)
        return tmp_path / "list.csv"

    return write


def test_a_list(listed, tmp_path):
    os.link(listed(b""), tmp_path / "x")
    found = read_images(listed('\ufeffpath,class\n"b b.png",ü\n"-c\r\n.png",x\na.png,ü\n'.encode()))
    assert found.images == {"ü": ["b b.png", "a.png"], "x": ["-c\r\n.png"]} and found.root == tmp_path


@pytest.mark.parametrize(
    "text, message",
    [
        (b"", "expected a CSV file, commas between, whose first line names path and class; found nothing"),
        (b"file,label\na.png,x\n", "found file, label"),
        (b"path,class\n", "lists no image"),
        (b"path,class\na.png,x\na.png,y\n", "a.png is listed twice, in lines 2 and 3"),
        (b"path,class\na.png,x\n./../{folder}/a.png,y\n", "a.png is listed twice, in lines 2 and 3"),
        (b"path;class\na.png;x\n", "commas between, whose first line names path and class; found path;class"),
        (
            b"path,class\na.png,x\nb.png,y\nc.png,y\n",
            "2 of 3 images are not there, the first: b.png \\(line 3\\); paths are taken from",
        ),
        (b"path,class\na.png\n", "line 2 has 1 fields, the first line 2"),
        (b"path,class\n,x\n", "line 2 has no path or no class"),
        (b'path,class\n"a.png,x\n', "line 2 is not CSV"),
        (b"path,class\na.png,Smith, John\n", "list.csv: line 2 has 3 fields, the first line 2; a field with a comma in it"),
        (b"path,class,note\na.png,x\n", "list.csv: line 2 has 2 fields, the first line 3"),
        (b"path,class,class\na.png,x,y\n", "whose first line names path and class; found path, class, class"),
        (b"path,class\na.png,x\0y\n", "list.csv: line 2 holds a NUL"),
        ("path,class\na.png,x\n".encode("utf-16"), "whose first line names path and class; found '.udcff"),
        (b"path,class\na\x00.png,x\n", "list.csv: "),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "list.csv: "),
    ],
)
def test_wrong_lists(listed, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_images(listed(text.replace(b"{folder}", tmp_path.name.encode())))
