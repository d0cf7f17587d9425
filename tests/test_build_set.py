"""A folder of images becomes LMDBs, a mean and a plan: what is read, what is named, what is left when it fails."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import unicodedata
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from caffe_pb2 import Datum
from conftest import ROOT, build_set, draw_images, start, tool
from PIL import Image, ImageOps

from data_prep import write_set
from data_prep.batch_plan import read_list as read_paths
from data_prep.build_set import read_groups, split_classes
from data_prep.files import locked, remove_partials, require_space, require_writable, written_aside
from data_prep.folder import read_folder, read_images, shared_images
from data_prep.image import load_image
from data_prep.imagenet import MEAN_SHA1
from data_prep.write_set import raw_datum
from pair_batch import ImageDatabase, read_mean
from tools import compare, evaluate, export_onnx, extract, figures, gradient_figure, plots, report, tsne_map
from tools.features import save_features
from tools.search import search


@pytest.mark.parametrize("shape", [(3, 256, 256), (3, 64, 64), (1, 1, 127), (1, 1, 128), (3, 1, 5461), (1, 2, 8192), (1, 1, 1)])
def test_a_datum_is_what_protobuf_makes_of_it(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for label in (0, 1, 300, 1 << 23):
        channels, height, width = shape
        datum = Datum(channels=channels, height=height, width=width, data=image.tobytes(), label=label)
        assert raw_datum(image, label) == datum.SerializeToString()


def test_every_image_once_readable_with_its_label(small_set):
    made = json.loads((small_set / "set.json").read_text())
    names = {}
    for part in ("train", "test"):
        images = ImageDatabase(f"{small_set}/{part}.lmdb")
        with open(small_set / f"{part}.csv", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len(images) == len(rows) == made[part]["images"] == 30
        assert images.keys == [b"%08d" % i for i in range(30)]
        for place, row in enumerate(rows):
            image, label = images.read(place)
            assert label == int(row["label"]) and row["class"] == row["path"].split("/")[0]
            np.testing.assert_array_equal(image, load_image(f"{made['images']}/{row['path']}", 16))
        names[part] = {row["class"] for row in rows}
    assert not names["train"] & names["test"] and len(names["train"] | names["test"]) == 12


def test_same_again_does_nothing_and_a_new_image_makes_it_anew(tmp_path, capsys):
    images = draw_images(tmp_path / "images", 6, 4)
    build_set(images, tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    capsys.readouterr()
    build_set(images, tmp_path / "set")
    assert "made from these images and options already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == before
    Image.new("RGB", (9, 9), "red").save(images / "class000" / "new.png")
    made = build_set(images, tmp_path / "set")
    assert made["train"]["images"] + made["test"]["images"] == 25
    os.utime(images / "class000" / "new.png", ns=(1, 1))  # made anew, and the same
    assert build_set(images, tmp_path / "set")["content"] == made["content"]
    (images / "class001" / "damaged.png").write_bytes(b"damaged")  # a build that fails leaves the earlier set whole
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    with pytest.raises(ValueError, match="1 of 26 images cannot be read"):
        build_set(images, tmp_path / "set")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == before
    (images / "class001" / "damaged.png").unlink()
    (tmp_path / "set" / "pairs_m16.npz").unlink()
    assert build_set(images, tmp_path / "set")["content"] == made["content"]
    assert (tmp_path / "set" / "pairs_m16.npz").exists()


def test_what_is_no_image_is_named_and_counted(tmp_path, capsys):
    images = draw_images(tmp_path / "images", 5, 4)
    (images / "class000" / "notes.txt").write_text("no image")
    (images / "readme.md").write_text("no class")
    (images / "empty").mkdir()
    (images / ".hidden").mkdir()
    (images / "class001" / "more").mkdir()
    (images / "single").mkdir()
    Image.new("RGB", (20, 20), "blue").save(images / "single" / "one.png")
    made = build_set(images, tmp_path / "set")
    out = capsys.readouterr().out
    assert "1 empty class folders: empty" in out
    assert "3 files skipped" in out and "notes.txt" in out and "class001/more" in out
    assert "): single" in out
    assert sorted(made["train"]["singletons"] + made["test"]["singletons"]) == ["single"]


def test_images_that_are_in_several_classes(tmp_path, capsys):
    """Copied, under other names, and through a class folder that is a link to another; copies within a class are none of it."""
    images = draw_images(tmp_path / "images", 6, 4)
    shutil.copy(images / "class000/0.png", images / "class001/copy.png")
    shutil.copy(images / "class000/0.png", images / "class000/twice.png")
    (images / "class009").symlink_to(images / "class002")
    shared = shared_images(read_images(images))
    assert sorted(len(group) for group in shared) == [2, 2, 2, 2, 3]
    made = build_set(images, tmp_path / "keep", batch=4)
    said = capsys.readouterr().out
    assert made["train"]["images"] + made["test"]["images"] == 30
    assert "11 images are in several classes" in said and "DUPLICATES=drop" in said and "class001/copy.png" in said
    made = build_set(images, tmp_path / "drop", batch=4, duplicates="drop")
    assert made["train"]["images"] + made["test"]["images"] == 23 and "23 images remain" in capsys.readouterr().out
    assert "class002/0.png" in listed(tmp_path / "drop") and "class009/0.png" not in listed(tmp_path / "drop")  # the link goes
    (images / "class009").unlink()
    (images / "class001/copy.png").unlink()
    build_set(images, tmp_path / "none", batch=4)
    assert "several classes" not in capsys.readouterr().out


def listed(folder):
    """The paths of a set's images."""
    return [path for part in ("train", "test") for path in read_paths(folder / f"{part}.csv")[0]]


def test_accents_that_a_person_cannot_tell_apart(tmp_path):
    """é in one character or in two: in a list, in its classes, in the groups, in two folders of one name."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    draw_images(tmp_path / "images", 3, 2)
    (tmp_path / "images/class000").rename(tmp_path / f"images/{apart}")
    (tmp_path / "images/class001").rename(tmp_path / f"images/{composed}")
    found = read_images(tmp_path / "images")
    assert set(found.images) == {apart, "class002"} and len(found.images[apart]) == 4  # as it is written first
    assert all((tmp_path / "images" / name).is_file() for names in found.images.values() for name in names)
    (tmp_path / "groups.csv").write_text(f"class,group\n{apart},a\n")
    assert read_groups(tmp_path / "groups.csv", found) == {apart: "a"}
    (tmp_path / "groups.csv").write_text(f"class,group\n{composed},{apart}\nclass002,{composed}\n")
    assert read_groups(tmp_path / "groups.csv", found) == {apart: apart, "class002": apart}
    (tmp_path / "list.csv").write_text(f"path,class\nimages/{apart}/0.png,{apart}\nimages/{composed}/1.png,{composed}\n")
    (tmp_path / f"images/{composed}/1.png").rename(tmp_path / f"images/{apart}/new.png")
    shutil.rmtree(tmp_path / f"images/{composed}")
    (tmp_path / f"images/{apart}/new.png").rename(tmp_path / f"images/{apart}/1.png")
    found = read_images(tmp_path / "list.csv")
    assert list(found.images) == [apart] and all((tmp_path / name).is_file() for name in found.images[apart])
    shutil.rmtree(tmp_path / "images/class002")  # sets that are made of such a folder stay what they are: names and labels
    assert list(read_images(tmp_path / "images").images) == [apart]


def test_a_long_list_in_other_accents_is_read_in_a_moment(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    names = [f"cafe\u0301{number}.png" for number in range(50)]
    for name in names:
        (tmp_path / "x" / name).touch()
    rows = "".join(f"x/{unicodedata.normalize('NFC', name)},a\n" for name in names)
    (tmp_path / "list.csv").write_text(f"path,class\n{rows}")
    calls = []
    monkeypatch.setattr("os.listdir", lambda place, listdir=os.listdir: calls.append(place) or listdir(place))
    assert read_images(tmp_path / "list.csv").images == {"a": [f"x/{name}" for name in names]}
    assert len(calls) == 1  # the folder is listed once, not for each image


@pytest.mark.parametrize("place, named", [("images", "level below"), ("images/kinds/class000", "folder above it")])
def test_a_level_too_high_or_too_low(tmp_path, place, named):
    images = draw_images(tmp_path / "images/kinds", 3, 2)
    with pytest.raises(ValueError, match=f"{named}.*{re.escape(str(images))}"):
        read_images(tmp_path / place)


def test_photos_of_an_iphone_are_named(tmp_path, capsys):
    images = draw_images(tmp_path / "images", 6, 4)
    (images / "class000/photo.HEIC").write_bytes(b"x")
    build_set(images, tmp_path / "set", batch=4)
    assert "heif-convert" in capsys.readouterr().out


def test_unreadable_images_stop_it_after_naming_all_of_them(tmp_path, capsys):
    images = draw_images(tmp_path / "images", 4, 6)
    for number in range(4):
        (images / f"class00{number}" / "text.jpg").write_text("this is text")
        whole = (images / f"class00{number}" / "0.png").read_bytes()
        (images / f"class00{number}" / "truncated.png").write_bytes(whole[: len(whole) // 2])
        (images / f"class00{number}" / "nothing.png").write_bytes(b"")
    with pytest.raises(ValueError, match="images cannot be read") as error:
        build_set(images, tmp_path / "set")
    assert all(f"{kind}" in str(error.value) for kind in ("text.jpg", "truncated.png", "nothing.png", "--skip-unreadable"))
    assert all(str(error.value).count(f"class00{number}/") == 3 for number in range(4))
    assert str(error.value).startswith("12 of 36 images cannot")
    assert not (tmp_path / "set" / "set.json").exists()
    assert not [path for path in (tmp_path / "set").iterdir() if "partial" in path.name]
    made = build_set(images, tmp_path / "set", skip_unreadable=True)
    assert made["train"]["images"] + made["test"]["images"] == 24
    assert "passed over" in capsys.readouterr().out


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_load_image_channel_order(tmp_path):
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    image = load_image(save(tmp_path / "red.png", red), 4)
    assert image.shape == (3, 4, 4) and image.dtype == np.uint8
    assert image[2].min() == 200 and not image[:2].any()  # blue, green, red


def test_load_image_composites_on_white(tmp_path):
    half = np.zeros((4, 4, 4), np.uint8)
    half[:2, :, 3] = 255
    image = load_image(save(tmp_path / "half.png", half), 4)
    assert not image[:, :2].any() and (image[:, 2:] == 255).all()
    palette = Image.fromarray(half).quantize(4)
    palette.save(tmp_path / "palette.png")
    assert (load_image(tmp_path / "palette.png", 4)[:, 2:] == 255).all()


def test_load_image_greys(tmp_path):
    grey = (np.arange(16).reshape(4, 4) * 16).astype(np.uint8)
    for name, levels in (("8.png", grey), ("16.png", grey.astype(np.uint16) * 257)):
        image = load_image(save(tmp_path / name, levels), 4)
        np.testing.assert_array_equal(image, np.broadcast_to(grey, (3, 4, 4)))


def test_load_image_refuses_numbers_of_unknown_range(tmp_path):
    for name, pixels in (("float", np.full((4, 4), 0.7, np.float32)), ("int", np.full((4, 4), 200, np.int32))):
        with pytest.raises(ValueError, match="32-bit numbers of unknown range"):
            load_image(save(tmp_path / f"{name}.tif", pixels), 4)


def test_load_image_other_kinds(tmp_path):
    grey = np.full((6, 6), 90, np.uint8)
    Image.fromarray(grey).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert load_image(tmp_path / "cmyk.jpg", 6).shape == (3, 6, 6)
    frames = [Image.new("L", (6, 6), value) for value in (10, 200)]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "animated.gif", 6).max() == 10
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, :4] = 250
    Image.fromarray(wide).save(tmp_path / "turned.png", exif=exif)
    turned = load_image(tmp_path / "turned.png", 8)
    assert turned[:, :3].min() > 200 and turned[:, 5:].max() < 50


@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_image_orientations_are_pillows(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))[:, :, ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(load_image(tmp_path / "turned.png", 6), expected)


@pytest.mark.parametrize("error", [struct.error("required argument is not an integer"), AttributeError("encode")])
def test_load_image_says_value_error_whatever_a_decoder_raises(tmp_path, monkeypatch, error):
    def decode(*_):
        raise error

    save(tmp_path / "damaged.png", np.zeros((4, 4), np.uint8))
    monkeypatch.setattr(Image.Image, "convert", decode)
    with pytest.raises(ValueError, match=str(error)):
        load_image(tmp_path / "damaged.png", 4)


def test_load_image_resizes_with_antialiasing(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    image = load_image(save(tmp_path / "stripes.png", stripes), 8)
    assert abs(image[:, :, 1:-1].astype(int) - 127).max() <= 2  # without it: columns of 0 or 255


def test_groups_stay_on_one_side():
    classes = [f"{group}{variant}" for group in "abcdefgh" for variant in range(3)]
    groups = {name: name[0] for name in classes}
    train, test = split_classes(classes, groups, 0.5, 0.0, 1)
    assert len(train) == len(test) == 12 and set(train) | set(test) == set(classes)
    assert not {name[0] for name in train} & {name[0] for name in test}
    held_train, held_test = split_classes(classes, groups, 0.5, 0.25, 1)
    assert sorted(held_train + held_test) == train and len(held_test) == 3
    assert split_classes(classes, groups, 0.5, 0.0, 2)[0] != train
    assert split_classes(classes[::-1], groups, 0.5, 0.0, 1) == (train, test)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "groups.csv: no such file; expected a CSV file, commas between, whose first line names class and group"),
        (b"", "whose first line names class and group; found nothing"),
        (b"class,group\nclass000\n", "groups.csv: line 2 has 1 fields, the first line 2"),
        (b"class,group\nclass000,\n", "groups.csv: line 2 has no class or no group"),
        (b"class,group\nclass000,a\nclass000,b\n", "groups.csv: the class class000 is there twice, the second time in line 3"),
        (b"class,group\nclass000,a\nclass9,a\n", "groups.csv: line 3 names the class class9, which .*images does not have"),
        (b"\xef\xbb\xbfclass,group\nclass000,a\nempty,a\nclass001,a\n", None),
    ],
)
def test_files_of_groups(tmp_path, text, message):
    images = draw_images(tmp_path / "images", 4, 2)
    (images / "empty").mkdir()
    if text is not None:
        (tmp_path / "groups.csv").write_bytes(text)
    if message is None:
        groups = read_groups(tmp_path / "groups.csv", read_folder(images))
        assert groups == {"class000": "a", "empty": "a", "class001": "a"}
        return
    with pytest.raises(ValueError, match=message):
        build_set(images, tmp_path / "set", batch=4, groups=tmp_path / "groups.csv")
    assert not (tmp_path / "set").exists()


def test_wrong_folders(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no images found"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="at least two classes besides the test"):
        build_set(draw_images(tmp_path / "two", 2, 3), tmp_path / "set")


def test_command_line(tmp_path):
    draw_images(tmp_path / "images", 8, 9)
    done = tool("data_prep/build_set.py", "--images", tmp_path / "images", "--out", tmp_path / "set", "--size", 16, "--batch", 32)
    assert done.returncode == 0 and "36 images of 4 classes, 16x16" in done.stdout
    for batch, message in ((15, "even number of images, not 15"), (4096, "but a batch of 4096 images needs 2048")):
        done = tool("data_prep/build_set.py", "--images", tmp_path / "images", "--out", tmp_path / "no", "--batch", batch)
        assert done.returncode == 1 and message in done.stderr and not list((tmp_path / "no").glob("*.*b"))
    done = tool("data_prep/build_set.py", "--images", tmp_path / "none", "--out", tmp_path / "none_set")
    assert not (tmp_path / "none_set").exists()
    assert done.returncode == 1 and done.stderr.startswith("build_set: ") and "Traceback" not in done.stderr


def test_strange_names(tmp_path):
    images = draw_images(tmp_path / "images", 4, 4)
    strange = images / 'name, with "quotes" and\nnewline'
    (images / "class000").rename(strange)
    os.rename(os.fsencode(strange / "0.png"), os.fsencode(strange) + b"/-\xff.png")
    (images / "class001").joinpath(os.fsdecode(b"ignored\xff.txt")).touch()
    done = tool("data_prep/build_set.py", "--images", images, "--out", tmp_path / "set", "--size", 8, "--batch", 4,
                env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})  # fmt: skip
    assert done.returncode == 0 and "ignored\\udcff.txt" in done.stdout, done.stderr
    paths = []
    for part in ("train", "test"):
        with open(tmp_path / "set" / f"{part}.csv", newline="", errors="surrogateescape") as stream:
            paths += [row["path"] for row in csv.DictReader(stream)]
    assert len(paths) == 16 and all((images / path).is_file() for path in paths)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_then_called_again(tmp_path, number):
    images = draw_images(tmp_path / "images", 20, 20, side=200)
    command = [sys.executable, str(ROOT / "data_prep/build_set.py"), "--images", images, "--out", tmp_path / "set", "--size", "256"]
    process = start(command)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "set").glob(".*partial*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0 and not (tmp_path / "set" / "set.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    made = json.loads((tmp_path / "set" / "set.json").read_text())
    assert made["train"]["images"] == len(ImageDatabase(str(tmp_path / "set" / "train.lmdb"))) == 200
    assert not list((tmp_path / "set").glob(".*partial*"))


def test_a_folder_in_a_file_s_place_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("mine")
    with pytest.raises(IsADirectoryError), written_aside(tmp_path / "out") as aside:
        aside.write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "kept.txt"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "PostScript"])
def test_load_image_opens_images_alone(tmp_path, kind):
    """A pipe would block, a device never end, and PostScript be run by Ghostscript."""
    path = tmp_path / "1.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        Image.new("RGB", (8, 8)).save(path, "EPS")
    with pytest.raises(ValueError, match="is a folder, a pipe or a device|is no image"):
        load_image(path, 16)


def test_output_that_nobody_reads_to_its_end():
    """As in `tools/search.py query ... | head -1`: no message, and the status of a broken pipe."""
    code = "from data_prep.command import run; run('search', lambda: [print('x' * 9, flush=True) for _ in range(99999)] and 0)"
    command = f'"{sys.executable}" -c "{code}" | head -1; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("x" * 9 + "\n", "", 141)


def test_two_builds_in_one_folder(tmp_path):
    draw_images(tmp_path / "images", 4, 4)
    with locked(tmp_path / "set", "making a set"):
        done = tool("data_prep/build_set.py", "--images", tmp_path / "images", "--out", tmp_path / "set")
        assert done.returncode == 1 and "another process" in done.stderr


def test_a_place_that_cannot_be_written_is_named_before_the_work(tmp_path, small_set, monkeypatch):
    (tmp_path / "file").touch()
    for path in ("file/out", "file/a/out"):
        with pytest.raises(OSError, match=f"{path}: cannot be written.*is no folder"):
            require_writable(tmp_path / path)
    require_writable(tmp_path / "new/a/out")
    assert not (tmp_path / "new").exists()
    features = tmp_path / "features.npz"
    save_features(features, np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]), np.array(list("abcd")), {})
    out = tmp_path / "file" / "out.png"
    of = ["--set", "none", "--features", "none"]
    runs, features_of, net = ["--runs", "none"], ["--features", str(features)], ["--net", "none", "--weights", "none"]
    for module, arguments in ((compare, runs), (plots, runs), (report, ["--run", "none", "--set", "none"]), (figures, of),
                              (tsne_map, of), (evaluate, features_of), (extract, ["--set", str(small_set), "--pixels", "4"]),
                              (gradient_figure, []), (export_onnx, net)):  # fmt: skip
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments, "--out", str(out)])
        for work in ("score", "read_list", "draw"):  # what a check at the end would come after
            monkeypatch.setattr(module, work, None, raising=False)
        with pytest.raises(OSError, match="file/out.png: cannot be written.*is no folder"):
            module.main()
    images = draw_images(tmp_path / "images", 4, 3)
    for command in (["data_prep/build_set.py", "--images", images, "--out", tmp_path / "file" / "set"],
                    ["tools/search.py", "query", images / "class000/0.png", "--model", "none", "--sheet", out]):  # fmt: skip
        done = tool(*command)
        assert done.returncode == 1 and "cannot be written" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_folder_that_may_not_be_written_to(tmp_path):
    images, home = draw_images(tmp_path / "images", 4, 3), tmp_path / "home"
    home.mkdir()
    if os.geteuid() or subprocess.run(["chattr", "+i", home], capture_output=True).returncode:
        pytest.skip("only root can make a folder that root may not write to, and not on every file system")
    try:
        done = tool("data_prep/build_set.py", "--images", images, "--out", home / "set")
    finally:
        subprocess.run(["chattr", "-i", home], check=True)
    assert done.returncode == 1 and "cannot be written" in done.stderr and "may not be written to" in done.stderr, done.stderr
    assert not list(home.iterdir())


def test_an_image_of_a_size_that_no_memory_holds(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(1), bytes(1 + 30_000)
    pixels = b"".join(packer.compress(row) for _ in range(30_000)) + packer.flush()
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)  # grey, of one colour: 900 MB in 4 MB
    images = draw_images(tmp_path / "images", 4, 3)
    path = images / "class000" / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match="class000/huge.png: is too large"):
        build_set(images, tmp_path / "set", batch=4)
    model = SimpleNamespace(load=lambda source: load_image(source, 16), embed=None)  # as Embedder.load
    with pytest.raises(ValueError, match="huge.png: is too large"):
        next(search(model, SimpleNamespace(files={}), [path], 1))


def test_two_processes_that_write_one_file_each_publish_a_whole_one(tmp_path):
    code = """
import sys, time
from data_prep.files import written_aside
letter, path = sys.argv[1:]
for _ in range(15):
    with written_aside(path) as aside, open(aside, "w") as stream:
        for _ in range(20):
            stream.write(letter * 1000)
            stream.flush()
            time.sleep(0.0005)
"""
    path = tmp_path / "one.txt"
    writers = [subprocess.Popen([sys.executable, "-c", code, letter, path], cwd=ROOT, stderr=subprocess.PIPE) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            assert path.read_text() in ("a" * 20000, "b" * 20000)
    assert [writer.communicate()[1] for writer in writers] == [b"", b""] and os.listdir(tmp_path) == ["one.txt"]


def test_what_processes_that_ended_left_aside_goes_and_what_others_write_stays(tmp_path):
    ended = subprocess.Popen(["true"])  # nobody asks how: until then it has a number still
    while "Z" not in Path(f"/proc/{ended.pid}/stat").read_text():
        time.sleep(0.01)
    host = socket.gethostname()
    left = [tmp_path / f".f.txt.{host}.{number}.partial.txt" for number in (ended.pid, os.getppid())]
    left += [tmp_path / ".f.txt.another.7.partial.txt", tmp_path / f".g.txt.{host}.{ended.pid}.partial.txt"]
    for path in left:
        path.write_text("half")
    with written_aside(tmp_path / "f.txt") as aside:
        aside.write_text("whole")
    assert [path.exists() for path in left] == [False, True, True, True]
    remove_partials(tmp_path)
    assert os.listdir(tmp_path) == ["f.txt"] and ended.wait() == 0


def test_two_processes_that_replace_one_folder_each_publish_a_whole_one(tmp_path):
    code = """
import sys
from data_prep.files import written_aside
letter, path = sys.argv[1:]
for _ in range(40):
    with written_aside(path) as aside:
        aside.mkdir()
        for number in range(20):
            (aside / str(number)).write_text(letter)
"""
    path = tmp_path / "one"
    writers = [subprocess.Popen([sys.executable, "-c", code, letter, path], cwd=ROOT, stderr=subprocess.PIPE) for letter in "ab"]
    assert [writer.communicate()[1] for writer in writers] == [b"", b""] and os.listdir(tmp_path) == ["one"]
    assert len(list(path.iterdir())) == 20 and len({file.read_text() for file in path.iterdir()}) == 1


def test_written_aside_leaves_nothing_half_made(tmp_path):
    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(RuntimeError), written_aside(tmp_path / "file.txt") as aside:
        aside.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"] and (tmp_path / "file.txt").read_text() == "old"
    with written_aside(tmp_path / "folder") as aside:
        aside.mkdir()
        (aside / "new").touch()
    with written_aside(tmp_path / "folder") as aside:
        aside.mkdir()
    assert list((tmp_path / "folder").iterdir()) == []


def test_no_room_on_the_disk(tmp_path):
    with pytest.raises(OSError, match=r"1,000,000,000,000,000,000 bytes are needed and [\d,]+ are free .* Smaller"):
        require_space(tmp_path, 10**18, "Smaller images need less.")


def test_a_map_that_is_full(tmp_path, monkeypatch):
    """An LMDB may take as much as it is told; were that too little, it says so and nothing is left."""
    draw_images(tmp_path / "images", 4, 3)
    monkeypatch.setattr(write_set, "lmdb_bytes", lambda *_: (200 << 10) - (32 << 20))  # a map of 400 kB
    with pytest.raises(OSError, match="MAP_FULL"):
        build_set(tmp_path / "images", tmp_path / "set", size=256, batch=8)
    assert not list((tmp_path / "set").glob("*.lmdb")) and not list((tmp_path / "set").glob(".*partial*"))


def test_the_mean_is_that_of_the_training_images(small_set):
    images = ImageDatabase(f"{small_set}/train.lmdb")
    expected = np.mean([images.read(place)[0].astype(float) for place in range(len(images))], axis=0)
    np.testing.assert_allclose(read_mean(f"{small_set}/mean.binaryproto"), expected, rtol=1e-6)


def test_imagenet_s_mean_for_pretrained_nets(tmp_path):
    draw_images(tmp_path / "images", 4, 2)
    arguments = ("--images", tmp_path / "images", "--out", tmp_path / "set", "--mean", "imagenet", "--batch", 4)
    assert tool("data_prep/build_set.py", *arguments).returncode == 0
    assert hashlib.sha1((tmp_path / "set/mean.binaryproto").read_bytes()).hexdigest() == MEAN_SHA1
    ended = tool("data_prep/build_set.py", *arguments, "--size", 32)
    assert ended.returncode == 2 and "ImageNet's mean image is for --size 256" in ended.stderr
