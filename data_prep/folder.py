"""What is in a folder of images, one sub-folder a class; or in a list of images and their classes."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.files import read_rows

SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])


@dataclass
class Folder:
    """What was found: `images` maps a class name to its files, as names below `root`; the rest is named for the person."""

    root: Path
    images: dict[str, list[str]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)  # class folders without an image
    ignored: list[Path] = field(default_factory=list)  # files that are no images by their suffix, folders in a class


def read_images(path):
    """The Folder of a folder with a folder for each class, or of a list.csv with the columns path and class."""
    return read_list(path) if path.is_file() else read_folder(path)


def read_list(path):
    """List the images of the CSV file `path`, with the columns path and class; a path is below the file's folder, or absolute.

    Raises ValueError when it is no such file, when images are listed twice or are not there.
    """
    folder, line_of, missing = Folder(path.parent), {}, []
    for line, row in read_rows(path, "path", "class"):
        name, label = row["path"], row["class"]
        if not name or not label:
            raise ValueError(f"{path}: line {line} has no path or no class")
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
    for entry in _entries(path):
        if not entry.is_dir():
            folder.ignored.append(entry)
            continue
        files = _entries(entry)
        images = [file for file in files if file.is_file() and file.suffix.lower() in SUFFIXES]
        folder.ignored += sorted(set(files) - set(images))
        if images:
            folder.images[entry.name] = [str(file.relative_to(path)) for file in images]
        else:
            folder.empty.append(entry.name)
    if not folder.images:
        raise ValueError(f"{path}: no images found; expected class-name/image.png (or {', '.join(sorted(SUFFIXES))})")
    return folder


def _entries(path):
    return [path / name for name in sorted(os.listdir(path), key=os.fsencode) if not name.startswith(".")]
