"""One image, from a file or its bytes, as Caffe wants it."""

import contextlib
import io
import math
import os
import re
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

# Pillow's own warning, of attacks: what is too large is refused here, in other words.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

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
GREY = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103], np.float32)  # MATLAB's rgb2gray
WHITE_FROM = 250  # grey level from which the authors' crop takes a pixel for background
MARGIN = 15  # pixels that their crop leaves around what is not background


class Room:
    """At most `limit` bytes of decoded images at a time over all threads; a larger image waits until it is alone."""

    def __init__(self, limit):
        self.limit, self.used, self.changed = limit, 0, threading.Condition()

    @contextlib.contextmanager
    def of(self, size):
        with self.changed:
            self.changed.wait_for(lambda: self.used == 0 or self.used + size <= self.limit)
            self.used += size
        try:
            yield
        finally:
            with self.changed:
                self.used -= size
                self.changed.notify_all()


DECODING = Room(256 << 20)
BYTES_A_PIXEL = 12  # what decoding and converting to three channels takes, copies included
# What is opened at all. Of the rest that Pillow knows, some call other programs: PostScript runs Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 64_000_000  # the largest image of the paper's sets has 40 million
HEIC = "a photo as iPhones save it, which cannot be read; save it as JPEG (heif-convert photo.heic photo.jpg)"
# What is no image here, by how its bytes begin.
OTHERS = {
    rb"....ftyp(hei|hev|mif|msf)": f"is {HEIC}",
    rb"....ftypavif": "is an AVIF picture, which cannot be read; save it as JPEG or PNG",
    rb"II\*\0|MM\0\*": "is a TIFF of a kind that cannot be read, of several bands of floats perhaps; save it with 8 bits a band",
    rb"\s*<(!doctype html|html)": "is a web page, and no image; fetch the file itself",
    rb"\s*<(\?xml|svg)": "is a drawing in XML (SVG), and no image of pixels; save it as PNG",
    rb"\Z": "is empty",
}
NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # a PNG's chunks that its pixels are made of


def load_image(source, size, resize="plain", upright=True):
    """The image at a path or in bytes, size x size: uint8 (3, size, size), blue, green, red.

    Transparency is composited on white, greyscale becomes three channels, 16 bits become 8, of an animation the first
    frame is taken. `resize`: plain or crop15, see RESIZES. `upright`: an EXIF rotation is applied.
    Raises OSError or ValueError for a file that cannot be decoded.
    """
    try:
        return _load(io.BytesIO(source) if isinstance(source, bytes) else source, size, resize, upright)
    except UnidentifiedImageError:
        raise ValueError(what_it_is(source)) from None
    except Image.DecompressionBombError:
        raise ValueError(f"is too large: more than {MOST_PIXELS:,} pixels; make it smaller") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files come out of the decoders in many ways
        if _begin(source).startswith(b"\x89PNG") and (alone := pixels_alone(source)):
            return load_image(alone, size, resize, upright)
        if isinstance(error, (OSError, ValueError)):
            raise
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _load(source, size, resize, upright):
    opened = open_image(source)
    if opened.width * opened.height > MOST_PIXELS:
        raise ValueError(f"is too large: {opened.width} x {opened.height} pixels, more than {MOST_PIXELS:,}; make it smaller")
    with opened as image, DECODING.of(image.width * image.height * BYTES_A_PIXEL):
        resized = np.asarray(RESIZES[resize](three_channels(image, upright), size))
    return np.ascontiguousarray(resized[:, :, ::-1].transpose(2, 0, 1))


def what_it_is(source):
    """What a path or bytes that are no image here are, in words."""
    begin = _begin(source)
    found = (words for pattern, words in OTHERS.items() if re.match(pattern, begin, re.DOTALL | re.IGNORECASE))
    return next(found, "is no image, or is damaged at its beginning")


def _begin(source):
    """The first bytes of a path, or of bytes."""
    if isinstance(source, bytes):
        return source[:64]
    if not os.path.isfile(source):
        return b""
    with open(source, "rb") as stream:
        return stream.read(64)


def pixels_alone(source):
    """A PNG, a path or bytes, without what tells nothing of its pixels (texts, EXIF, profiles); None where all of it does."""
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    kept, place = [content[:8]], 8
    while place + 12 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] in NEEDED:
            kept.append(content[place:end])
        place = end
    alone = b"".join(kept)
    return alone if len(alone) < len(content) else None


def open_image(source):
    """The image at a path or in a file object, opened by Pillow; ValueError for what is no file, and would block or never end."""
    if isinstance(source, str | os.PathLike) and os.path.exists(source) and not os.path.isfile(source):
        raise ValueError("is a folder, a pipe or a device, and no image")
    return Image.open(source, formats=FORMATS)


def orientation(image):
    """How the camera was held, by the image's EXIF; None where it has none that can be read."""
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # damaged, in one of many ways: no reason to do without the pixels
        return None


def three_channels(image, upright):
    """An opened image as 8-bit RGB."""
    kind = image.format
    turn = TURNS.get(orientation(image)) if upright else None
    if turn is not None:
        image = image.transpose(turn)
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM"))
    if sixteen_bits:  # greyscale: Pillow would clip it, not scale it
        image = Image.fromarray(np.round(np.asarray(image, np.float64) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers of unknown range; save it with 8 or 16 bits a pixel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def plain(image, size):
    """The whole image, its proportions given up. The filter is an antialiased bicubic with a = -0.5."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def crop15(image, size):
    """The authors' crop (load_cropped_images.m): the box of what is not white and 15 pixels around it; the longer side
    becomes `size`, the proportions are kept, and white fills the rest, half of it (rounded down) above or to the left.
    """
    image = image.crop(content_box(np.asarray(image)))
    longer = max(image.size)
    width, height = (-(-size * side // longer) for side in image.size)  # rounded up, as imresize does
    # One scale for both sides: the last column or row may reach beyond the image, where imresize mirrors it.
    right, bottom = width * longer / size, height * longer / size
    beyond = ((0, max(0, math.ceil(bottom) - image.height)), (0, max(0, math.ceil(right) - image.width)), (0, 0))
    image = Image.fromarray(np.pad(np.asarray(image), beyond, "symmetric"))
    image = image.resize((width, height), Image.Resampling.BICUBIC, box=(0, 0, right, bottom))
    square = Image.new("RGB", (size, size), "white")
    square.paste(image, ((size - width) // 2, (size - height) // 2))
    return square


def content_box(pixels):
    """(left, top, right, bottom) of the pixels (h, w, 3) darker than 250 in grey, with the margin; of a white image, all.

    MATLAB's imcrop takes one pixel more than the width that it is given, where the image has it.
    """
    height, width, _ = pixels.shape
    dark_rows, dark_columns = np.zeros(height, bool), np.zeros(width, bool)
    for top in range(0, height, 64):  # in bands: a whole grey image would take four times the memory of the picture
        dark = pixels[top : top + 64] @ GREY < WHITE_FROM - 0.5  # rgb2gray rounds to whole levels
        dark_rows[top : top + 64] = dark.any(axis=1)
        dark_columns |= dark.any(axis=0)
    rows, columns = np.flatnonzero(dark_rows), np.flatnonzero(dark_columns)
    if not rows.size:
        return 0, 0, width, height
    left, top = max(columns[0] - MARGIN, 0), max(rows[0] - MARGIN, 0)
    right, bottom = min(columns[-1] + MARGIN, width - 1), min(rows[-1] + MARGIN, height - 1)
    return int(left), int(top), int(min(right + 2, width)), int(min(bottom + 2, height))


RESIZES = {"plain": plain, "crop15": crop15}
