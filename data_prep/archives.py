"""Reading named members out of archives that nobody has vouched for: .tar, .tar.gz, .zip, or an unpacked folder.

Nothing is unpacked to the disk, so no member can leave a folder; a member that is asked for must be a regular file of
bounded size; what is not asked for is passed over unread.
"""

import gzip
import hashlib
import os
import stat
import tarfile
import zipfile
from pathlib import Path

MEMBER_LIMIT = 64 << 20  # bytes of one member; the largest image of the paper's sets has a few million
HEADER_LIMIT = 1 << 20  # bytes that a tar may say of all members
ADVICE = "the official archive has no such member, do not use this one"
PREFIXES = 2  # folders that may stand before the path asked for, such as CUB_200_2011/


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

    A name is matched without the folders that stand before it. Raises ValueError naming the archive when it is damaged,
    or when a wanted member is there twice, is a link or a device, or is larger than MEMBER_LIMIT.
    """
    path, seen = Path(path), set()
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    try:
        for member, kind, size, read in _members(path):
            name = _match(member, wanted)
            if name is None or kind == "folder":
                continue
            if kind != "file":
                raise Refused(f"{path}: {member} is a {kind}, not a regular file; {ADVICE}")
            if not 0 <= size <= MEMBER_LIMIT:
                raise Refused(f"{path}: {member} has {size:,} bytes, more than {MEMBER_LIMIT:,}; {ADVICE}")
            if name in seen:
                raise Refused(f"{path}: holds {name} twice, the second time as {member}; {ADVICE}")
            seen.add(name)
            yield name, read()
    except Refused:
        raise
    except MemoryError:
        raise
    except Exception as error:  # damaged archives come out of the libraries in many ways
        raise ValueError(f"{path}: is damaged, or no .tar, .tar.gz or .zip ({type(error).__name__}: {error})") from None


def identity(path):
    """What changes when the archive or folder at `path` does: its name, and size and time of it or of all files in it."""
    path = Path(path)
    if not path.is_dir():
        return [path.name, path.stat().st_size, path.stat().st_mtime_ns]
    listing = hashlib.sha256()
    for name, _, size, _ in _folder(path):
        listing.update(f"{name}\0{size}\0{(path / name).lstat().st_mtime_ns}\0".encode(errors="surrogateescape"))
    return [path.name, listing.hexdigest()]


def _match(member, wanted):
    """The name in `wanted` that the member's path ends in, or None."""
    parts = [part for part in member.split("/") if part not in ("", ".")]
    if ".." in parts:
        return None
    for start in range(min(PREFIXES + 1, len(parts))):
        if (name := "/".join(parts[start:])) in wanted:
            return name
    return None


def _members(path):
    """Yield (name, kind, size, read) of each member."""
    return _folder(path) if path.is_dir() else _zip(path) if zipfile.is_zipfile(path) else _tar(path)


def _folder(path):
    for folder, folders, files in os.walk(path):
        folders.sort()
        for file in sorted(files):
            place = Path(folder, file)
            status = place.lstat()
            yield str(place.relative_to(path)), _kind(status.st_mode), status.st_size, place.read_bytes


def _tar(path):
    if not path.is_file():
        raise ValueError("is a pipe or a device, and no archive")
    with open(path, "rb") as raw:
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


def _kind(mode):
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "device"
