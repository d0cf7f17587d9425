"""Reading named members out of archives that nobody vouches for: .tar, .tar.gz, .zip (a .tar in it too), or a folder.

Nothing is unpacked to the disk, so no member can leave a folder; a member that is asked for must be a regular file of
bounded size; what is not asked for is passed over unread. A folder is the user's own, so links in it are followed.
"""

import contextlib
import errno
import gzip
import hashlib
import os
import re
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from data_prep.download import PRIVATE, unfit

MEMBER_LIMIT = 64 << 20  # bytes of one member; the largest image of the paper's sets has a few million
HEADER_LIMIT = 1 << 20  # bytes that a tar may say of all members
ADVICE = "the official archive has no such member, do not use this one"
PREFIXES = 2  # folders that may stand before the path asked for, such as CUB_200_2011/
DEEPEST = 6  # folders below the one that a person names: what is asked for lies at most 4 below, the rest is for messages
SHOWN = 8  # names in a message
COPY = re.compile(r" ?\(\d+\)(?=(\.tar)?\.[^./]*$)")
ARCHIVE = re.compile(r"\.(tgz|tar|tar\.gz|zip)$", re.IGNORECASE)
TAR = re.compile(r"\.(tgz|tar|tar\.gz)$", re.IGNORECASE)


class Bounded:
    """A decompressed stream that refuses to return more than MEMBER_LIMIT at once.

    tarfile reads a header's extension of whatever size the header claims into memory.
    """

    def __init__(self, stream):
        self.stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size=-1):
        if not 0 <= size <= MEMBER_LIMIT:
            raise ValueError(f"a part of {size:,} bytes")
        return self.stream.read(size)


class GlobalHeaders(dict):
    """What a tar says of all members from here on. tarfile keeps it to the end; official archives say a line, if anything."""

    size = 0

    def __setitem__(self, name, value):
        self.size += len(name) + len(value) - (len(name) + len(self[name]) if name in self else 0)
        if self.size > HEADER_LIMIT:
            raise ValueError(f"more than {HEADER_LIMIT:,} bytes in headers for all members")
        super().__setitem__(name, value)


class Refused(ValueError):
    """A member that no official archive holds."""


def read_members(path, wanted):
    """Yield (name, content) of the members of `path` whose name `wanted` holds (a set), in the archive's own order.

    A name is matched without the folders that stand before it, in whatever case, and with a browser's (1) behind it. Of
    copies one is read. Raises ValueError naming the archive when it is damaged, or when a wanted member is there twice with
    different contents, is a link (in an archive) or a device, or is larger than MEMBER_LIMIT; PermissionError for what may
    not be read.
    """
    path, seen = Path(path), {}
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    with _in_words(path):
        for name, member, kind, size, read in _matching(path, wanted):
            if kind == "private":
                raise PermissionError(errno.EACCES, "", str(path / member))
            if kind != "file":
                raise Refused(f"{path}: {member} is a {kind}, not a regular file; {ADVICE}")
            if not 0 <= size <= MEMBER_LIMIT:
                raise Refused(f"{path}: {member} has {size:,} bytes, more than {MEMBER_LIMIT:,}; {ADVICE}")
            content = read()
            if name not in seen:
                seen[name] = member, hash(content)
                yield name, content
            elif hash(content) != seen[name][1]:
                raise Refused(f"{path}: holds {name} twice, as {seen[name][0]} and as {member}, and they differ; keep one of them")


def held(path, wanted):
    """The names of `wanted` that `path` holds; nothing is read but the archive's own list. Raises as read_members."""
    with _in_words(path):
        return {name for name, _, kind, *_ in _matching(path, wanted) if kind == "file"}


def overview(path, wanted):
    """What lies in `path`, in words, for a message: the files and folders at its top, and what of `wanted` lies too deep."""
    tops, deep, names = {}, [], {plain(name.split("/")[-1]) for name in wanted}
    with _in_words(path):
        for member, kind, *_ in _members(path):
            if not (parts := _parts(member)):
                continue
            first, *below = parts
            private = " (may not be read)" if kind == "private" and not below else ""
            tops[first + ("/" if below or kind in ("folder", "private") else "") + private] = None
            if len(below) > PREFIXES and plain(below[-1]) in names:
                deep.append(member)
    shown = ", ".join(list(tops)[:SHOWN]) + (f" and {len(tops) - SHOWN:,} more" if len(tops) > SHOWN else "")
    said = f"{path} holds {shown or 'nothing'}; what is looked for may lie up to {PREFIXES} folders deep"
    if deep:
        advice = f"name {path / deep[0].rpartition('/')[0]}" if path.is_dir() else "unpack it, and name the folder it is in"
        said += f"; {deep[0]} lies deeper: {advice}"
    return said


def identity(path):
    """What changes when the archive or folder at `path` does: its name, and size and time of it or of all files in it."""
    path = Path(path)
    if not path.is_dir():
        return [path.name, path.stat().st_size, path.stat().st_mtime_ns]
    listing = hashlib.sha256()
    for name, kind, size, _ in _folder(path):
        time = (path / name).stat().st_mtime_ns if kind == "file" else kind
        listing.update(f"{name}\0{size}\0{time}\0".encode(errors="surrogateescape"))
    return [path.name, listing.hexdigest()]


def plain(name):
    """A name in small letters and without what a browser adds to that of a second download: `a (1).TGZ` is `a.tgz`."""
    return COPY.sub("", name).lower()


@contextlib.contextmanager
def _in_words(path):
    """Whatever goes wrong in reading `path` as an error that names it."""
    try:
        if path.is_file() and (wrong := unfit(path)):
            raise Refused(f"{path}: {wrong}")
        yield
    except (Refused, MemoryError):
        raise
    except PermissionError as error:
        raise PermissionError(f"{error.filename or path}: {PRIVATE}") from None
    except Exception as error:  # damaged archives come out of the libraries in many ways
        if isinstance(error, OSError) and error.errno:  # the disk's fault, not the archive's
            raise
        raise ValueError(f"{path}: is damaged, or no .tar, .tar.gz or .zip ({type(error).__name__}: {error})") from None


def _matching(path, wanted):
    """Yield (name in `wanted`, member, kind, size, read) of the members that are asked for, and of folders that hide some."""
    names = {plain(name): name for name in wanted}
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    for member, kind, size, read in _members(path):
        parts = _parts(member)
        for start in range(min(PREFIXES + 1, len(parts))):
            end = "/".join(parts[start:])
            name = end if end in wanted else names.get(plain(end))
            if (kind == "private" and plain(end) in folders) or (name is not None and kind not in ("folder", "private")):
                yield name, member, kind, size, read
                break


def _parts(member):
    """The folders and the name of a member; none of one that would leave its folder."""
    parts = [part for part in member.split("/") if part not in ("", ".")]
    return [] if ".." in parts else parts


def _members(path):
    """Yield (name, kind, size, read) of each member."""
    return _folder(path) if path.is_dir() else _zip(path) if zipfile.is_zipfile(path) else _tar(path)


def _folder(path, below="", above=()):
    """Links are followed, for a person made them; one that leads back to a folder it lies in is passed over."""
    status = os.stat(path / below)
    here = status.st_dev, status.st_ino
    if here in above or len(above) > DEEPEST:
        return
    try:
        entries = sorted(os.scandir(path / below), key=lambda entry: (os.path.isdir(entry), entry.name))
    except PermissionError:
        if not below:
            raise
        yield below, "private", 0, None
        return
    for entry in entries:
        if os.path.isdir(entry):
            yield from _folder(path, f"{below}{entry.name}/", (*above, here))
        elif os.path.isfile(entry):
            yield below + entry.name, "file", os.path.getsize(entry), Path(entry).read_bytes
        else:
            yield below + entry.name, "link to nothing" if entry.is_symlink() else "device", 0, None


def _tar(path):
    if not path.is_file():
        raise ValueError("is a pipe or a device, and no archive")
    with open(path, "rb") as raw:
        yield from _unpacked(raw)


def _unpacked(raw):
    """The members of the tar, packed by gzip or not, that the file object `raw` holds."""
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    stream = Bounded(gzip.GzipFile(fileobj=raw) if packed else raw)
    with tarfile.open(fileobj=stream, mode="r:", pax_headers=GlobalHeaders()) as archive:
        for member in archive:
            if member.size < 0:  # tarfile would go back, and round and round
                raise ValueError(f"{member.name} has a size of {member.size}")
            kind = "file" if member.isreg() else "folder" if member.isdir() else "link" if _links(member) else "device"
            yield member.name, kind, member.size, lambda member=member: archive.extractfile(member).read()
            archive.members = []  # tarfile keeps every header that it has read
    if len(stream.read(MEMBER_LIMIT)) == MEMBER_LIMIT:  # up to the end, where gzip compares its checksum
        raise ValueError("goes on behind its last member")


def _links(member):
    return member.issym() or member.islnk()


def _zip(path):
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            mode = member.external_attr >> 16
            kind = "folder" if member.is_dir() else _kind(mode) if stat.S_IFMT(mode) else "file"
            yield member.filename, kind, member.file_size, lambda member=member: archive.read(member)
            # A download packed once more; what macOS adds beside each file begins with "._".
            if TAR.search(member.filename) and not member.filename.rpartition("/")[2].startswith("._"):
                with archive.open(member) as inner:
                    yield from _unpacked(inner)


def _kind(mode):
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "device"
