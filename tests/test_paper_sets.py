"""The paper's sets from archives of the official layouts: every image and label, what stops it, what it says."""

import csv
import dataclasses
import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
import zipfile

import lmdb
import miniature
import numpy as np
import pytest
from caffe_pb2 import Datum
from conftest import tool
from PIL import Image

from data_prep import paper_files, paper_sets
from data_prep.batch_plan import make_plan
from data_prep.download import Download
from data_prep.files import locked
from data_prep.image import load_image
from data_prep.imagenet import WEIGHTS, imagenet_mean
from data_prep.write_set import mean_bytes
from pair_batch import ImageDatabase


def make(name, out, archive, any_count=True, resize=None, skip=False):
    return paper_sets.make(name, out, archive, resize or paper_files.SETS[name].resize, any_count, skip)


def listed(out, part):
    with open(out / f"{part}.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def contents(*archives):
    """{path: bytes} of all files in .tgz archives, top folders as they are."""
    found = {}
    for path in archives:
        with tarfile.open(path) as archive:
            found |= {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    return found


def check_images(out, source, prefix, resize="plain"):
    """Every listed image is in the LMDB at its place, resized from the archive's bytes."""
    for part in ("train", "test"):
        images = ImageDatabase(f"{out}/{part}.lmdb")
        rows = listed(out, part)
        assert len(images) == len(rows) == 18 and images.keys == [b"%08d" % place for place in range(18)]
        for place, row in enumerate(rows):
            image, label = images.read(place)
            assert image.shape == (3, 256, 256) and label == int(row["label"])
            np.testing.assert_array_equal(image, load_image(source[prefix + row["path"]], 256, resize))


def test_cub(tmp_path, capsys):
    archive = miniature.cub(tmp_path)
    record = make("cub", tmp_path / "cub", archive)
    source = contents(archive)
    check_images(tmp_path / "cub", source, "CUB_200_2011/")
    # Order and labels are those of the lists, read here another way.
    paths = [line.split()[1] for line in source["CUB_200_2011/images.txt"].decode().splitlines()]
    assert [row["path"] for part in ("train", "test") for row in listed(tmp_path / "cub", part)] == [
        f"images/{path}" for path in paths
    ]
    assert [int(row["label"]) for row in listed(tmp_path / "cub", "test")] == [101] * 6 + [102] * 6 + [200] * 6
    assert all(row["class"] == row["path"].split("/")[1] for row in listed(tmp_path / "cub", "train"))
    assert record["official"] is False and "train: 18 images, published 5,864" in record["doubts"]
    assert "This is not the official set" in capsys.readouterr().out
    grey = ImageDatabase(f"{tmp_path}/cub/train.lmdb").read(2)[0]
    assert (grey[0] == grey[1]).all() and (grey[0] == grey[2]).all()


def labelled_pixels(out):
    """{(label, class, pixels)} of all images of a made set."""
    return {
        (int(row["label"]), row["class"], ImageDatabase(f"{out}/{part}.lmdb").read(place)[0].tobytes())
        for part in ("train", "test")
        for place, row in enumerate(listed(out, part))
    }


def test_cars196_gives_the_same_images_from_every_layout(tmp_path):
    makers = {
        "one": miniature.cars,
        "zip": miniature.cars_zip,
        "two": miniature.cars_in_two,
        "kaggle": miniature.cars_kaggle,
        "by_box": lambda folder: miniature.cars_kaggle(folder, labels=None),
    }
    found = {}
    for kind, maker in makers.items():
        (tmp_path / kind).mkdir()
        record = make("cars196", tmp_path / f"set_{kind}", maker(tmp_path / kind))
        found[kind] = labelled_pixels(tmp_path / f"set_{kind}")
        assert len(found[kind]) == 36 and not record["official"]
        assert {entry[0] for entry in found[kind]} == {1, 3, 98, 99, 150, 196} and found[kind] == found["one"]
        assert {int(row["label"]) for row in listed(tmp_path / f"set_{kind}", "test")} == {99, 150, 196}
    assert (3, "Make Model 3 C/V 2012") in {entry[:2] for entry in found["one"]}
    check_images(tmp_path / "set_one", contents(tmp_path / "one/car_ims.tgz"), "")
    # Named as browsers name a second download, and packed in another way: the rest is still looked for beside it.
    (tmp_path / "one/car_ims.tgz").rename(tmp_path / "one/car_ims (1).tgz")
    make("cars196", tmp_path / "again", tmp_path / "one/car_ims (1).tgz")
    assert labelled_pixels(tmp_path / "again") == found["one"]
    for name in ("cars_train", "cars_test"):
        (tmp_path / f"two/{name}.tar").write_bytes(gzip.decompress((tmp_path / f"two/{name}.tgz").read_bytes()))
        (tmp_path / f"two/{name}.tgz").unlink()
    for number, named in enumerate((tmp_path / "two/cars_train.tar", tmp_path / "two")):
        make("cars196", tmp_path / f"tar{number}", named)
        assert labelled_pixels(tmp_path / f"tar{number}") == found["one"]


def test_the_lists_whose_images_are_there(tmp_path):
    """All of Cars196's lists lie in the folder: the images choose. Where they belong to none, the message says what would do."""
    folder = tmp_path / "folder"
    folder.mkdir()
    miniature.cars_kaggle(folder)
    shutil.unpack_archive(miniature.cars(folder), folder)
    (folder / "car_ims.tgz").unlink()
    for half in ("cars_train", "cars_test"):
        (folder / half).rename(tmp_path / half)
    make("cars196", tmp_path / "set", folder)
    assert listed(tmp_path / "set", "train")[0]["path"] == "car_ims/000001.jpg"
    shutil.rmtree(folder / "car_ims")
    shutil.rmtree(folder / "car_devkit")
    (tmp_path / "cars_train").rename(folder / "cars_train")
    with pytest.raises(ValueError) as error:
        make("cars196", tmp_path / "other", folder)
    for words in ("car_ims/000001.jpg", "cars_train/", "cars_train_annos.mat", "car_devkit.tgz"):
        assert words in str(error.value)


def test_the_class_of_a_box_that_two_classes_have(tmp_path):
    """Nothing is guessed: known for the official list's few, refused for any other."""
    box = {"bbox_x1": 1, "bbox_y1": 2, "bbox_x2": 3, "bbox_y2": 4}
    both = [{**box, "relative_im_path": f"car_ims/{label:06}.jpg", "class": label, "test": 1} for label in (14, 19)]
    other = {**both[0], "bbox_x1": 9}  # and one that only the other folder has in another class
    both += [{**other, "class": 1, "test": 0}, {**other, "class": 5}]

    def read(*names):
        rows = [{**box, "fname": name} for name in names] + [{**box, "bbox_x1": 9, "fname": "00009.jpg"}]
        annotations = {
            "cars_annos.mat": {"annotations": both, "class_names": miniature.CARS_CLASSES},
            "cars_train_annos.mat": {"annotations": [{**box, "fname": "1.jpg", "class": 2}, {**box, "fname": "2.jpg", "class": 2}]},
            "cars_test_annos.mat": {"annotations": rows},
        }
        lists = {name: miniature.matlab(tmp_path / name, **values).read_bytes() for name, values in annotations.items()}
        return {entry.path: entry.label for part in paper_files.SETS["cars196"].read(lists).values() for entry in part}

    right = {"cars_test/05844.jpg": 19, "cars_test/01236.jpg": 14, "cars_test/00009.jpg": 5}
    assert read("05844.jpg", "01236.jpg").items() >= right.items()
    with pytest.raises(ValueError, match="00007.jpg.*14.*19.*cars_test_annos_withlabels.mat"):
        read("05844.jpg", "00007.jpg")


def test_sop(tmp_path):
    make("sop", tmp_path / "sop", miniature.sop(tmp_path))
    shutil.unpack_archive(tmp_path / "Stanford_Online_Products.zip", tmp_path / "unpacked")
    source = {str(path.relative_to(tmp_path / "unpacked")): path.read_bytes() for path in (tmp_path / "unpacked").rglob("*.JPG")}
    check_images(tmp_path / "sop", source, "Stanford_Online_Products/", "crop15")
    assert [int(row["label"]) for row in listed(tmp_path / "sop", "test")] == [11319] * 6 + [11320] * 6 + [11321] * 6
    # Packed without its lists, which lie beside.
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path, content in source.items():
            archive.writestr(path, content)
    for path in (tmp_path / "unpacked").rglob("Ebay_*.txt"):
        shutil.copy(path, tmp_path / path.name)
    make("sop", tmp_path / "beside", tmp_path / "photos.zip")
    assert listed(tmp_path / "sop", "train") == listed(tmp_path / "beside", "train")
    # Where it was unpacked already, the folder will do.
    make("sop", tmp_path / "from_folder", tmp_path / "unpacked")
    assert listed(tmp_path / "sop", "train") == listed(tmp_path / "from_folder", "train")
    made = (tmp_path / "from_folder" / "set.json").stat().st_mtime_ns
    make("sop", tmp_path / "from_folder", tmp_path / "unpacked")
    assert (tmp_path / "from_folder" / "set.json").stat().st_mtime_ns == made
    one, other = sorted((tmp_path / "unpacked").rglob("*.JPG"))[:2]
    one.write_bytes(other.read_bytes())  # deep in the folder
    make("sop", tmp_path / "from_folder", tmp_path / "unpacked")
    assert (tmp_path / "from_folder" / "set.json").stat().st_mtime_ns != made


def test_the_imagenet_mean_is_the_official_file(tmp_path):
    make("cub", tmp_path / "cub", miniature.cub(tmp_path))
    content = (tmp_path / "cub" / "mean.binaryproto").read_bytes()
    assert hashlib.sha1(content).hexdigest() == "63e4652e656abc1e87b7a8339a7e02fca63a2c0c" and len(content) == 786446
    assert imagenet_mean().mean(axis=(1, 2)) == pytest.approx([104.00699, 116.66877, 122.67891], abs=1e-4)
    assert content.startswith(bytes.fromhex("080110031880022080022a808030")) and content == mean_bytes(imagenet_mean())


def shrink(monkeypatch, name, archive, **changes):
    """Let the miniature be the official set: its own size, checksum and counts."""
    size, checksum = archive.stat().st_size, "sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest()
    counts = {"images": {"train": 18, "test": 18}, "classes": {"train": 3, "test": 3}}
    layouts = ((Download(archive.name, (), size, checksum),),)
    official = dataclasses.replace(paper_files.SETS[name], layouts=layouts, **{**counts, "sums": {}, **changes})
    monkeypatch.setitem(paper_files.SETS, name, official)


def test_the_official_set(tmp_path, monkeypatch, capsys):
    archive = miniature.cub(tmp_path)
    shrink(monkeypatch, "cub", archive)
    out = tmp_path / "cub"
    record = make("cub", out, archive, any_count=False)
    assert record["official"] is True and record["doubts"] == []
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    capsys.readouterr()
    archive.rename(tmp_path / "moved.tgz")
    for again in (None, tmp_path / "moved.tgz"):  # the archive is no longer needed, and may lie elsewhere
        assert make("cub", out, again, any_count=False) == record
    assert capsys.readouterr().out.count("is made already") == 2
    with pytest.raises(ValueError, match="holds the official set"):
        make("cub", out, tmp_path / "moved.tgz")
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_other_counts_stop_it(tmp_path, monkeypatch):
    archive = miniature.cub(tmp_path)
    shrink(monkeypatch, "cub", archive)
    monkeypatch.setitem(paper_files.SETS["cub"].images, "train", 5864)
    monkeypatch.setitem(paper_files.SETS["cub"].classes, "test", 100)
    with pytest.raises(ValueError) as error:
        make("cub", tmp_path / "cub", archive, any_count=False)
    assert "train: 18 images, published 5,864\n    test: 3 classes, published 100" in str(error.value)
    assert "COUNTS=any" in str(error.value) and not list((tmp_path / "cub").glob("*"))
    assert len(make("cub", tmp_path / "cub", archive)["doubts"]) == 2


def test_another_file_stops_it(tmp_path, monkeypatch):
    archive = miniature.cub(tmp_path)
    shrink(monkeypatch, "cub", archive)
    content = bytearray(archive.read_bytes())
    content[5] ^= 1  # gzip's time stamp: everything in it is as before
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"CUB_200_2011.tgz: has the sha256 \w+, expected \w+\nIt was damaged on the way"):
        make("cub", tmp_path / "cub", archive, any_count=False)
    assert "has the sha256" in make("cub", tmp_path / "cub", archive)["doubts"][0]


def test_an_unpacked_folder_is_told_by_single_images(tmp_path, monkeypatch):
    archive = miniature.cub(tmp_path)
    source = contents(archive)
    spots = {path.removeprefix("CUB_200_2011/"): hashlib.md5(content).hexdigest()
             for path, content in source.items() if path.endswith("_3.jpg") or path.endswith("_9.jpg")}  # fmt: skip
    assert len(spots) == 2
    shrink(monkeypatch, "cub", archive, spots=spots)
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    assert make("cub", tmp_path / "cub", tmp_path / "unpacked", any_count=False)["official"] is True
    shrink(monkeypatch, "cub", archive, spots=spots, sums={"images.txt": "0" * 64})
    with pytest.raises(ValueError, match="cannot be told to be official; images.txt is not the published list"):
        make("cub", tmp_path / "lists", tmp_path / "unpacked", any_count=False)
    shrink(monkeypatch, "cub", archive, spots=spots)
    other = next((tmp_path / "unpacked").rglob("*_9.jpg"))
    other.write_bytes(other.with_name(next(path.name for path in other.parent.glob("*_8.jpg"))).read_bytes())
    with pytest.raises(ValueError, match="of 2 images whose MD5 is known, 2 are there and 1 agree"):
        make("cub", tmp_path / "other", tmp_path / "unpacked", any_count=False)


def test_two_folders_are_told_by_their_lists(tmp_path, monkeypatch):
    """No image of this layout has a published MD5; the lists have checksums, and every image that they name must be there."""
    official = tmp_path / "car_ims.tgz"
    official.touch()
    for labels in ("cars_test_annos_withlabels.mat", None):
        folder = tmp_path / f"with_{labels}"
        folder.mkdir()
        miniature.cars_kaggle(folder, labels)
        sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.mat")}
        shrink(monkeypatch, "cars196", official, sums=sums)
        assert make("cars196", tmp_path / f"set_{labels}", folder, any_count=False)["official"] is True
        for wrong in ({**sums, "cars_train_annos.mat": "0" * 64}, {name: sums[name] for name in sums if "test" not in name}):
            shrink(monkeypatch, "cars196", official, sums=wrong)
            with pytest.raises(ValueError, match="cannot be told to be official"):
                make("cars196", tmp_path / "other", folder, any_count=False)
    used = [group for group in paper_files.SETS["cars196"].lists if "cars_train_annos.mat" in group]
    monkeypatch.undo()
    assert all(name in paper_files.SETS["cars196"].sums for group in used for name in group)


@pytest.mark.parametrize("kind", ["CUB_200_2011.tar", "CUB_200_2011.zip", "zip of tgz", "cub_200_2011 (2).TGZ", "unpacked beside"])
def test_a_folder_that_holds_the_set_in_another_form(tmp_path, kind):
    folder = tmp_path / "folder"
    folder.mkdir()
    archive = miniature.cub(tmp_path)
    if kind == "CUB_200_2011.tar":
        (folder / kind).write_bytes(gzip.decompress(archive.read_bytes()))
    elif kind == "CUB_200_2011.zip":
        with zipfile.ZipFile(folder / kind, "w") as packed:
            for name, content in contents(archive).items():
                packed.writestr(name, content)
    elif kind == "zip of tgz":
        with zipfile.ZipFile(folder / "CUB_200_2011.zip", "w") as packed:
            packed.write(archive, archive.name)
    elif kind == "unpacked beside":  # images from both: each is read once
        shutil.unpack_archive(archive, folder / "here")
        (folder / "CUB_200_2011.tar").write_bytes(gzip.decompress(archive.read_bytes()))
        next(folder.rglob("images/*/*.jpg")).unlink()
        (folder / "here/CUB_200_2011/images.txt").unlink()
    else:
        archive.rename(folder / kind)
    assert make("cub", tmp_path / "cub", folder)["train"]["images"] == 18
    assert len(listed(tmp_path / "cub", "test")) == 18


def test_a_folder_that_holds_something_else(tmp_path):
    folder = tmp_path / "folder"
    shutil.unpack_archive(miniature.cub(tmp_path), folder / "one/two")
    (folder / "notes.txt").touch()
    assert make("cub", tmp_path / "cub", folder / "one")["test"]["images"] == 18
    shutil.move(folder / "one", tmp_path / "moved")
    shutil.move(tmp_path / "moved", folder / "zero/one")
    with pytest.raises(ValueError) as error:
        make("cub", tmp_path / "other", folder)
    for words in ("images.txt", "notes.txt", "zero/", f"name {folder}/zero/one/two/CUB_200_2011", "CUB_200_2011.tgz"):
        assert words in str(error.value)


def test_what_is_no_archive_says_what_it_is(tmp_path):
    archive = miniature.cub(tmp_path)
    for content, words in ((b"<!DOCTYPE html><title>Google Drive - Virus scan warning", "web page"), (b"", "empty")):
        archive.write_bytes(content)
        for any_count in (False, True):
            with pytest.raises(ValueError, match=f"CUB_200_2011.tgz: is .*{words}") as error:
                make("cub", tmp_path / "cub", archive, any_count)
            assert "COUNTS=any" not in str(error.value)  # which would not help
    page = {**miniature.cub_members(), "images.txt": b"<html>404"}
    with pytest.raises(ValueError, match="images.txt: is a web page"):
        make("cub", tmp_path / "cub", miniature.cub(tmp_path, page))


def test_unreadable_images_are_all_named_and_an_earlier_set_stays(tmp_path):
    archive = miniature.cub(tmp_path)
    make("cub", tmp_path / "cub", archive)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cub").iterdir()}
    members = miniature.cub_members()
    paths = [path for path in members if path.endswith(".jpg")]
    broken = [paths[1], paths[7], paths[20]]
    members |= {broken[0]: b"text", broken[1]: members[broken[1]][:100], broken[2]: b""}
    miniature.cub(tmp_path, members)
    with pytest.raises(ValueError, match="^3 of 36 images cannot be read:\n") as error:
        make("cub", tmp_path / "cub", archive)
    assert all(f"    {path}: " in str(error.value) for path in broken)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cub").iterdir()} == before
    record = make("cub", tmp_path / "cub", archive, skip=True)
    assert record["train"]["images"] + record["test"]["images"] == 33 and "3 unreadable images were passed over" in record["doubts"]
    images = ImageDatabase(f"{tmp_path}/cub/train.lmdb")  # 16: two of the broken ones train
    rows = listed(tmp_path / "cub", "train")
    assert len(images) == len(rows) == 16 and not {row["path"] for row in rows} & set(broken)
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(images.read(place)[0], load_image(members[row["path"]], 256))


def changed(members, name, old, new):
    return {**members, name: re.sub(old, new, members[name].decode(), count=1, flags=re.M).encode()}


def test_wrong_lists(tmp_path):
    members = miniature.cub_members()
    first = next(path for path in members if path.endswith(".jpg"))
    without_list, without_image = ({path: content for path, content in members.items() if path != gone}
                                   for gone in ("classes.txt", first))  # fmt: skip
    labels = "image_class_labels.txt"
    for wrong, message in (
        (without_list, "expected the lists classes.txt, image_class"),
        (without_image, f"1 of 36 images are listed and not there, the first: {first}"),
        (changed(members, "images.txt", "^3 .*$", "3"), "images.txt, line 3: expected 2 columns, found '3'"),
        (changed(members, "images.txt", "^3 .*$", "1003 images/x.jpg"), "image 1003 has no class"),
        (changed(members, labels, "^3 1$", "3 one"), f"{labels}: expected a whole number, found 'one'"),
        (changed(members, labels, "^3 1$", "3 77"), "image 3 has no class in"),
        (changed(members, "images.txt", "^3 .*$", "3 " + first.removeprefix("images/")), "its lists name an image twice"),
    ):
        archive = miniature.cub(tmp_path, wrong)
        with pytest.raises(ValueError, match=re.escape(message)):
            make("cub", tmp_path / "cub", archive)
        assert not list((tmp_path / "cub").glob("*")), message
    (tmp_path / "cars_annos.mat").write_bytes(b"no Matlab file")
    miniature.write_tar(tmp_path / "car_ims.tgz", {"car_ims/000001.jpg": b""})
    with pytest.raises(ValueError, match="cars_annos.mat: cannot be read as Matlab's annotations"):
        make("cars196", tmp_path / "cars", tmp_path / "car_ims.tgz")


def test_what_was_made_from_an_earlier_set_goes_with_it(tmp_path):
    """A batch plan and a paired LMDB belong to one list of images."""
    archive = miniature.cub(tmp_path)
    options = ("--set", "cub", "--out", tmp_path / "cub", "--counts", "any", "--batch", 8, "--layout", "paired")
    done = tool("data_prep/paper_sets.py", *options, "--archive", archive)
    assert done.returncode == 0 and "pairs_m8.npz: 33 batches of 8" in done.stdout, done.stderr
    assert {path.name for path in (tmp_path / "cub").glob("*_m8*")} == {"pairs_m8.npz", "train_paired_m8.lmdb"}
    again = tool("data_prep/paper_sets.py", *options)
    assert again.returncode == 0 and again.stdout.count("is made already") == 2
    members = miniature.cub_members(seed=5)
    members[next(path for path in members if path.endswith(".jpg"))] = b"damaged"
    miniature.cub(tmp_path, members)
    record = make("cub", tmp_path / "cub", archive, skip=True)
    assert record["train"]["images"] == 17 and not list((tmp_path / "cub").glob("*_m8*"))


@pytest.mark.parametrize(
    ("batches", "images", "message"),
    [
        (np.full((2, 128), -1), 18, r"places in 0\.\.17"),
        (np.zeros((2, 128), np.int32), 17, "made for 17 images, but the LMDB has 18"),
        (np.zeros((0, 128), np.int32), 18, r"places in 0\.\.17"),
        (None, 18, "cannot be read as a batch plan"),
    ],
)
def test_the_paired_layout_of_a_plan_that_does_not_fit(tmp_path, batches, images, message):
    make("cub", tmp_path / "cub", miniature.cub(tmp_path))
    np.savez(tmp_path / "cub" / "pairs.npz", images=images, **({} if batches is None else {"batches": batches}))
    done = tool("data_prep/paired_lmdb.py", "--set", tmp_path / "cub")
    assert done.returncode == 1 and re.search(f"pairs.npz: .*{message}", done.stderr) and "Traceback" not in done.stderr
    assert not list((tmp_path / "cub").glob("*paired*"))


def test_the_paired_layout_is_the_plan_written_out(tmp_path):
    make("cub", tmp_path / "cub", miniature.cub(tmp_path))
    done = tool(
        "data_prep/paper_sets.py", "--set", "cub", "--out", tmp_path / "cub", "--counts", "any", "--batch", 8, "--layout", "paired"
    )
    assert done.returncode == 0, done.stderr
    assert "train_paired_m8.lmdb: 264 images, 0.0531 GB (train.lmdb has 0.00362 GB)" in done.stdout
    plan = np.load(tmp_path / "cub" / "pairs_m8.npz")["batches"]
    rows = listed(tmp_path / "cub", "train")
    once = ImageDatabase(f"{tmp_path}/cub/train.lmdb")
    with (
        lmdb.open(f"{tmp_path}/cub/train_paired_m8.lmdb", readonly=True, lock=False) as environment,
        environment.begin() as reading,
    ):
        found = list(reading.cursor())
    assert [key for key, _ in found] == [b"%08d" % place for place in range(33 * 8)]
    for place, (_, value) in enumerate(found):
        datum = Datum.FromString(value)
        assert (datum.channels, datum.height, datum.width, datum.encoded) == (3, 256, 256, False)
        assert datum.label == int(rows[plan.ravel()[place]]["label"])
        assert datum.data == once.read(plan.ravel()[place])[0].tobytes()


def test_the_paired_layout_says_what_it_needs(tmp_path, monkeypatch):
    make("cub", tmp_path / "cub", miniature.cub(tmp_path))
    paper_sets.write_plan(tmp_path / "cub" / "pairs.npz", [int(row["label"]) for row in listed(tmp_path / "cub", "train")])
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(OSError, match=r"51,445,760 bytes are needed and 1,000 are free .*LAYOUT=once"):
        paper_sets.write_paired(tmp_path / "cub/train.lmdb", tmp_path / "cub/pairs.npz", tmp_path / "cub/train_paired.lmdb")
    assert not list((tmp_path / "cub").glob("*paired*"))


def sizes_of(images, classes, low, high):
    """Class sizes in low..high that add up to so many images; the sets' own are not in this repository."""
    random = np.random.default_rng(0)
    sizes = random.integers(low, high, classes, endpoint=True)
    while (difference := images - sizes.sum()) != 0:
        place = random.integers(classes)
        if low <= sizes[place] + np.sign(difference) <= high:
            sizes[place] += np.sign(difference)
    return sizes


@pytest.mark.parametrize("images, classes, low, high", [(5864, 100, 41, 60), (8054, 98, 48, 136), (59551, 11318, 2, 12)])
def test_plans_of_the_paper_s_sizes(images, classes, low, high):
    """Published numbers of images and classes, published smallest and largest class."""
    sizes = sizes_of(images, classes, low, high)
    batches, facts = make_plan(np.repeat(np.arange(classes), sizes))
    positive = int((sizes * (sizes - 1) // 2).sum() + images)  # all pairs of a class, and each image with itself
    per_image = -(-positive // images)
    assert facts["positive_pairs"] == positive and facts["negatives_per_image"] == per_image
    assert batches.shape == ((positive + per_image * images) // 64, 128)
    assert facts["negative_pairs"] == batches.size // 2 - positive and facts["repeated_classes"] == 0
    assert batches.nbytes < 6e6


def test_command_line_without_the_files(tmp_path):
    """No network, no archive: one message with every address, size, checksum and the place to put it; nothing half made."""
    dead = dict.fromkeys(("http_proxy", "https_proxy", "ftp_proxy"), "http://127.0.0.1:9")
    expected = {
        "cub": ["CUB_200_2011.tgz (1,150,585,339 bytes, sha256 0c685df5"],
        "cars196": ["car_ims.tgz (1,956,628,579 bytes, md5 d5c8f0aa", "cars_annos.mat (394,471 bytes", "CARS196.zip",
                    "cars_train.tgz", "cars_test_annos_withlabels.mat"],
        "sop": ["Stanford_Online_Products.zip (3,083,860,082 bytes, sha256 b04fa782"],
    }  # fmt: skip
    for name, files in expected.items():
        done = tool("data_prep/paper_sets.py", "--set", name, cwd=tmp_path, env=dead)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        for file in files:
            assert file in done.stderr, done.stderr
        for download in paper_files.SETS[name].layouts[0][0].addresses:
            assert download in done.stderr
        assert f"put it at data/downloads/{files[0].split()[0]}" in done.stderr and f"make data-{name} ARCHIVE=" in done.stderr
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {".lock"}


def test_decoding_keeps_the_order_of_a_large_image(tmp_path):
    """A large image is decoded for longer than the small ones after it; each keeps its own place."""
    members = miniature.cub_members()
    first = next(path for path in members if path.endswith(".jpg"))
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (2500, 3000, 3), dtype=np.uint8)).save(stream, "JPEG")
    members[first] = stream.getvalue()
    make("cub", tmp_path / "cub", miniature.cub(tmp_path, members))
    check_images(tmp_path / "cub", {f"CUB_200_2011/{path}": content for path, content in members.items()}, "CUB_200_2011/")
    assert json.loads((tmp_path / "cub" / "set.json").read_text())["train"]["images"] == 18


def test_other_options_make_it_anew(tmp_path):
    """The same archive with another resizing, or with unreadable images passed over, is another set."""
    members = miniature.cub_members()
    archive = miniature.cub(tmp_path, members)
    make("cub", tmp_path / "cub", archive)
    plain = ImageDatabase(f"{tmp_path}/cub/train.lmdb").read(0)[0].copy()
    record = make("cub", tmp_path / "cub", archive, resize="crop15")
    assert record["options"]["resize"] == "crop15"
    assert not np.array_equal(ImageDatabase(f"{tmp_path}/cub/train.lmdb").read(0)[0], plain)
    made = (tmp_path / "cub" / "set.json").stat().st_mtime_ns
    make("cub", tmp_path / "cub", archive, resize="crop15", skip=True)
    assert (tmp_path / "cub" / "set.json").stat().st_mtime_ns != made


def test_a_plan_that_is_there_is_kept(tmp_path):
    options = ("--set", "cub", "--out", tmp_path / "cub", "--counts", "any", "--batch", 8, "--archive", miniature.cub(tmp_path))
    assert tool("data_prep/paper_sets.py", *options).returncode == 0
    made = (tmp_path / "cub" / "pairs_m8.npz").stat().st_mtime_ns
    again = tool("data_prep/paper_sets.py", *options)
    assert again.returncode == 0 and "batches" not in again.stdout
    assert (tmp_path / "cub" / "pairs_m8.npz").stat().st_mtime_ns == made
    with locked(tmp_path / "cub", "making a set"):
        for script, arguments in (("paper_sets", options), ("paired_lmdb", ("--set", tmp_path / "cub", "--batch", 8))):
            done = tool(f"data_prep/{script}.py", *arguments)
            assert done.returncode == 1 and "another process" in done.stderr


def test_what_was_downloaded_in_another_layout_is_used(tmp_path, monkeypatch):
    """CARS196.zip lies in data/downloads: nothing is fetched for the layouts before it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/downloads").mkdir(parents=True)
    miniature.cars_zip(tmp_path / "data/downloads")
    monkeypatch.setattr(paper_sets, "fetch", lambda file: paper_sets.DOWNLOADS / file.name)
    assert [path.name for path, _ in paper_sets.locate("cars196", None)] == ["CARS196.zip"]


def test_published_constants():
    """Typed a second time from the fact sheet's sources: a digit that is wrong here refuses the official files."""
    known = {
        "CUB_200_2011.tgz": (1150585339, "sha256:0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081"),
        "car_ims.tgz": (1956628579, "md5:d5c8f0aa497503f355e17dc7886c3f14"),
        "cars_annos.mat": (394471, "md5:b407c6086d669747186bd1d764ff9dbc"),
        "CARS196.zip": (None, None),
        "cars_train.tgz": (979269282, "md5:065e5b463ae28d29e77c1b4b166cfe61"),
        "cars_test.tgz": (977350468, "md5:4ce7ebf6a94d07f1952d94dd34c4d501"),
        "car_devkit.tgz": (330960, "md5:c3b158d763b6e2245038c8ad08e45376"),
        "cars_test_annos_withlabels.mat": (185758, "md5:b0a2b23655a3edd16d84508592a98d10"),
        "Stanford_Online_Products.zip": (3083860082, "sha256:b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48"),
    }
    files = [file for name in paper_files.SETS.values() for layout in name.layouts for file in layout]
    assert {file.name: (file.size, file.checksum) for file in files} == known
    assert (WEIGHTS.size, WEIGHTS.checksum) == (53533754, "sha1:405fc5acd08a3bb12de8ee5e23a96bec22f08204")
    sets = paper_files.SETS
    counts = {name: [(sets[name].images[part], sets[name].classes[part]) for part in ("train", "test")] for name in sets}
    assert counts == {"cub": [(5864, 100), (5924, 100)], "cars196": [(8054, 98), (8131, 98)],
                      "sop": [(59551, 11318), (60502, 11316)]}  # fmt: skip
    assert {name: found.resize for name, found in paper_files.SETS.items()} == {"cub": "plain", "cars196": "plain", "sop": "crop15"}
    ends = {name: [value[:6] + value[-4:] for value in found.spots.values()] for name, found in paper_files.SETS.items()}
    assert ends == {"cub": ["4c84daa7c2", "e7db63cdc0", "487d08cc00", "96fd60c6fe"],
                    "cars196": ["2d44a2452e", "531fbdc8f9", "e7238c1f17", "b2a95a378e", "bab2963d07"],
                    "sop": ["77420a9edb", "ce78d106ba", "8203e0a0a1", "d6c24e224e"]}  # fmt: skip


def test_lists_as_other_tools_leave_them(tmp_path, monkeypatch):
    """Line ends of Windows, a byte order mark and empty lines change nothing; ids that no class has are named."""
    members = miniature.cub_members()
    names = ("images.txt", "image_class_labels.txt", "classes.txt")
    sums = {name: hashlib.sha256(members[name]).hexdigest() for name in names}
    image = next(path for path in members if path.endswith(".jpg"))
    spots = {image: hashlib.md5(members[image]).hexdigest()}
    shrink(monkeypatch, "cub", miniature.cub(tmp_path), sums=sums, spots=spots)
    members[image.replace(".jpg", ".JPG")] = members.pop(image)
    for number, encode in enumerate((lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: text.encode("utf-16"))):
        changed = {name: encode(members[name].decode().replace("\n", "\r\n")) for name in names}
        archive = miniature.cub(tmp_path, {**members, **changed}).rename(tmp_path / f"{number}.tgz")
        record = make("cub", tmp_path / f"{number}", archive, any_count=False)
        assert record["train"]["images"] == 18 and record["official"]
    for name in names:
        members[name] = members[name] + b"\r\n\r\n"
    assert make("cub", tmp_path / "empty_lines", miniature.cub(tmp_path, members))["train"]["images"] == 18
    archive = miniature.sop(tmp_path)
    with zipfile.ZipFile(archive) as whole:
        lists = {f"Ebay_{part}.txt": whole.read(f"Stanford_Online_Products/Ebay_{part}.txt") for part in ("train", "test")}
    with pytest.raises(ValueError, match="Ebay_test.txt, line 1: expected image_id class_id super_class_id path, found 'id class"):
        paper_files.SETS["sop"].read({**lists, "Ebay_test.txt": lists["Ebay_test.txt"].replace(b"image_id", b"id class", 1)
                                      .replace(b" super_class_id path", b" path", 1)})  # fmt: skip
    miniature.cars(tmp_path)
    annotations = (tmp_path / "cars_annos.mat").read_bytes()
    miniature.matlab(tmp_path / "few.mat", class_names=miniature.CARS_CLASSES[:50])
    assert len(paper_files.SETS["cars196"].read({"cars_annos.mat": annotations})["train"]) == 18
    miniature.matlab(tmp_path / "train.mat", annotations=[{"class": 197, "fname": "00001.jpg"}])
    with pytest.raises(ValueError, match="an annotation has the class 197, and there are names of 50 classes"):
        paper_files.SETS["cars196"].read({"cars_train_annos.mat": (tmp_path / "train.mat").read_bytes(),
                                          "cars_test_annos_withlabels.mat": (tmp_path / "train.mat").read_bytes(),
                                          "cars_meta.mat": (tmp_path / "few.mat").read_bytes()})  # fmt: skip


def test_images_are_not_turned_by_exif(tmp_path):
    members = miniature.cub_members()
    first = next(path for path in members if path.endswith(".jpg"))
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, :40] = 250
    Image.fromarray(wide).save(stream, "JPEG", exif=exif)
    members[first] = stream.getvalue()
    make("cub", tmp_path / "cub", miniature.cub(tmp_path, members))
    image = ImageDatabase(f"{tmp_path}/cub/train.lmdb").read(0)[0]
    assert image[:, :, :100].min() > 200 and image[:, :, 160:].max() < 50


def test_a_folder_without_any_known_image_is_not_official(tmp_path, monkeypatch):
    archive = miniature.cub(tmp_path)
    shrink(monkeypatch, "cub", archive, spots={"images/elsewhere.jpg": "0" * 32})
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    with pytest.raises(ValueError, match="of 1 images whose MD5 is known, 0 are there"):
        make("cub", tmp_path / "cub", tmp_path / "unpacked", any_count=False)


def test_every_image_of_a_part_unreadable(tmp_path):
    members = miniature.cub_members()
    for path in members:
        if path.startswith(("images/1", "images/2")):
            members[path] = b"text"
    with pytest.raises(ValueError, match="no image is left to test"):
        make("cub", tmp_path / "cub", miniature.cub(tmp_path, members), skip=True)
    assert not list((tmp_path / "cub").glob("*"))


def test_an_incomplete_set_is_made_again(tmp_path):
    archive = miniature.cub(tmp_path)
    content = make("cub", tmp_path / "cub", archive)["content"]
    shutil.rmtree(tmp_path / "cub" / "test.lmdb")
    assert make("cub", tmp_path / "cub", archive)["content"] == content and (tmp_path / "cub" / "test.lmdb").exists()
    members = miniature.cub_members()
    paths = [path for path in members if path.endswith(".jpg")]
    members[paths[0]], members[paths[1]] = members[paths[1]], members[paths[0]]  # other pixels under the same names
    miniature.cub(tmp_path, members)
    assert make("cub", tmp_path / "cub", archive)["content"] != content


def test_a_wrong_file_among_the_downloads_is_not_official_by_its_place(tmp_path, monkeypatch):
    archive = miniature.cub(tmp_path)
    shrink(monkeypatch, "cub", archive)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/downloads").mkdir(parents=True)
    (tmp_path / "data/downloads" / archive.name).write_bytes(archive.read_bytes() + b"x")
    for named in (paper_sets.DOWNLOADS / archive.name, paper_sets.DOWNLOADS):
        with pytest.raises(ValueError, match="is not the official file"):
            make("cub", tmp_path / "cub", named, any_count=False)


def test_what_a_killed_call_left_does_not_take_the_room(tmp_path, monkeypatch):
    archive = miniature.cub(tmp_path)
    (tmp_path / "cub" / ".train.lmdb.partial.lmdb").mkdir(parents=True)
    seen = []
    monkeypatch.setattr("data_prep.write_set.require_space", lambda out, *_: seen.append(list(out.iterdir())))
    make("cub", tmp_path / "cub", archive)
    assert seen == [[]]


def test_lists_that_are_wrong_in_other_ways(tmp_path):
    files = [(tmp_path / "x.tgz", None)]
    unlabelled = miniature.matlab(tmp_path / "t.mat", annotations=[{"fname": "00001.jpg"}, {"fname": "00002.jpg"}]).read_bytes()
    meta = miniature.matlab(tmp_path / "m.mat", class_names=miniature.CARS_CLASSES).read_bytes()
    lists = {"cars_train_annos.mat": unlabelled, "cars_test_annos_withlabels.mat": unlabelled, "cars_meta.mat": meta}
    with pytest.raises(ValueError, match=r"x.tgz: the lists cars_meta.mat, .* are not the official ones \(KeyError: 'class'\)"):
        paper_sets.read_lists("cars196", files, lists)
    header = b"image_id class_id super_class_id path\n"
    for train, message in (
        (b"", "Ebay_train.txt: is empty"),
        (header + b"1 3000000000 1 a_0.JPG\n", "has the class 3000000000"),
        (header + b"1 0 1 a_0.JPG\n", "has the class 0; class ids begin at 1"),
    ):
        with pytest.raises(ValueError, match=message):
            paper_sets.read_lists("sop", files, {"Ebay_train.txt": train, "Ebay_test.txt": header})
