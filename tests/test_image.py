"""Resizing: the antialiased bicubic, and the authors' crop, each against a literal second implementation."""

import io
import math
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from data_prep.image import Room, content_box, load_image


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def bicubic(x):
    """Keys' kernel with a = -0.5, as MATLAB's imresize has it."""
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def literal_resize(line, size):
    """One line of pixels (n, channels) resized to `size`: the kernel is stretched when shrinking, weights sum to one."""
    scale = len(line) / size
    stretch = max(scale, 1)
    out = []
    for place in range(size):
        centre = (place + 0.5) * scale
        weights = np.array([bicubic((i + 0.5 - centre) / stretch) for i in range(len(line))])
        out.append((weights / weights.sum()) @ line)
    return np.clip(np.array(out), 0, 255)


def literal_image(pixels, size):
    """Along each side in turn, the one that shrinks most first (as imresize), rounded in between."""
    found = pixels.astype(float)
    for axis in np.argsort([size / side for side in pixels.shape[:2]], kind="stable"):
        lines = np.moveaxis(found, axis, 0)
        found = np.moveaxis(literal_resize(lines.reshape(len(lines), -1), size).reshape(size, *lines.shape[1:]), 0, axis)
        found = np.round(found)
    return found


@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (20, 11), (9, 40), (200, 90)])
def test_the_filter_is_an_antialiased_bicubic(shape):
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = load_image(png(pixels), 16)[::-1].transpose(1, 2, 0)
    assert abs(found - literal_image(pixels, 16)).max() <= 1


def literal_imresize(pixels, scale, new):
    """MATLAB's imresize(x, [256 NaN]): one scale for both sides, borders mirrored, the side that shrinks most first."""
    found = pixels.astype(float)
    for axis, size in enumerate(new):
        lines = np.moveaxis(found, axis, 0)
        count = len(lines)
        rows = []
        for place in range(size):
            centre = (place + 0.5) / scale
            reach = range(int(centre - 2 * max(1, 1 / scale)) - 1, int(centre + 2 * max(1, 1 / scale)) + 2)
            weights = np.array([bicubic((i + 0.5 - centre) * min(1, scale)) for i in reach])
            mirrored = [(i if i >= 0 else -1 - i) % (2 * count) for i in reach]
            mirrored = [i if i < count else 2 * count - 1 - i for i in mirrored]
            rows.append(np.tensordot(weights / weights.sum(), lines[mirrored], 1))
        found = np.moveaxis(np.clip(np.round(np.array(rows)), 0, 255), 0, axis)
    return found


def literal_crop15(pixels, size):
    """load_cropped_images.m by its description, with MATLAB's numbers from 1."""
    grey = np.round(pixels @ np.array([0.298936021293775, 0.587043074451121, 0.114020904255103]))
    ys, xs = np.nonzero(grey < 250)
    height, width = grey.shape
    xmin, xmax = max(1, xs.min() + 1 - 15), min(width, xs.max() + 1 + 15)
    ymin, ymax = max(1, ys.min() + 1 - 15), min(height, ys.max() + 1 + 15)
    box_width, box_height = xmax - xmin + 1, ymax - ymin + 1
    cropped = pixels[ymin - 1 : min(ymin + box_height, height), xmin - 1 : min(xmin + box_width, width)]  # imcrop: one more
    rows, columns = cropped.shape[:2]
    longer = max(rows, columns)
    new = (math.ceil(size * rows / longer), math.ceil(size * columns / longer))
    resized = literal_imresize(cropped, size / longer, new)
    before = ((size - new[0]) // 2, (size - new[1]) // 2)
    out = np.full((size, size, 3), 255.0)
    out[before[0] : before[0] + new[0], before[1] : before[1] + new[1]] = resized
    return out


@pytest.mark.parametrize("shape, thing", [
    ((90, 120), np.s_[40:60, 30:85]),  # wide, the margin fits
    ((90, 120), np.s_[3:88, 50:60]),  # tall, the margin is cut at both ends
    ((90, 120), np.s_[30:61, 40:71]),  # square
    ((90, 120), np.s_[0:90, 0:120]),  # the whole image
    ((200, 71), np.s_[100:101, 70:71]),  # one pixel at the border
    ((75, 140), np.s_[59:60, 20:125]),  # the margin ends one pixel before the border: imcrop's extra pixel is the last
])  # fmt: skip
def test_crop15_against_its_description(shape, thing):
    pixels = np.full((*shape, 3), 255, np.uint8)
    pixels[0, 0] = 250  # still background
    pixels[thing] = np.random.default_rng(2).integers(60, 190, (*pixels[thing].shape[:2], 3), dtype=np.uint8)
    found = load_image(png(pixels), 48, "crop15")[::-1].transpose(1, 2, 0)
    expected = literal_crop15(pixels, 48)
    assert ((found == 255).all(axis=2) == (expected == 255).all(axis=2)).mean() > 0.9  # the white around it
    inside = ~(expected == 255).all(axis=2)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    inner = np.s_[rows[0] + 4 : rows[-1] - 3, columns[0] + 4 : columns[-1] - 3]  # at the borders Pillow does not mirror
    assert found[inner].size == 0 or abs(found[inner] - expected[inner]).max() <= 2  # two passes round, in another order


def test_images_beyond_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr("data_prep.image.MOST_PIXELS", 100)
    with pytest.raises(ValueError, match="too large: 12 x 9 pixels"):
        load_image(png(np.zeros((9, 12, 3), np.uint8)), 8)


def test_crop15_box_by_hand():
    pixels = np.full((100, 200, 3), 255, np.uint8)
    pixels[40:50, 60:80] = (249, 249, 249)
    # columns 60..79 and 15 on each side are 45..94, and imcrop's one more: 45..95
    assert content_box(pixels) == (45, 25, 96, 66)
    pixels[:] = 250
    assert content_box(pixels) == (0, 0, 200, 100)  # nothing but background: all of it


@pytest.mark.parametrize("pixel, level", [((249, 249, 249), 249), ((250, 250, 250), 250), ((255, 248, 238), 249),
                                          ((255, 249, 245), 250), ((0, 255, 255), 179), ((255, 250, 233), 250)])  # fmt: skip
def test_the_grey_level_is_matlabs(pixel, level):
    """Levels by hand: 0.2989 r + 0.5870 g + 0.1140 b, rounded; the fourth is 250.34, the last 249.56."""
    pixels = np.full((60, 60, 3), 255, np.uint8)
    pixels[30, 30] = pixel
    assert (content_box(pixels) != (0, 0, 60, 60)) == (level < 250)


def test_greyscale_and_tiny_images():
    grey = np.full((5, 9), 100, np.uint8)
    for resize in ("plain", "crop15"):
        image = load_image(png(grey), 16, resize)
        assert image.shape == (3, 16, 16) and (image[0] == image[2]).all()
    assert load_image(png(np.zeros((1, 400, 3), np.uint8)), 16, "crop15").shape == (3, 16, 16)


def test_an_exif_rotation_is_left_alone_where_the_authors_left_it():
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, :4] = 250
    Image.fromarray(wide).save(stream, "PNG", exif=exif)
    image = load_image(stream.getvalue(), 8, upright=False)
    assert image[:, :, :3].min() > 200 and image[:, :, 5:].max() < 50


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_damaged_exif_is_no_exif(kind):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 9, 3)).astype(np.uint8)
    with_it, without = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).save(with_it, kind, exif=b"Exif\0\0garbage", **({"lossless": True} if kind == "WEBP" else {}))
    Image.fromarray(pixels).save(without, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(load_image(with_it.getvalue(), 8), load_image(without.getvalue(), 8))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * (1 << 22))),
        chunk(b"gAMA", b"1"),
        chunk(b"eXIf", b"garbage"),
        chunk(b"pHYs", b"1"),
    ],
)
def test_what_a_png_says_beside_its_pixels_does_not_matter(tmp_path, extra):
    whole = png(np.random.default_rng(0).integers(0, 255, (12, 9, 3)).astype(np.uint8))
    (tmp_path / "a.png").write_bytes(whole[:33] + extra + whole[33:])
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        assert np.array_equal(load_image(source, 8), load_image(whole, 8))
    with pytest.raises((OSError, ValueError)):
        load_image(whole[:33] + extra + whole[33:60], 8)  # pixels that are damaged still do


@pytest.mark.parametrize(
    "content, said",
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "iPhone"),
        (b"\0\0\0\x1cftypavif" + bytes(99), "AVIF"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"<svg xmlns='x'>", "SVG"),
        (b"", "empty"),
        (b"MM\0*" + bytes(60), "TIFF of a kind"),
        (b"nothing", "is no image"),
    ],
)
def test_bytes_that_are_no_image_say_what_they_are(tmp_path, content, said):
    (tmp_path / "x").write_bytes(content)
    for source in (content, tmp_path / "x"):
        with pytest.raises(ValueError, match=said):
            load_image(source, 16)


@pytest.mark.parametrize("side", [9000, 20000])
def test_too_large_is_said_so(side):
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    with pytest.raises(ValueError, match="too large") as error:
        load_image(stream.getvalue(), 16)
    assert "DOS" not in str(error.value) and "bomb" not in str(error.value)


def test_too_large_is_said_once(tmp_path):
    """Pillow warns of large images on its own, on stderr: of an attack."""
    Image.new("1", (10000, 10000)).save(tmp_path / "large.png")
    code = f"from data_prep.image import load_image; load_image({str(tmp_path / 'large.png')!r}, 16)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True).stderr
    assert "too large" in said and "DOS" not in said


def test_room_for_decoding():
    room, inside, most = Room(100), [], []

    def decode(size):
        with room.of(size):
            inside.append(size)
            most.append(sum(inside))
            threading.Event().wait(0.002)
            inside.remove(size)

    threads = [threading.Thread(target=decode, args=(size,)) for size in (40, 60, 30, 250, 100, 10, 50) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(most) == 28 and all(total <= 100 or total == 250 for total in most)
