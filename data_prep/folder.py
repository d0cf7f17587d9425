"""Reading a folder of images, one sub-folder a class: what is in it, and each image as Caffe wants it."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

# How to turn an image upright, by the EXIF tag that says how the camera was held.
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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


def load_image(path, size):
    """The image at `path`, resized whole to size x size: uint8 (3, size, size), blue, green, red.

    Transparency is composited on white, greyscale becomes three channels, 16 bits become 8, an EXIF rotation is
    applied, of an animation the first frame is taken. The filter is an antialiased bicubic (a = -0.5).
    Raises OSError or ValueError for a file that cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            kind = image.format
            turn = TURNS.get(image.getexif().get(ORIENTATION))
            if turn is not None:
                image = image.transpose(turn)
            sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM"))
            if sixteen_bits:  # greyscale: Pillow would clip it, not scale it
                image = Image.fromarray(np.round(np.asarray(image, np.float64) / 257).astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ValueError("its pixels are 32-bit numbers of unknown range; save it with 8 or 16 bits")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            image = image.convert("RGB")
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BICUBIC)
    except UnidentifiedImageError:
        raise ValueError("is no image, or is damaged at its beginning") from None
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # damaged files come out of the decoders in many ways
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1].transpose(2, 0, 1))
