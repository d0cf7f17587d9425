"""The demo's classes and groups, from packages in npm's layout that the test makes."""

import io
import tarfile

import pytest
from PIL import Image

from data_prep import demo_images
from data_prep.demo_images import group_of


@pytest.mark.parametrize(
    "one, other",
    [
        ("1f469-1f3fd-200d-1f33e", "1f468-200d-1f33e"),  # farmer: woman of one skin tone, man
        ("1f9d1-200d-1f33e", "1f468-1f3ff-200d-1f33e"),  # and person
        ("1f3c3-200d-2640-fe0f-200d-27a1-fe0f", "1f3c3-1f3fb"),  # running to the right
        ("2764-fe0f", "2764"),
        ("1f3fb", "1f3ff"),  # the skin tones themselves
        ("1f91d-1f3fb", "1faf1-1f3fb-200d-1faf2-1f3ff"),  # handshake, of one skin tone and of two
        ("1f46d", "1f9d1-1f3fb-200d-1f91d-200d-1f9d1-1f3ff"),  # holding hands
        ("1f46b-1f3fc", "1f469-1f3fb-200d-1f91d-200d-1f468-1f3fc"),
        ("1f48f", "1f468-200d-2764-fe0f-200d-1f48b-200d-1f468"),  # kiss
        ("1f491-1f3fd", "1f9d1-1f3fb-200d-2764-fe0f-200d-1f9d1-1f3fd"),  # couple with heart
        ("1f46a", "1f468-200d-1f469-200d-1f467-200d-1f466"),  # family
        ("1f478", "1f934-1f3ff"),
        ("1f385", "1f9d1-200d-1f384"),
    ],
)
def test_variants_share_a_group(one, other):
    assert group_of(one) == group_of(other)


@pytest.mark.parametrize(
    "one, other", [("1f33e", "1f9d1-200d-1f33e"), ("2640-fe0f", "2642-fe0f"), ("1f600", "1f601"), ("1f466", "1f468")]
)
def test_other_things_do_not(one, other):
    assert group_of(one) != group_of(other)


def make_package(path, vendor, names):
    png = io.BytesIO()
    Image.new("RGBA", (64, 64), "green").save(png, "PNG")
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(png.getvalue())
            archive.addfile(member, io.BytesIO(png.getvalue()))
    return path


def test_unpack_takes_the_drawings_of_64_pixels_and_nothing_else(tmp_path, monkeypatch):
    names = ["img/apple/64/1f600.png", "img/apple/64/2764-fe0f.png", "img/apple/64/2764.png", "img/apple/sheets/64/1f601.png",
             "img/apple/64/../../../../1f602.png", "img/google/64/1f603.png", "img/apple/64/readme.txt"]  # fmt: skip
    package = make_package(tmp_path / "apple.tgz", "apple", names)
    monkeypatch.setitem(demo_images.PACKAGES, "apple", ("", 3))
    assert demo_images.unpack({"apple": package}, tmp_path / "images") == ["1f600", "2764-fe0f"]
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert found == ["images/1f600/apple.png", "images/2764-fe0f/apple.png"]


def test_a_package_with_other_drawings_is_refused(tmp_path):
    package = make_package(tmp_path / "apple.tgz", "apple", ["img/apple/64/1f600.png"])
    with pytest.raises(OSError, match="expected 3793 drawings of 64 pixels, found 1"):
        demo_images.unpack({"apple": package}, tmp_path / "images")


def test_fetch_refuses_a_changed_package(tmp_path, monkeypatch):
    """With an `npm` on the PATH that packs something else."""
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\necho changed > emoji-datasource-apple-{demo_images.VERSION}.tgz\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(OSError, match=r"expected SHA-256 b34d1665\w+, found \w+; the package was changed"):
        demo_images.fetch("apple", tmp_path / "downloads")
    npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    with pytest.raises(OSError, match=r"npm pack emoji-datasource-apple@16.0.0 failed:\nno network\nTry again"):
        demo_images.fetch("apple", tmp_path / "downloads")
    assert not list((tmp_path / "downloads").glob("*.tgz"))
