"""The embeddings of a folder of images, kept on disk and searched exactly. No Caffe.

An index is a folder of two files: vectors-<part of its SHA-256>.faiss, an exact faiss index of the embeddings under their
ids, and index.json, written last, which says which image has which id, by which model, and the SHA-256 of the other file and
of itself.
"""

import contextlib
import hashlib
import json
import os
import shlex
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from data_prep.files import locked, read_json, remove, remove_partials, written_aside
from data_prep.folder import SUFFIXES
from data_prep.image import BYTES_A_PIXEL, DECODING, MOST_PIXELS, open_image, three_channels

LAYOUT = 2  # of index.json; another one is not read
BATCH = 64  # images decoded and embedded at a time
SAVE_SECONDS = 60  # what a crash may cost
SAME = ("weights", "net", "mean", "image_size", "crop", "resize", "upright", "blob", "dimensions")  # what makes an embedding
CHECKOUT = Path(__file__).resolve().parent.parent
COMMAND = ".venv/bin/python tools/search.py" if (CHECKOUT / "Makefile").exists() else "embedding-search"  # of `pip install`
MAKE = f"{COMMAND} index <folder of images> --model <run>"
KINDS = ", ".join(sorted(SUFFIXES))


class File(NamedTuple):
    """An image of the index, and how to see that it has changed."""

    path: str  # below the folder of images
    size: int  # bytes
    changed: int  # time of change, ns


class Neighbour(NamedTuple):
    """An image that was found."""

    id: int
    distance: float  # Euclidean, between embeddings
    path: str  # below the folder of images


@dataclass
class Index:
    """The content of an index. An id is given once: it never comes to mean another image, or another content of one."""

    home: Path  # the index folder
    images: Path  # the folder of images
    model_folder: Path
    model: dict  # what model.json said
    files: dict[int, File] = field(default_factory=dict)
    next_id: int = 0
    complete: bool = False  # False: the making of it was interrupted
    vectors: faiss.IndexIDMap2 = None

    def __post_init__(self):
        if self.vectors is None:
            self.vectors = faiss.IndexIDMap2(faiss.IndexFlatL2(self.model["dimensions"]))

    def path_of(self, number):
        """Where the image of an id is, or was when it was embedded."""
        return self.images / self.files[number].path

    def state_of(self, number):
        """there, changed (since it was embedded), or gone."""
        try:
            status = self.path_of(number).stat()
        except OSError:
            return "gone"
        return "there" if (status.st_size, status.st_mtime_ns) == self.files[number][1:] else "changed"

    def picture(self, number, side):
        """A thumbnail (see `thumbnail`) of an id's image, or a grey picture that says why there is none.

        Only the file that was embedded is shown: an index that another person made or edited names files of its own choice.
        """
        if self.state_of(number) == "changed":
            return placeholder(side, "has changed")
        return picture(self.path_of(number), side)

    def embedding(self, number):
        """The embedding (c,) of an id; KeyError where there is none."""
        self.files[number]
        return self.vectors.reconstruct(number)

    def nearest(self, embedding, count):
        """The `count` nearest images of an embedding (c,), all where there are fewer; equally near ones by their path."""
        _, found = self.vectors.search(np.asarray(embedding, np.float32)[None], min(count, len(self.files)))
        found = [int(number) for number in found[0]]
        # In float64 from the differences: an image and its copy are at 0, not at what rounding leaves.
        difference = self.vectors.reconstruct_batch(np.array(found, np.int64)).astype(np.float64) - embedding  # (count, c)
        distances = np.sqrt(np.square(difference).sum(axis=1))
        near = [Neighbour(number, float(distance), self.files[number].path) for number, distance in zip(found, distances)]
        return sorted(near, key=lambda one: (one.distance, os.fsencode(one.path)))

    def save(self):
        """Write the index, so that at any moment the folder holds the old one or the new one."""
        content = faiss.serialize_index(self.vectors).tobytes()
        digest = hashlib.sha256(content).hexdigest()
        vectors = self.home / f"vectors-{digest[:16]}.faiss"
        if not vectors.exists():
            with written_aside(vectors) as aside:
                aside.write_bytes(content)
        record = {"layout": LAYOUT, "images": str(self.images), "model_folder": str(self.model_folder), "model": self.model,
                  "complete": self.complete, "next_id": self.next_id, "vectors": digest,
                  "files": [[number, *file] for number, file in self.files.items()]}  # fmt: skip
        with written_aside(self.home / "index.json") as aside:
            aside.write_text(json.dumps(signed(record)) + "\n")
        for old in self.home.glob("vectors-*.faiss"):
            if old != vectors:
                remove(old)


def signed(record):
    """The record of index.json with its own SHA-256."""
    return {**record, "sha256": hashlib.sha256(json.dumps(record).encode()).hexdigest()}


# --- reading ---------------------------------------------------------------------------------------------------------


def read_index(home):
    """The Index in the folder `home`; ValueError names the file that is missing or damaged, and the next command.

    Bytes whose SHA-256 is not the one in index.json are not looked at.
    """
    home = Path(home)
    for attempt in (1, 2):  # another process may have replaced both files between the reading of the first and the second
        record = _read_record(home / "index.json")
        path = home / f"vectors-{record['vectors'][:16]}.faiss"
        try:
            content = path.read_bytes()
            break
        except FileNotFoundError:
            if attempt == 2:
                raise ValueError(f"{path}: not there, though index.json names it; remove {home} and call `{MAKE}`") from None
    if hashlib.sha256(content).hexdigest() != record["vectors"]:
        raise ValueError(f"{path}: is damaged (its SHA-256 is not the one in index.json); remove {home} and call `{MAKE}`")
    files = record["files"]
    try:
        vectors = _vectors(content, list(files), record["model"]["dimensions"])
    except ValueError as error:
        raise ValueError(f"{path}: does not belong to index.json ({error}); remove {home} and call `{MAKE}`") from None
    return Index(home, Path(record["images"]), Path(record["model_folder"]), record["model"], files, record["next_id"],
                 record["complete"], vectors)  # fmt: skip


def _vectors(content, numbers, dimensions):
    """The faiss index of the ids `numbers` in the bytes that Index.save has written; ValueError when it is another.

    Its arrays are taken from their places: faiss's own reader takes as much memory as damaged bytes ask for, or crashes.
    """
    vectors = faiss.IndexIDMap2(faiss.IndexFlatL2(dimensions))
    empty = faiss.serialize_index(vectors).tobytes()  # heads, the number of embeddings' bytes, and that of ids, 8 bytes each
    length = len(empty) + len(numbers) * (4 * dimensions + 8)
    if content[:8] != empty[:8] or len(content) != length:
        raise ValueError(f"{length:,} bytes for {len(numbers):,} embeddings of {dimensions} numbers were expected, of our "
                         f"kind, and {len(content):,} found")  # fmt: skip
    embeddings = np.frombuffer(content, np.float32, len(numbers) * dimensions, len(empty) - 8).reshape(-1, dimensions)
    ids = np.frombuffer(content, np.int64, len(numbers), length - 8 * len(numbers))
    if sorted(ids.tolist()) != sorted(numbers):
        raise ValueError("other ids")
    if not np.isfinite([embeddings.min(initial=0), embeddings.max(initial=0)]).all():
        raise ValueError("embeddings that are not finite")
    vectors.add_with_ids(embeddings, ids)
    return vectors


def _read_record(path):
    """What index.json says, `files` as a dict id -> File."""
    try:
        record = read_json(path.read_text())
        if record["layout"] != LAYOUT:
            raise ValueError(f"layout {record['layout']}, not {LAYOUT}")
        if signed({key: value for key, value in record.items() if key != "sha256"}) != record:
            raise ValueError("edited by hand")
        record["files"] = {int(number): File(str(name), int(size), int(changed)) for number, name, size, changed in record["files"]}
        strings = [record[key] for key in ("images", "model_folder", "vectors")] + [record["model"]["name"]]
        paths = [file.path for file in record["files"].values()]
        outside = [path for path in paths if os.path.isabs(path) or ".." in Path(path).parts]
        if not all(isinstance(text, str) for text in strings) or len(record["vectors"]) != 64 or not record["vectors"].isalnum():
            raise ValueError("names that are no text")
        if b"\0" in b"".join(map(os.fsencode, (*strings, *paths))):
            raise ValueError("a name with a NUL in it")
        if outside or not int(record["next_id"]) > max(record["files"], default=-1) >= min(record["files"], default=-1) >= -1:
            raise ValueError("files outside of the folder of images" if outside else "ids that were not given")
        if type(record["model"]["dimensions"]) is not int or not 0 < record["model"]["dimensions"] < 1 << 20:
            raise ValueError(f"embeddings of {record['model']['dimensions']!r} numbers")
        return record
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: there is no index; `{MAKE}` makes one") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: is damaged, or no index of ours ({type(error).__name__}: {error}); remove {path.parent} "
                         f"and call `{MAKE}`") from None  # fmt: skip


def check_model(index, model, folder):
    """Raise ValueError unless `model`, the one in `folder`, is what made the index."""
    if differing := [key for key in SAME if index.model.get(key) != model[key]]:
        names = [f"{one['name']} (weights {str(one.get('weights'))[:8]})" for one in (index.model, model)]
        again = shlex.join(map(str, ["index", index.images, "--model", folder, "--index", index.home]))
        raise ValueError(f"{index.home}: was made by the model {names[0]}, not by {names[1]}: other {', '.join(differing)}. "
                         "Search it with the first, name another folder with --index, or make it again:\n"
                         f"    rm -r {shlex.quote(str(index.home))}\n"
                         f"    {COMMAND} {again}")  # fmt: skip


# --- making ----------------------------------------------------------------------------------------------------------


def list_images(folder, unreadable):
    """{path below `folder`: File} of the images in it and below it, in byte order; hidden files and folders are passed over.

    Folders that cannot be listed are appended to `unreadable`. ValueError when `folder` is none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one with images ({KINDS}) in it or below it")
    found, seen = {}, set()
    walk = os.walk(folder, followlinks=True, onerror=lambda error: unreadable.append(f"{error.filename}: {error.strerror}"))
    for home, below, names in walk:
        identity = os.stat(home)
        if (identity.st_dev, identity.st_ino) in seen:  # a link back to a folder above
            below.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        below[:] = sorted((name for name in below if not name.startswith(".")), key=os.fsencode)
        for name in sorted(names, key=os.fsencode):
            path = Path(home) / name
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            try:
                status = path.stat()
            except OSError as error:  # a link to nothing
                unreadable.append(f"{path.relative_to(folder)}: {error.strerror}")
                continue
            if path.is_file():
                found[str(path.relative_to(folder))] = File(str(path.relative_to(folder)), status.st_size, status.st_mtime_ns)
    return found


def update_index(home, images, embedder):
    """Make the index in the folder `home` that of the images below `images`; what has not changed is not embedded again.

    Returns (Index, counts, unreadable): how many images are `new`, `changed`, `gone`, `as before`, and lines on those that cannot
    be decoded, which it does not hold. BlockingIOError when another process is at it. ValueError when the index is of another
    folder or model, or no image can be read. Interrupted, it goes on where it was: it is saved every minute.
    """
    home, images, unreadable = Path(home), Path(images).resolve(), []
    listed = list_images(images, unreadable)
    if not listed:  # an index of something is not emptied because a disk is not mounted
        raise ValueError(f"{images}: no images found; expected {KINDS} in it or below it")
    with locked(home, "indexing"):
        remove_partials(home)
        index = _begin(home, images, embedder)
        renamed = _follow_forms(index, listed)
        known = {file.path: number for number, file in index.files.items()}
        gone = [number for path, number in known.items() if path not in listed]
        changed = {path: number for path, number in known.items() if path in listed and index.files[number] != listed[path]}
        wanted = [file for path, file in listed.items() if path not in known or index.files[known[path]] != file]
        if wanted or gone or renamed or not index.complete or index.model_folder != embedder.folder.resolve():
            index.model_folder, index.complete = embedder.folder.resolve(), False
            _forget(index, [*gone, *changed.values()])
            try:
                unreadable += _embed(index, wanted, embedder)
                index.complete = True
            finally:  # also when it is interrupted, or an image cannot be embedded: what is done is done
                if index.files:
                    index.save()
    if not index.files:
        raise ValueError(f"{images}: none of its {len(listed):,} images can be read; the first: {unreadable[0]}")
    held = {file.path for file in index.files.values()}
    counts = {"new": len(held - known.keys()), "changed": len(held & changed.keys()), "gone": len(gone),
              "as before": len(known) - len(gone) - len(changed)}  # fmt: skip
    return index, counts, unreadable


def _begin(home, images, embedder):
    """The index that is there already, or an empty one."""
    if not (home / "index.json").exists():
        return Index(home, images, embedder.folder.resolve(), embedder.model)
    index = read_index(home)
    check_model(index, embedder.model, embedder.folder)
    if index.images != images:
        if index.images.exists():
            raise ValueError(f"{home}: is the index of {index.images}, not of {images}; name another folder with --index, "
                             "or remove it")  # fmt: skip
        print(f"{home}: {index.images} is no longer there; taken to be {images} now")
        index.images, index.complete = images, False
    return index


def _follow_forms(index, listed):
    """Give names the Unicode form that they have on disk now, which a Mac or a copy by one changes; whether any had another."""
    known = {file.path for file in index.files.values()}
    forms = {unicodedata.normalize("NFC", path): path for path in listed if path not in known}
    renamed = False
    for number, file in index.files.items():
        if file.path not in listed and (path := forms.pop(unicodedata.normalize("NFC", file.path), None)):
            index.files[number] = file._replace(path=path)
            renamed = True
    return renamed


def _forget(index, numbers):
    if numbers:
        index.vectors.remove_ids(np.array(numbers, np.int64))
        for number in numbers:
            del index.files[number]


def _embed(index, files, embedder):
    """Add the `files` to the index; returns a line for each that cannot be decoded."""
    unreadable, saved_at = [], time.monotonic()

    def load(file):
        try:
            return embedder.load(index.images / file.path)
        except (OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(files), desc="index", unit="image", mininterval=0.5) as bar:
        for start in range(0, len(files), BATCH):
            part = files[start : start + BATCH]
            loaded = list(zip(part, pool.map(load, part)))  # Pillow decodes without Python's lock
            unreadable += [f"{file.path}: {_reason(image)}" for file, image in loaded if isinstance(image, Exception)]
            loaded = [(file, image) for file, image in loaded if not isinstance(image, Exception)]
            if loaded:
                paths = [str(index.images / file.path) for file, _ in loaded]
                embeddings = embedder.embed(np.stack([image for _, image in loaded]), paths)
                numbers = range(index.next_id, index.next_id + len(loaded))
                index.vectors.add_with_ids(embeddings, np.array(numbers, np.int64))
                index.files.update(zip(numbers, (file for file, _ in loaded)))
                index.next_id += len(loaded)
            bar.update(len(part))
            if time.monotonic() - saved_at > SAVE_SECONDS and index.files:
                index.save()
                saved_at = time.monotonic()
    return unreadable


def _reason(error):
    """What an exception says, without the path that it may repeat."""
    return getattr(error, "strerror", None) or str(error)


# --- for people ------------------------------------------------------------------------------------------------------


def shown(path):
    """A path in one line: what cannot be printed, a newline or a byte that is no UTF-8, as an escape."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(path))


def thumbnail(source, side):
    """The image at a path or in a file object as a person sees it, RGB, at most `side` pixels a side.

    OSError or ValueError where it cannot be decoded.
    """
    try:
        with contextlib.ExitStack() as stack:
            image = stack.enter_context(open_image(source))
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}; make it smaller")
            stack.enter_context(DECODING.of(image.width * image.height * BYTES_A_PIXEL))
            small = three_channels(image, upright=True)
            small.thumbnail((side, side))
            small.load()  # while its file is open: Pillow has read nothing of an image that was small enough
            return small
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # damaged files come out of the decoders in many ways
        raise ValueError(f"{type(error).__name__}: {error}") from None


def picture(path, side):
    """A thumbnail of the image at `path`, or a grey picture that says why there is none."""
    try:
        return thumbnail(path, side)
    except (OSError, ValueError, MemoryError) as error:
        return placeholder(side, "no longer there" if isinstance(error, FileNotFoundError) else "cannot be read")


def placeholder(side, text):
    """A grey picture that says why there is no other, RGB."""
    image = Image.new("RGB", (side, side), "#d8dbdf")
    ImageDraw.Draw(image).multiline_text((side / 2, side / 2), text, "#4a4f55", anchor="mm", align="center", font_size=side // 11)
    return image
