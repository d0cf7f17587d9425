"""Archives that nobody vouches for: what is read, and what is refused, in words."""

import contextlib
import gzip
import io
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from miniature import add

from data_prep import archives
from data_prep.archives import identity, overview, read_members


@pytest.fixture
def nobody():
    """A folder that a user without rights can reach; pytest's own are private."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def not_root():
    """For whom rights hold."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(mine)


WANTED = {"images/a.jpg", "images/b.jpg", "images.txt"}


def tar(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content, *fields in members:
            add(archive, name, content, **(fields[0] if fields else {}))
    return path


def read(path):
    return dict(read_members(path, WANTED))


def test_members_with_and_without_folders_before_them(tmp_path):
    for number, prefix in enumerate(("", "./", "CUB_200_2011/", "./one/two/", "/absolute/")):
        path = tar(tmp_path / f"{number}.tgz", (f"{prefix}images/a.jpg", b"a"), (f"{prefix}images/._a.jpg", b"x"),
                   (f"{prefix}images.txt", b"list"))  # fmt: skip
        assert read(path) == {"images/a.jpg": b"a", "images.txt": b"list"}
    assert read(tar(tmp_path / "plain.tar", ("images/a.jpg", b"a"), mode="w")) == {"images/a.jpg": b"a"}
    assert read(tar(tmp_path / "deep.tgz", ("one/two/three/images/a.jpg", b"a"))) == {}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("top/images/", "")
        archive.writestr("top/images/a.jpg", b"a")
    assert read(tmp_path / "a.zip") == {"images/a.jpg": b"a"}
    (tmp_path / "folder/top/images").mkdir(parents=True)
    (tmp_path / "folder/top/images/a.jpg").write_bytes(b"a")
    assert read(tmp_path / "folder") == {"images/a.jpg": b"a"}


def test_nothing_is_written_to_the_disk(tmp_path):
    hostile = ("../../images/a.jpg", b"out"), ("/etc/images/b.jpg", b"b"), ("..", b"dots")
    inside = tmp_path / "one" / "two"
    inside.mkdir(parents=True)
    assert read(tar(inside / "x.tgz", *hostile)) == {"images/b.jpg": b"b"}  # and that only as bytes
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["one", "two", "x.tgz"]


@pytest.mark.parametrize("kind, fields", [
    ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
    ("link", {"type": tarfile.LNKTYPE, "linkname": "images/b.jpg"}),
    ("device", {"type": tarfile.CHRTYPE}),
    ("device", {"type": tarfile.FIFOTYPE}),
])  # fmt: skip
def test_links_and_devices(tmp_path, kind, fields):
    path = tar(tmp_path / "x.tgz", ("images/b.jpg", b"b"), ("images/a.jpg", b"", fields))
    with pytest.raises(ValueError, match=f"x.tgz: images/a.jpg is a {kind}"):
        read(path)
    assert read(tar(tmp_path / "y.tgz", ("images/b.jpg", b"b"), ("elsewhere", b"", fields))) == {"images/b.jpg": b"b"}


def test_links_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("images/a.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="is a link, not a regular file"):
        read(tmp_path / "x.zip")


def test_links_in_a_folder_are_followed(tmp_path):
    """A person made them: to a file, to a folder elsewhere, back up; and one that leads nowhere."""
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    (elsewhere / "images").mkdir(parents=True)
    (elsewhere / "images/a.jpg").write_bytes(b"a")
    (elsewhere / "list").write_bytes(b"list")
    (folder / "images").symlink_to(elsewhere / "images")
    (folder / "images.txt").symlink_to("../elsewhere/list")
    (elsewhere / "images/up").symlink_to(folder)
    (folder / "itself").symlink_to("itself")
    assert read(folder) == {"images/a.jpg": b"a", "images.txt": b"list"}
    assert [name for name, *_ in archives._members(folder)] == ["images.txt", "itself", "images/a.jpg"]  # no rounds
    before = identity(folder)
    (elsewhere / "images/a.jpg").write_bytes(b"another")  # behind the link
    assert identity(folder) != before
    (elsewhere / "images/b.jpg").symlink_to("nowhere")
    assert len(identity(folder)) == 2
    with pytest.raises(ValueError, match="images/b.jpg is a link to nothing"):
        read(folder)


def test_a_member_twice(tmp_path):
    with pytest.raises(ValueError, match="holds images/a.jpg twice.*top/images/a.jpg.*other/images/a.jpg"):
        read(tar(tmp_path / "x.tgz", ("top/images/a.jpg", b"1"), ("other/images/a.jpg", b"2")))
    assert read(tar(tmp_path / "y.tgz", ("a/images.txt", b"1"), ("b/images.txt", b"1"))) == {"images.txt": b"1"}  # a copy


def test_names_as_browsers_and_other_systems_leave_them(tmp_path):
    path = tar(tmp_path / "x.tgz", ("top/Images/A.JPG", b"a"), ("images (1).txt", b"list"), ("images/b (2).jpg", b"b"))
    assert read(path) == {"images/a.jpg": b"a", "images.txt": b"list", "images/b.jpg": b"b"}
    other = tar(tmp_path / "y.tgz", ("a.jpg", b"small"), ("A.jpg", b"large"))
    assert dict(read_members(other, {"a.jpg", "A.jpg"})) == {"a.jpg": b"small", "A.jpg": b"large"}


def test_a_zip_with_the_tgz_inside(tmp_path, monkeypatch):
    inner = tar(tmp_path / "inner.tgz", ("top/images/a.jpg", b"a"), ("top/images.txt", b"list"))
    for number, method in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)):
        path = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.write(inner, "download/CUB_200_2011.tgz")
            archive.writestr("__MACOSX/download/._CUB_200_2011.tgz", b"what macOS adds")
            archive.writestr("images/b.jpg", b"b")
        assert read(path) == {"images/a.jpg": b"a", "images.txt": b"list", "images/b.jpg": b"b"}
        assert "download/" in overview(path, WANTED)
    tar(inner, ("images/a.jpg", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "inner.tgz")
    with pytest.raises(ValueError, match="images/a.jpg is a link"):
        read(path)
    inner.write_bytes(inner.read_bytes()[:-20])
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "inner.tgz")
    with pytest.raises(ValueError, match="is damaged"):
        read(path)


def test_what_lies_there_in_words(tmp_path):
    deep = tmp_path / "folder/one/two/three"
    deep.mkdir(parents=True)
    (deep / "images.txt").touch()
    for number in range(20):
        (tmp_path / f"folder/note{number:02}.txt").touch()
    said = overview(tmp_path / "folder", WANTED)
    assert "one/" in said and "note00.txt" in said and "more" in said and "note19.txt" not in said
    assert "one/two/three/images.txt" in said and f"{tmp_path}/folder/one/two/three" in said
    assert "2 folders" in said and "nothing" in overview(tar(tmp_path / "x.tar", mode="w"), WANTED)


def test_what_may_not_be_read(nobody):
    folder = nobody / "folder"
    (folder / "images").mkdir(parents=True)
    (folder / "private").mkdir(mode=0)
    (folder / "images/a.jpg").write_bytes(b"a")
    packed = tar(nobody / "x.tgz", ("images/a.jpg", b"a"))
    packed.chmod(0)
    with not_root():
        assert read(folder) == {"images/a.jpg": b"a"}  # what is not asked for may well be private
        with pytest.raises((OSError, ValueError), match="x.tgz: may not be read"):
            read(packed)
    (folder / "images/a.jpg").chmod(0)
    with not_root(), pytest.raises(OSError, match="a.jpg: may not be read"):
        read(folder)
    (folder / "images").chmod(0)
    with not_root():
        with pytest.raises(OSError, match="images: may not be read"):
            read(folder)
        assert "private/ (may not be read)" in overview(folder, WANTED)


def test_a_negative_size_ends_the_reading(tmp_path):
    block = bytearray(header("elsewhere", 0))
    block[124:136] = (-1536).to_bytes(12, "big", signed=True)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "x.tar").write_bytes(header("a", 0) + header("b", 0) + bytes(block) + bytes(1024))
    with pytest.raises(ValueError, match="x.tar: is damaged"):
        read(tmp_path / "x.tar")


def header(name, size, kind=b"0"):
    """A tar header that claims any size."""
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = struct.pack(">BxxxQ", 0x80, size) if size >= 8**11 else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind, message", [(b"0", "more than 67,108,864"), (b"L", "a part of"), (b"x", "a part of")])
def test_sizes_are_bounded(tmp_path, kind, message):
    """A header that claims a terabyte, for the image itself or for its name's extension, which tarfile reads at once."""
    (tmp_path / "x.tgz").write_bytes(gzip.compress(header("images/a.jpg", 1 << 40, kind) + bytes(1024)))
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "x.tgz")


@pytest.mark.parametrize("between", [header("a", 0), b""])  # tarfile reads headers without a member between them in one go
def test_headers_for_all_members_do_not_add_up(tmp_path, between):
    def said(records):
        body = b"".join(b"13 k%06d=v\n" % number for number in records)
        return header("said", len(body), b"g") + body + bytes(-len(body) % 512)

    image = header("images/a.jpg", 3) + b"abc".ljust(512, b"\0")
    again = (said(range(3000)) + between) * 50  # the same again is no more
    (tmp_path / "x.tgz").write_bytes(gzip.compress(again + image + bytes(1024), 1))
    assert read(tmp_path / "x.tgz") == {"images/a.jpg": b"abc"}
    many = b"".join(said(range(start, start + 50_000)) + between for start in range(0, 400_000, 50_000))
    (tmp_path / "x.tgz").write_bytes(gzip.compress(many + image + bytes(1024), 1))
    with pytest.raises(ValueError, match="x.tgz: is damaged.* more than 1,048,576 bytes in headers for all members"):
        read(tmp_path / "x.tgz")


def test_a_zip_that_unpacks_to_more_than_it_may(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 1000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/a.jpg", bytes(5000))
    with pytest.raises(ValueError, match="has 5,000 bytes, more than 1,000"):
        read(tmp_path / "x.zip")
    lying = bytearray((tmp_path / "x.zip").read_bytes())
    place = lying.index(b"PK\x01\x02")
    lying[place + 24 : place + 28] = struct.pack("<I", 10)  # the directory claims ten bytes
    (tmp_path / "lying.zip").write_bytes(lying)
    with pytest.raises(ValueError, match="lying.zip: is damaged"):
        read(tmp_path / "lying.zip")


def test_damaged_archives(tmp_path):
    whole = tar(tmp_path / "x.tgz", ("images/a.jpg", os.urandom(100000)), ("images/b.jpg", os.urandom(100000))).read_bytes()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("images/a.jpg", os.urandom(1000))
    packed = bytearray(stream.getvalue())
    packed[100] ^= 255  # the content no longer has its checksum
    flipped = bytearray(whole)
    flipped[60000] ^= 255
    damaged = {"cut.tgz": whole[:120000], "text.tgz": b"not found" * 200, "flipped.tgz": flipped,
               "x.zip": packed, "cut.zip": stream.getvalue()[:-30], "endless.tgz": gzip.compress(bytes(70 << 20))}  # fmt: skip
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: is damaged, or no .tar"):
            read(tmp_path / name)
    for name, content, words in (
        ("page.tgz", b"\n<!DOCTYPE html>\n<p>not found", "web page"),
        ("empty.tgz", b"", "empty"),
        ("pointer.zip", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("x.rar", b"Rar!\x1a\x07\x01", "RAR"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: is .*{words}"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="no such file or folder"):
        read(tmp_path / "nowhere")
