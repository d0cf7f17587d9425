"""What is in a folder of images, one sub-folder a class."""

import os
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])


@dataclass
class Folder:
    """What was found: `images` maps a class name to its files, in byte order; the rest is named for the person."""

    images: dict[str, list[Path]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)  # class folders without an image
    ignored: list[Path] = field(default_factory=list)  # files that are no images by their suffix, folders in a class


def read_folder(path):
    """List the images of `path`: class-name/anything.png, .jpg, ...; hidden files and folders are passed over.

    Raises ValueError when `path` is no folder or holds no image.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; expected one that holds a folder of images for each class")
    folder = Folder()
    for entry in _entries(path):
        if not entry.is_dir():
            folder.ignored.append(entry)
            continue
        files = _entries(entry)
        images = [file for file in files if file.is_file() and file.suffix.lower() in SUFFIXES]
        folder.ignored += sorted(set(files) - set(images))
        if images:
            folder.images[entry.name] = images
        else:
            folder.empty.append(entry.name)
    if not folder.images:
        raise ValueError(f"{path}: no images found; expected class-name/image.png (or {', '.join(sorted(SUFFIXES))})")
    return folder


def _entries(path):
    return [path / name for name in sorted(os.listdir(path), key=os.fsencode) if not name.startswith(".")]
