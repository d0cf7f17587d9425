"""What is in a folder of images, one sub-folder a class; or in a list of images and their classes."""

import functools
import hashlib
import os
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.files import read_rows

SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])


@dataclass
class Folder:
    """What was found: `images` maps a class name to its files, as names below `root`; the rest is named for the person."""

    root: Path
    images: dict[str, list[str]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)  # class folders without an image
    links: dict[str, str] = field(default_factory=dict)  # class whose folder is a link -> the class whose folder that is
    ignored: list[Path] = field(default_factory=list)  # files that are no images by their suffix, folders in a class


def read_images(path):
    """The Folder of a folder with a folder for each class, or of a list.csv with the columns path and class."""
    return read_list(path) if path.is_file() else read_folder(path)


def read_list(path):
    """List the images of the CSV file `path`, with the columns path and class; a path is below the file's folder, or absolute.

    Raises ValueError when it is no such file, when images are listed twice or are not there.
    """
    folder, line_of, missing, names = Folder(path.parent), {}, [], {}
    listing = functools.cache(_listing)  # once for each folder, not for each image
    for line, row in read_rows(path, "path", "class"):
        name, label = row["path"], row["class"]
        if not name or not label:
            raise ValueError(f"{path}: line {line} has no path or no class")
        label = names.setdefault(same_text(label), label)
        name = as_on_disk(path.parent, name, listing)
        file = os.path.realpath(path.parent / name)
        if file in line_of:
            raise ValueError(f"{path}: {name} is listed twice, in lines {line_of[file]} and {line}")
        line_of[file] = line
        folder.images.setdefault(label, []).append(name)
        if not os.path.isfile(file):
            missing.append((name, line))
    if missing:
        raise ValueError(f"{path}: {len(missing):,} of {len(line_of):,} images are not there, the first: {missing[0][0]} "
                         f"(line {missing[0][1]}); paths are taken from {path.parent}/")  # fmt: skip
    if not folder.images:
        raise ValueError(f"{path}: lists no image")
    return folder


def read_folder(path):
    """List the images of `path`: class-name/anything.png, .jpg, ...; hidden files and folders are passed over.

    Raises ValueError when `path` is no folder or holds no image.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; expected one that holds a folder of images for each class")
    folder = Folder(path)
    names, places = {}, {}  # of the classes: as they were written first; class folder -> class
    for entry in _entries(path):
        if not entry.is_dir():
            folder.ignored.append(entry)
            continue
        files = _entries(entry)
        images = [file for file in files if file.is_file() and file.suffix.lower() in SUFFIXES]
        folder.ignored += sorted(set(files) - set(images))
        if images:
            label = names.setdefault(same_text(entry.name), entry.name)
            folder.images.setdefault(label, []).extend(str(file.relative_to(path)) for file in images)
            places[entry] = label
        else:
            folder.empty.append(entry.name)
    if not folder.images:
        raise ValueError(f"{path}: no images found; expected class-name/image.png (or {', '.join(sorted(SUFFIXES))}){level(path)}")
    folder.links = dict(_links(places))
    return folder


def _links(places):
    """Folder.links, of {class folder: class}: of folders that are one, those that are links."""
    found = {}
    for entry in sorted(places, key=lambda entry: entry.is_symlink()):
        original = found.setdefault(os.path.realpath(entry), places[entry])
        if original != places[entry]:
            yield places[entry], original


def level(path):
    """Where the images are, when a person named a folder one level too high or too low."""
    if not path.is_dir():
        return ""
    entries = _entries(path)
    if own := [entry for entry in entries if entry.suffix.lower() in SUFFIXES and entry.is_file()]:
        above = path.absolute().parent
        return (
            f". It holds {len(own):,} images itself, such as {own[0].name}: is it a class? Then name the folder above it, {above}"
        )
    for entry in entries:
        for below in _entries(entry) if entry.is_dir() else ():
            if below.is_dir() and any(file.suffix.lower() in SUFFIXES for file in _entries(below)):
                return f". Images are a level below, in {below}: name {entry}"
    return ""


def same_text(text):
    """`text` with its accents composed (NFC): a Mac may write é as two characters, which a person cannot tell from one.

    For comparing: a class keeps the name as it was written first, so that a set that is there stays what it is.
    """
    return unicodedata.normalize("NFC", text)


def _listing(place):
    """{name with its accents composed: name} of what is in a folder."""
    return {same_text(name): name for name in os.listdir(place)}


def as_on_disk(root, name, listing):
    """`name` below `root` as the disk has it, where that is the same text with its accents written otherwise."""
    if (root / name).exists():
        return name
    place = root
    for part in Path(name).parts:
        if not (place / part).exists() and place.is_dir():
            part = listing(place).get(same_text(part), part)
        place = place / part
    return name if place == root / name else str(place if os.path.isabs(name) else place.relative_to(root))


def without_shared(folder, drop):
    """Say which images are in several classes, byte for byte; the Folder without them where `drop`, else as it is."""
    if folder.links:
        some = "; ".join(f"{link} -> {original}" for link, original in list(folder.links.items())[:3])
        print(f"{len(folder.links):,} class folders are links to another one{', and left out' if drop else ''}: {some}")
    if drop:
        folder = replace(folder, images={label: names for label, names in folder.images.items() if label not in folder.links})
    shared = shared_images(folder)
    if not shared:
        return folder
    count = sum(map(len, shared))
    names = "; ".join(" = ".join(name for _, name in group[:3]) for group in shared[:3])
    print(f"{count:,} images are in several classes, byte for byte: {names}{'; ...' if len(shared) > 3 else ''}")
    if not drop:
        print(
            "    No embedding can tell these apart. DUPLICATES=drop (--duplicates drop) leaves them out, in a set of another NAME="
        )
        return folder
    gone = {name for group in shared for _, name in group}
    kept = {label: [name for name in names if name not in gone] for label, names in folder.images.items()}
    print(f"    They are left out: {sum(map(len, kept.values())):,} images remain")
    emptied = [label for label, names in kept.items() if not names]
    return replace(folder, images={label: names for label, names in kept.items() if names}, empty=folder.empty + emptied)


def shared_images(folder):
    """[[(class, name), ...], ...]: images of a Folder that have the same bytes and stand in two classes at least.

    Only files of one size are read. A class folder that is a link to another one is a second copy of it.
    """

    def grouped(groups, key):
        found = defaultdict(list)
        for number, group in enumerate(groups):
            for label, name in group:
                found[number, key(folder.root / name)].append((label, name))
        return [group for group in found.values() if len({label for label, _ in group}) > 1]

    every = [(label, name) for label, names in folder.images.items() for name in names]
    of_one_size = grouped([every], lambda path: path.stat().st_size)
    return grouped(of_one_size, lambda path: hashlib.sha256(path.read_bytes()).digest())


def _entries(path):
    return [path / name for name in sorted(os.listdir(path), key=os.fsencode) if not name.startswith(".")]
