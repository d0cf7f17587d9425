"""The pair-batch data against Caffe's own Data layer, and against the transform written out by hand."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import lmdb
import numpy as np
import pytest
from caffe_pb2 import BlobProto, Datum

from data_prep.write_set import mean_bytes
from pair_batch import ImageDatabase, PairBatches, draw_crops, read_mean, read_plan

DATA_LAYER = """
layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ source: "{lmdb}" backend: LMDB batch_size: {batch} }}
  transform_param {{ crop_size: 14 mirror: false mean_file: "{mean}" }} }}
"""


def test_equals_caffes_own_data_layer_to_the_bit(caffe, tmp_path, small_set):
    """Centre crop, no mirror, mean image: every image of the LMDB, as Caffe's Data layer in TEST gives it."""
    count = len(ImageDatabase(f"{small_set}/train.lmdb"))
    (tmp_path / "net.prototxt").write_text(
        DATA_LAYER.format(lmdb=f"{small_set}/train.lmdb", batch=count, mean=f"{small_set}/mean.binaryproto"))  # fmt: skip
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    net.forward()

    np.savez(tmp_path / "all.npz", batches=np.arange(count).reshape(1, -1), images=count)
    layer = {"lmdb": f"{small_set}/train.lmdb", "plan": f"{tmp_path}/all.npz", "crop": 14,
             "mean_file": f"{small_set}/mean.binaryproto"}  # fmt: skip
    (tmp_path / "ours.prototxt").write_text(
        'layer { name: "pair_batch" type: "Python" top: "data" top: "label" param { lr_mult: 0 decay_mult: 0 }\n'
        'python_param { module: "pair_batch_data_layer" layer: "PairBatchData" '
        f"param_str: '{json.dumps(layer)}' }} }}")  # fmt: skip
    ours = caffe.Net(str(tmp_path / "ours.prototxt"), caffe.TEST)
    ours.forward()
    np.testing.assert_array_equal(ours.blobs["data"].data, net.blobs["data"].data)
    np.testing.assert_array_equal(ours.blobs["label"].data, net.blobs["label"].data)
    assert len(np.unique(net.blobs["label"].data)) == 6 and np.abs(net.blobs["data"].data).max() > 5


def literal_transform(image, mean, crop, top, left, mirrored):
    """Caffe's DataTransformer, number by number: the mean is subtracted where the pixel was, then mirrored with it."""
    channels = image.shape[0]
    out = np.empty((channels, crop, crop), np.float32)
    for c in range(channels):
        for h in range(crop):
            for w in range(crop):
                value = np.float32(image[c, top + h, left + w]) - mean[c, top + h, left + w]
                out[c, h, crop - 1 - w if mirrored else w] = value
    return out


@pytest.mark.parametrize("mirror", [True, False])
def test_random_crops_equal_the_literal_transform(small_set, mirror):
    batches = PairBatches(
        f"{small_set}/train.lmdb", f"{small_set}/pairs_m16.npz", f"{small_set}/mean.binaryproto", 11, mirror, 7, True
    )
    mean, plan = read_mean(f"{small_set}/mean.binaryproto"), read_plan(f"{small_set}/pairs_m16.npz", len(batches.images))[0]
    data, labels = np.empty(batches.shape, np.float32), np.empty(batches.shape[0], np.float32)
    for number in (0, 1, len(plan) + 1):
        batches.read(number, data, labels)
        tops, lefts, mirrored = draw_crops(7, number, len(labels), (5, 5))
        for slot, index in enumerate(plan[number % len(plan)]):
            image, label = batches.images.read(index)
            expected = literal_transform(image, mean, 11, tops[slot], lefts[slot], mirrored[slot] and mirror)
            np.testing.assert_array_equal(data[slot], expected)
            assert labels[slot] == label


def test_a_batch_is_a_function_of_seed_and_number(small_set):
    def read(seed, numbers):
        batches = PairBatches(f"{small_set}/train.lmdb", f"{small_set}/pairs_m16.npz", "", 12, True, seed, True)
        out = {}
        for number in numbers:
            data, labels = np.empty(batches.shape, np.float32), np.empty(batches.shape[0], np.float32)
            batches.read(number, data, labels)
            out[number] = data
        return out

    forward, backward = read(1, [0, 1, 2, 5]), read(1, [5, 2, 0])
    for number, data in backward.items():
        np.testing.assert_array_equal(data, forward[number])
    assert not np.array_equal(read(2, [2])[2], forward[2])
    rows = len(read_plan(f"{small_set}/pairs_m16.npz", 30)[0])
    assert not np.array_equal(read(1, [2 + rows])[2 + rows], forward[2])  # the next pass has crops of its own


def test_crops_are_uniform_over_the_whole_range():
    tops, lefts, mirrored = draw_crops(1, 0, 30000, (4, 2))
    for values, possible in ((tops, 5), (lefts, 3), (mirrored, 2)):
        counts = np.bincount(values.astype(int), minlength=possible)
        assert len(counts) == possible
        # Chi-squared with at most 4 degrees of freedom: above 30 with probability 5e-6.
        assert ((counts - 30000 / possible) ** 2 / (30000 / possible)).sum() < 30
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.03


def write_database(path, datums):
    with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for number, datum in enumerate(datums):
            transaction.put(b"%08d" % number, datum.SerializeToString())


def test_databases_that_are_not_ours(tmp_path):
    raw = {"channels": 3, "height": 2, "width": 2, "data": bytes(12), "label": 1}
    write_database(tmp_path / "empty.lmdb", [])
    write_database(tmp_path / "encoded.lmdb", [Datum(data=b"\xff\xd8jpeg", encoded=True, label=1)])
    write_database(tmp_path / "mixed.lmdb", [Datum(**raw), Datum(**{**raw, "height": 1, "data": bytes(6)})])
    with lmdb.open(str(tmp_path / "other.lmdb"), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"x", b"\xff\xff no message")
    (tmp_path / "text.lmdb").mkdir()
    (tmp_path / "text.lmdb" / "data.mdb").write_text("no database" * 1000)
    for sign in (-1, 0):  # two negative ones multiply to the right number of bytes
        sizes = {"height": 2 * sign, "width": 2 * sign, "data": bytes(12 * sign**2)}
        write_database(tmp_path / f"size{sign}.lmdb", [Datum(**{**raw, **sizes})])
    write_database(tmp_path / "floats.lmdb", [Datum(channels=3, height=2, width=2, float_data=[0.5] * 12, label=1)])
    write_database(tmp_path / "version.lmdb", [Datum(**raw)])
    with open(tmp_path / "version.lmdb" / "data.mdb", "r+b") as stream:
        for page in (0, 4096):  # the two meta pages
            stream.seek(page + 20)
            stream.write(b"\2")
    for name, message in (
        ("size-1", r"size-1.lmdb: key '00000000' is not a raw image .* = \(3, -2, -2\), 12 bytes"),
        ("size0", r"not a raw image .* = \(3, 0, 0\), 0 bytes"),
        ("floats", r"not a raw image .* = \(3, 2, 2\), 0 bytes"),
        ("version", "version.lmdb: cannot be opened as an LMDB"),
        ("empty", "is empty"),
        ("encoded", "not a raw image"),
        ("text", "cannot be opened"),
        ("other", "holds no Datum"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageDatabase(str(tmp_path / f"{name}.lmdb"))
    for number, label in enumerate((None, -1, 1 << 24)):
        write_database(tmp_path / f"label{number}.lmdb", [Datum(**{**raw, "label": label})])
        with pytest.raises(ValueError, match="key '00000000' has no label in"):
            ImageDatabase(str(tmp_path / f"label{number}.lmdb"))
    mixed = ImageDatabase(str(tmp_path / "mixed.lmdb"))
    with pytest.raises(ValueError, match=r"'00000001' is an image of \(3, 1, 2\), the others of \(3, 2, 2\)"):
        mixed.read(1)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_a_database_that_is_cut_off(small_set, tmp_path, share):
    """Reading beyond its end would be a bus error."""
    whole = (small_set / "train.lmdb" / "data.mdb").read_bytes()
    (tmp_path / "cut.lmdb").mkdir()
    (tmp_path / "cut.lmdb" / "data.mdb").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="cannot be opened as an LMDB"):
        ImageDatabase(str(tmp_path / "cut.lmdb"))


def test_reading_keeps_no_memory(tmp_path):
    """The bytes of images that were read are given back: 20,000 batches of 128 images of 200 kB are 500 GB."""

    def held():
        with open("/proc/self/status") as stream:
            return next(int(line.split()[1]) << 10 for line in stream if line.startswith("RssAnon"))

    size = 3 * 256 * 256
    write_database(tmp_path / "one.lmdb", [Datum(channels=3, height=256, width=256, data=bytes(size), label=1)])
    images = ImageDatabase(str(tmp_path / "one.lmdb"))
    for _ in range(20):
        images.read(0)
    before = held()
    for _ in range(500):
        images.read(0)
    assert held() - before < 50 * size


def test_a_plan_of_another_set_of_the_same_size(small_set, tmp_path):
    with np.load(small_set / "pairs_m16.npz") as plan:
        contents = dict(plan)
    contents["labels"] = np.roll(contents["labels"], 2)
    np.savez(tmp_path / "pairs.npz", **contents)
    batches = PairBatches(str(small_set / "train.lmdb"), str(tmp_path / "pairs.npz"), "", 14, False, 1, True)
    data, labels = np.empty(batches.shape, np.float32), np.empty(len(batches.batches[0]), np.float32)
    with pytest.raises(ValueError, match=r"was not made for .*train.lmdb: image \d+ is of class \d+ in the plan, "):
        batches.read(0, data, labels)
    np.savez(tmp_path / "pairs.npz", **{**contents, "labels": contents["labels"][1:]})
    with pytest.raises(ValueError, match=r"labels must be \(30,\) integers"):
        read_plan(tmp_path / "pairs.npz", 30)


def test_a_lock_file_that_others_left_does_not_matter(tmp_path, small_set):
    copy = shutil.copytree(small_set / "train.lmdb", tmp_path / "train.lmdb")
    reader = "import lmdb, os, sys; t = lmdb.open(sys.argv[1]).begin(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", reader, copy]).returncode == -9  # it stays in the table of readers
    assert len(ImageDatabase(str(copy))) == 30
    (copy / "lock.mdb").write_bytes(os.urandom(8192))
    images = ImageDatabase(str(copy))
    assert len(images) == 30 and images.read(29)[0].shape == (3, 16, 16)


def test_taken_alone_it_finds_the_messages_of_another_pycaffe(tmp_path):
    """Of this project there is pair_batch.py alone; Caffe's messages are where BVLC's build leaves them."""
    home = tmp_path / "caffe/proto"
    home.mkdir(parents=True)
    for folder in (home, home.parent):
        (folder / "__init__.py").touch()
    shutil.copy(sys.modules["caffe_pb2"].__file__, home)
    shutil.copy(sys.modules["pair_batch"].__file__, tmp_path)
    packages = os.path.dirname(os.path.dirname(np.__file__))
    paths = f"[{str(tmp_path)!r}, *(path for path in sys.path if 'packages' not in path), {packages!r}]"
    code = f"import sys; sys.path = {paths}; import pair_batch; print(pair_batch.Datum.__module__)"
    done = subprocess.run([sys.executable, "-S", "-c", code], text=True, capture_output=True)
    assert done.stdout == "caffe.proto.caffe_pb2\n", done.stderr


def test_plans_that_do_not_fit(tmp_path):
    np.savez(tmp_path / "other.npz", batches=np.zeros((2, 4), np.int32), images=9)
    np.savez(tmp_path / "outside.npz", batches=np.full((2, 4), 10), images=10)
    np.savez(tmp_path / "objects.npz", batches=np.array([None, {}], dtype=object), images=10)
    with pytest.raises(ValueError, match="made for 9 images, but the LMDB has 10"):
        read_plan(tmp_path / "other.npz", 10)
    with pytest.raises(ValueError, match=r"places in 0\.\.9"):
        read_plan(tmp_path / "outside.npz", 10)
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as plan, plan.open("batches.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<i4", "fortran_order": False, "shape": (10**6, 10**6)})
    for name in ("objects", "huge"):
        with pytest.raises(ValueError, match=f"{name}.npz: cannot be read as a batch plan"):
            read_plan(tmp_path / f"{name}.npz", 10)


def test_mean_files(tmp_path, small_set):
    mean = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    (tmp_path / "legacy.binaryproto").write_bytes(mean_bytes(mean))
    np.testing.assert_array_equal(read_mean(tmp_path / "legacy.binaryproto"), mean)
    blob = BlobProto(data=mean.ravel())
    blob.shape.dim.extend([1, 3, 4, 5])
    (tmp_path / "shape.binaryproto").write_bytes(blob.SerializeToString())
    np.testing.assert_array_equal(read_mean(tmp_path / "shape.binaryproto"), mean)
    images = ImageDatabase(f"{small_set}/train.lmdb")
    expected = np.mean([images.read(i)[0].astype(np.float64) for i in range(len(images))], axis=0)
    np.testing.assert_allclose(read_mean(f"{small_set}/mean.binaryproto"), expected, rtol=1e-6)
    blob.shape.dim[:] = [1, 3, -4, -5]
    for damaged in (mean_bytes(mean * np.nan), blob.SerializeToString(), BlobProto(num=1, channels=3).SerializeToString()):
        (tmp_path / "wrong.binaryproto").write_bytes(damaged)
        with pytest.raises(ValueError, match="wrong.binaryproto: a mean file holds one finite image"):
            read_mean(tmp_path / "wrong.binaryproto")
