"""What makes data/<set>/: both LMDBs in one pass over the images, their lists and the record.

build_set.py does it for a folder, paper_sets.py for the paper's sets.
"""

import contextlib
import csv
import errno
import functools
import hashlib
import json
import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import lmdb
import numpy as np
from caffe_pb2 import BlobProto, Datum
from tqdm import tqdm

from data_prep.files import DiskFull, read_record, remove, remove_partials, require_space, written_aside

PARTS = ("train", "test")
FILES = ("train.lmdb", "test.lmdb", "train.csv", "test.csv", "mean.binaryproto")  # of a set, besides its plans and set.json
COMMIT_EVERY = 8  # images a transaction: small ones take the memory of those before


class Entry(NamedTuple):
    """An image of a set."""

    path: str  # in its folder or archive
    name: str  # of its class
    label: int  # of its class


def lmdb_bytes(images, size):
    """What an LMDB of so many images takes: each fills whole pages of 4 kB, and the tree comes on top."""
    return images * (-(-(3 * size * size + 64) // 4096) * 4096 + 256)


def read_set(out):
    """The record of the set in the folder `out`, or an empty dict when it is not complete."""
    record = read_record(out / "set.json")
    return record if all((out / name / "data.mdb" if "lmdb" in name else out / name).exists() for name in FILES) else {}


class LmdbWriter:
    """Writes an LMDB of raw Datums, key %08d by an image's place in its list, in whatever order the images come."""

    def __init__(self, path, count, size):
        # written_aside brings the whole folder to the disk before it gets its name: not each transaction
        self.environment = lmdb.open(str(path), map_size=2 * lmdb_bytes(count, size) + (64 << 20), sync=False)
        self.transaction = self.environment.begin(write=True)
        self.total = np.zeros((3, size, size), np.uint32)  # holds 16 million images
        self.digests = {}  # place -> SHA-256 of the pixels

    def put(self, place, image, label, digest=None):
        self.transaction.put(b"%08d" % place, raw_datum(image, label))
        self.total += image
        self.digests[place] = digest or hashlib.sha256(image).digest()
        if len(self.digests) % COMMIT_EVERY == 0:
            self.transaction.commit()
            self.transaction = self.environment.begin(write=True)

    def close(self):
        self.transaction.commit()
        self.environment.close()


def raw_datum(image, label):
    """The bytes of a Datum of an image, uint8 (channels, height, width).

    Messages one behind the other are one message, so the pixels go in between as they are: through a Datum they would be
    copied several times.
    """
    return b"".join((_before_pixels(image.shape), image.tobytes(), Datum(label=label).SerializeToString()))


@functools.cache
def _before_pixels(shape):
    """What the Datum of an image of that shape begins with, the length of its pixels included."""
    channels, height, width = shape
    pixels = bytes(math.prod(shape))
    return Datum(channels=channels, height=height, width=width, data=pixels).SerializeToString()[: -len(pixels)]


@contextlib.contextmanager
def disk_errors(out):
    """lmdb's own errors, of a full disk for one, as OSError with the folder's name; DiskFull where the disk is the reason."""
    try:
        yield
    except lmdb.Error as error:
        said = f"{out}: an LMDB cannot be written ({error}); what was there is as it was"
        # Where there is room for a part of a write, LMDB calls it an input/output error.
        if isinstance(error, lmdb.DiskError) or os.strerror(errno.EIO) in str(error):
            raise DiskFull(f"{said}. The disk is full, or fails: make room, and the same command goes on") from None
        raise OSError(said) from None


def write_set(out, entries, images, load, size, record, mean=None, skip_unreadable=False, advice=""):
    """Make the set's files in `out`; set.json is left to `finish`, once the caller's own files are there.

    Parameters
    ----------
    entries : dict part -> list of Entry, in the order of the LMDB
    images : iterable of (path, content) in any order; what it holds besides the entries is passed over
    load : content -> uint8 (3, size, size); OSError or ValueError for what is no image. Called from all cores
    record : dict for set.json; `train`, `test` and `content` are added
    mean : (3, size, size) mean image; by default that of the training images
    advice : what needs less room, for the message when the disk is too full

    Returns the entries that were written, by part. Raises ValueError that lists all unreadable images, before anything
    there is touched.
    """
    out.mkdir(parents=True, exist_ok=True)
    remove_partials(out)
    count = sum(map(len, entries.values()))
    require_space(out, lmdb_bytes(count, size), advice)
    place_of = {entry.path: (part, place) for part in PARTS for place, entry in enumerate(entries[part])}
    with (
        disk_errors(out),
        contextlib.ExitStack() as stack,
    ):  # both LMDBs or neither, and what cannot be read is named for both together
        writers = {part: LmdbWriter(stack.enter_context(written_aside(out / f"{part}.lmdb")), len(entries[part]), size)
                   for part in PARTS}  # fmt: skip
        unreadable = {}
        for path, image, digest in tqdm(_decoded(images, place_of, load), out.name, count, unit="image", mininterval=0.5):
            part, place = place_of.pop(path)
            if isinstance(image, Exception):
                unreadable[part, place] = f"{path}: {image}"
            else:
                writers[part].put(place, image, entries[part][place].label, digest)
        if place_of and not skip_unreadable:
            first = next(iter(place_of))
            raise ValueError(f"{len(place_of):,} of {count:,} images are listed and not there, the first: {first}. "
                             "The archive or folder is not complete")  # fmt: skip
        unreadable |= {place: f"{path}: is listed, and not there" for path, place in place_of.items()}
        for writer in writers.values():
            writer.close()
        refuse_or_name([unreadable[place] for place in sorted(unreadable, key=lambda place: (PARTS.index(place[0]), place[1]))],
                       count, skip_unreadable)  # fmt: skip
        written = {part: [entry for place, entry in enumerate(entries[part]) if (part, place) not in unreadable] for part in PARTS}
        if empty := [part for part in PARTS if not written[part]]:
            raise ValueError(f"{out}: no image is left to {empty[0]}")
        (out / "set.json").unlink(missing_ok=True)  # from here on an earlier set is replaced: nothing may take it for complete
        for made_from_it in [*out.glob("pairs*.npz"), *out.glob("triplets*.npz"), *out.glob("train_paired*.lmdb")]:
            remove(made_from_it)

    for part in PARTS:
        with written_aside(out / f"{part}.csv") as aside, open(aside, "w", newline="", errors="surrogateescape") as stream:
            rows = csv.writer(stream)
            rows.writerow(["path", "class", "label"])
            rows.writerows(written[part])
        record[part] = describe(written[part])
        say_some(f"{part} classes with one image (they are negatives and distractors)", record[part]["singletons"])
    with written_aside(out / "mean.binaryproto") as aside:
        aside.write_bytes(mean_bytes(writers["train"].total / len(written["train"]) if mean is None else mean))
    content = hashlib.sha256(b"".join((out / name).read_bytes() for name in FILES if "lmdb" not in name))
    for part in PARTS:
        content.update(b"".join(writers[part].digests[place] for place in sorted(writers[part].digests)))
    record["content"] = content.hexdigest()
    return written


def finish(out, record):
    """Write set.json, the last of the set's files, and say what is there."""
    with written_aside(out / "set.json") as aside:
        aside.write_text(json.dumps(record, indent=2) + "\n")
    for part in PARTS:
        print(f"{out}/{part}.lmdb: {record[part]['images']:,} images of {record[part]['classes']:,} classes, "
              f"{record['size']}x{record['size']}")  # fmt: skip


def _decoded(images, wanted, load):
    """(path, image or error, its SHA-256 or None) in the order of `images`, a few ahead.

    Decoded by all cores: Pillow decodes, and hashlib adds up, without Python's lock.
    """

    def attempt(content):
        try:
            image = load(content)
            return image, hashlib.sha256(image).digest()
        except (OSError, ValueError) as error:
            return error, None

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        for path, content in images:
            if path not in wanted:
                continue
            waiting.append((path, pool.submit(attempt, content)))
            if len(waiting) > 16 * workers:
                path, image = waiting.popleft()
                yield path, *image.result()
        for path, image in waiting:
            yield path, *image.result()


def mean_bytes(mean):
    """A mean image (channels, height, width) as Caffe's compute_image_mean writes it: a BlobProto, 4-D, float32."""
    channels, height, width = mean.shape
    data = mean.astype(np.float32).ravel().tolist()
    return BlobProto(num=1, channels=channels, height=height, width=width, data=data).SerializeToString()


def describe(entries):
    """Numbers of images and classes, and the classes with one image."""
    names = {}
    for entry in entries:
        names.setdefault(entry.name, []).append(entry)
    return {"images": len(entries), "classes": len(names), "singletons": [name for name, found in names.items() if len(found) == 1]}


def refuse_or_name(unreadable, count, skip):
    """Raise ValueError that lists all unreadable images, or print the list when they are to be skipped."""
    names = "\n".join(f"    {line}" for line in unreadable)
    if unreadable and not skip:
        raise ValueError(f"{len(unreadable)} of {count} images cannot be read:\n{names}\n"
                         "Mend or remove them, or pass over them with --skip-unreadable (make: UNREADABLE=skip).")  # fmt: skip
    if unreadable:
        print(f"passed over {len(unreadable)} unreadable images:\n{names}")


def say_some(title, names):
    """Print how many there are and the first of them."""
    if names:
        more = f", ... ({len(names) - 5:,} more)" if len(names) > 5 else ""
        print(f"{len(names):,} {title}: {', '.join(str(name) for name in names[:5])}{more}")
