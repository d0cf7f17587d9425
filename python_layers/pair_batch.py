"""Batches of image pairs from an image-once LMDB: numpy, lmdb and Caffe's messages, no pycaffe.

The Caffe layer around it is pair_batch_data_layer.py. tools/extract.py uses the same reading and transforming.
"""

import math
import os
import weakref
from typing import ClassVar

import lmdb
import numpy as np
from google.protobuf.message import DecodeError

try:
    from caffe_pb2 import BlobProto, Datum
except ImportError:  # taken alone, beside another pycaffe
    from caffe.proto.caffe_pb2 import BlobProto, Datum

LABELS = 1 << 24  # labels are float32 in Caffe, where from here on two of them are one


class UnreadableBatch(ValueError):
    """An image that a batch needs is damaged in its LMDB, or is another than the plan was made for."""


class SharedEnvironment:
    """An open LMDB. py-lmdb opens none twice in a process, so that all who read one share it, and the last closes it."""

    opened: ClassVar = weakref.WeakValueDictionary()

    @classmethod
    def of(cls, path):
        key = os.path.realpath(path)
        shared = cls.opened.get(key)
        if shared is None:
            shared = cls.opened[key] = cls(path)
        return shared

    def __init__(self, path):
        # Read-only and never changed once it has its name: no lock file is needed, and none is written.
        self.lmdb = lmdb.open(path, readonly=True, lock=False, create=False)
        wanted = (self.lmdb.info()["last_pgno"] + 1) * self.lmdb.stat()["psize"]
        found = os.path.getsize(os.path.join(path, "data.mdb") if os.path.isdir(path) else path)
        if found < wanted:  # reading what is cut off would end the process with a bus error
            raise lmdb.CorruptedError(f"data.mdb has {found:,} bytes, but should have {wanted:,}")


class ImageDatabase:
    """The images of an LMDB of raw Datums (uint8; channels, height, width), by their place in key order.

    Raises ValueError naming the path when it is missing, is no LMDB, or does not hold such images.
    """

    def __init__(self, path):
        self.path = path
        try:
            self.environment = SharedEnvironment.of(path)
            self.transaction = self.environment.lmdb.begin(buffers=True)
            self.keys = [bytes(key) for key in self.transaction.cursor().iternext(keys=True, values=False)]
        except lmdb.Error as error:
            raise ValueError(f"{path}: cannot be opened as an LMDB ({error}); data_prep writes one (make data-<set>)") from None
        if not self.keys:
            raise ValueError(f"{path}: the LMDB is empty")
        self.image_shape = None
        image, _ = self.read(0)
        self.image_shape = image.shape

    def __len__(self):
        return len(self.keys)

    def record(self, index):
        """The bytes of the Datum of the index-th key."""
        return self.transaction.get(self.keys[index], b"")

    def read(self, index):
        """(image (channels, height, width) uint8, label) of the index-th key; UnreadableBatch names the database and the key."""
        try:
            datum = Datum.FromString(self.record(index))  # a message that is parsed into again keeps what it held before
        except (DecodeError, lmdb.Error) as error:
            raise self._unreadable(index, f"holds no Datum of Caffe ({error})") from None
        data, shape = datum.data, (datum.channels, datum.height, datum.width)
        if datum.encoded or min(shape) < 1 or len(data) != math.prod(shape):
            raise self._unreadable(index, f"is not a raw image of uint8 (channels, height, width = {shape}, {len(data)} bytes, "
                                   f"encoded {datum.encoded})")  # fmt: skip
        if self.image_shape not in (None, shape):
            raise self._unreadable(index, f"is an image of {shape}, the others of {self.image_shape}")
        if not datum.HasField("label") or not 0 <= datum.label < LABELS:
            raise self._unreadable(index, f"has no label in 0..{LABELS - 1:,}")
        return np.frombuffer(data, np.uint8).reshape(shape), datum.label

    def _unreadable(self, index, what):
        return UnreadableBatch(f"{self.path}: key {self.keys[index].decode(errors='replace')!r} {what}")


def read_mean(path):
    """The mean image (channels, height, width) float32 of a Caffe mean file (BlobProto)."""
    blob = BlobProto()
    try:
        with open(path, "rb") as stream:
            blob.ParseFromString(stream.read())
    except (OSError, DecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a mean file ({error}); data_prep writes one (make data-<set>)") from None
    legacy = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) or legacy
    if len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    mean = np.array(blob.data, np.float32)
    if len(shape) != 3 or min(shape) < 1 or mean.size != math.prod(shape) or not np.isfinite(mean).all():
        raise ValueError(f"{path}: a mean file holds one finite image (channels, height, width), not shape {shape} "
                         f"with {mean.size} numbers")  # fmt: skip
    return mean.reshape(shape)


def draw_crops(seed, batch, images, room):
    """Crops and mirrors of batch number `batch`: a function of (seed, batch) alone.

    Each image draws its own, as in Caffe's DataTransformer: offsets uniform in 0..room[0] and 0..room[1], mirrored or
    not with equal chance. Returns (top (images,), left (images,), mirrored (images,) bool).
    """
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, batch])))
    top = random.integers(0, room[0], images, endpoint=True)
    left = random.integers(0, room[1], images, endpoint=True)
    return top, left, random.integers(0, 2, images).astype(bool)


def centre_crop(room):
    """(top, left) of the centre crop, rounded as in Caffe's DataTransformer."""
    return room[0] // 2, room[1] // 2


def transform(image, mean, crop, top, left, mirrored, out):
    """Write the crop of image - mean into `out`, mirrored with its mean, as Caffe's DataTransformer does.

    image (channels, height, width) uint8; mean of the same shape, float32, or None; out (channels, crop, crop) float32.
    """
    window = np.s_[:, top : top + crop, left : left + crop]
    target = out[:, :, ::-1] if mirrored else out
    if mean is None:
        target[...] = image[window]
    else:
        np.subtract(image[window], mean[window], out=target)


# What PairBatchData's param_str holds: a default, or the type of what must be given.
PARAMETERS = {"lmdb": str, "plan": str, "crop": int, "mean_file": "", "mirror": True, "seed": 1}


class PairBatches:
    """Batch number i of a plan, ready for a net: row i mod n of the plan's images, cropped and mirrored.

    Parameters as in PairBatchData (pair_batch_data_layer.py). `random` False: centre crops, never mirrored.
    """

    def __init__(self, lmdb, plan, mean_file, crop, mirror, seed, random):
        self.images = ImageDatabase(lmdb)
        self.batches, self.planned = read_plan(plan, len(self.images))  # (n, m), (images,) or None
        self.plan = plan
        channels, height, width = self.images.image_shape
        if not 0 < crop <= min(height, width):
            raise ValueError(f"{lmdb}: holds images of {height}x{width}, so crop must be 1 to {min(height, width)}, not {crop}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, not {seed}")
        self.mean = read_mean(mean_file) if mean_file else None
        if self.mean is not None and self.mean.shape != self.images.image_shape:
            raise ValueError(f"{mean_file}: a mean of {self.mean.shape} for images of {self.images.image_shape} ({lmdb})")
        self.crop, self.mirror, self.seed, self.random = crop, mirror, seed, random
        self.room = (height - crop, width - crop)
        self.shape = (self.batches.shape[1], channels, crop, crop)

    def read(self, batch, data, labels):
        """Fill data (m, channels, crop, crop) and labels (m,) with batch number `batch`, counted from 0."""
        images = self.batches[batch % len(self.batches)]
        if self.random:
            tops, lefts, mirrored = draw_crops(self.seed, batch, len(images), self.room)
            if not self.mirror:
                mirrored[:] = False
        else:
            top, left = centre_crop(self.room)
            tops, lefts, mirrored = [top] * len(images), [left] * len(images), [False] * len(images)
        for slot, index in enumerate(images):
            image, label = self.images.read(index)
            if self.planned is not None and label != self.planned[index]:
                raise UnreadableBatch(f"{self.plan}: was not made for {self.images.path}: image {index} is of class "
                                      f"{self.planned[index]} in the plan, {label} in the LMDB; make the set again")  # fmt: skip
            labels[slot] = label
            transform(image, self.mean, self.crop, tops[slot], lefts[slot], mirrored[slot], data[slot])


def read_plan(path, images):
    """The plan's batches (n, m): places in the LMDB, left halves of the pairs first, then their right halves.

    And the labels (images,) that it was drawn for, or None where it has none.

    Raises ValueError naming the path when it is no plan, or one for another number of images.
    """
    try:
        with np.load(path, allow_pickle=False) as plan:
            batches, planned = plan["batches"], int(plan["images"])
            labels = plan.get("labels")
    except Exception as error:  # whatever is wrong with the file: a damaged zip shows as any of five exceptions
        raise ValueError(f"{path}: cannot be read as a batch plan ({error}); data_prep writes one (make data-<set>)") from None
    if planned != images:
        raise ValueError(f"{path}: was made for {planned} images, but the LMDB has {images}; make the set again")
    if batches.ndim != 2 or batches.size == 0 or batches.dtype.kind not in "iu" or batches.min() < 0 or batches.max() >= images:
        raise ValueError(f"{path}: batches must be (n, m) places in 0..{images - 1}, not {batches.dtype} {batches.shape}")
    if labels is not None and (labels.shape != (images,) or labels.dtype.kind not in "iu"):
        raise ValueError(f"{path}: labels must be ({images},) integers, not {labels.dtype} {labels.shape}")
    return batches, labels
