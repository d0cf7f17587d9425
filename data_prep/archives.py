"""Reading named members out of archives that nobody has vouched for: .tar, .tar.gz, .zip, or an unpacked folder.

Nothing is unpacked to the disk, so no member can leave a folder; a member that is asked for must be a regular file of
bounded size; what is not asked for is passed over unread. An archive inside a .zip is read too. Links are refused in
archives; in a folder, which a person made, they are followed to wherever that person can read.
"""

import gzip
import hashlib
import itertools
import os
import re
import stat
import tarfile
import zipfile
from pathlib import Path

MEMBER_LIMIT = 64 << 20  # bytes of one member; the largest image of the paper's sets has a few million
HEADER_LIMIT = 1 << 20  # bytes that a tar may say of all members
ADVICE = "the official archive has no such member, do not use this one"
PREFIXES = 3  # folders that may stand before the path asked for, such as CUB_200_2011/
PACKED = (".tar", ".tgz", ".tar.gz", ".zip")
COPY = re.compile(r" \(\d+\)(?=\.\w+$)")  # what a browser adds to the name of a file that it has fetched before


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

    A name is matched without the folders that stand before it, whether its letters are capitals or not. Raises ValueError
    naming the archive when it is damaged or cannot be read, or when a wanted member is there twice, is a link or a device, or
    is larger than MEMBER_LIMIT.
    """
    path, seen, wanted = Path(path), set(), by_name(wanted)
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
    except (Refused, MemoryError):
        raise
    except PermissionError as error:
        raise ValueError(f"{error.filename or path}: may not be read (permission denied); chmod or chown lets you") from None
    except Exception as error:  # damaged archives come out of the libraries in many ways
        what = no_archive(path) or f"is damaged, or no .tar, .tar.gz or .zip ({type(error).__name__}: {error})"
        raise ValueError(f"{path}: {what}") from None


def no_archive(path):
    """What the file at `path` is instead of what it is named, in words; None where it is not one of these."""
    if not path.is_file():
        return None
    with open(path, "rb") as stream:
        begin = stream.read(512)
    if not begin:
        return "is empty: its download never began, or the disk was full. Fetch it again"
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|head)", begin, re.IGNORECASE):
        return "is a web page, not the file: what its address answered where a login or a click was wanted. Fetch it in a browser"
    return None


def count_members(path, wanted):
    """How many of the names that `wanted` holds are in a folder or a .zip; None for a .tar, which would have to be unpacked."""
    if not path.is_dir() and not zipfile.is_zipfile(path):
        return None
    wanted = by_name(wanted)
    return len({name for member, *_ in _members(path) if (name := _match(member, wanted))})


def some_members(path, count=4):
    """The first names in a folder or an archive, for a message; empty where it cannot be read."""
    try:
        return [name for name, *_ in itertools.islice(_members(path), count)]
    except Exception:
        return []


def identity(path):
    """What changes when the archive or folder at `path` does: its name, and size and time of it or of all files in it."""
    path = Path(path)
    if not path.is_dir():
        return [path.name, path.stat().st_size, path.stat().st_mtime_ns]
    listing = hashlib.sha256()
    for name, kind, size, _ in _folder(path):
        changed = (path / name).stat().st_mtime_ns if kind == "file" else 0
        listing.update(f"{name}\0{size}\0{changed}\0".encode(errors="surrogateescape"))
    return [path.name, listing.hexdigest()]


def by_name(wanted):
    """{name as `_match` compares it: name} of the names that are wanted."""
    return {_plain(name): name for name in wanted}


def _plain(name):
    return COPY.sub("", name).casefold()


def _match(member, wanted):
    """The name in by_name(...) that the member's path ends in, or None."""
    parts = [part for part in member.split("/") if part not in ("", ".")]
    if ".." in parts:
        return None
    for start in range(min(PREFIXES + 1, len(parts))):
        if name := wanted.get(_plain("/".join(parts[start:]))):
            return name
    return None


def _members(path):
    """Yield (name, kind, size, read) of each member."""
    if path.is_dir():
        yield from _folder(path)
    elif zipfile.is_zipfile(path):
        yield from _zip(path)
    elif path.is_file():
        with open(path, "rb") as raw:
            yield from _tar(raw)
    else:
        raise ValueError("is a pipe or a device, and no archive")


def _folder(path):
    seen = set()  # folders: one that a link leads back to would be walked for ever
    for folder, folders, files in os.walk(path, followlinks=True, onerror=_raise):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for file in sorted(files):
            place = Path(folder, file)
            status = place.stat() if place.exists() else place.lstat()
            yield str(place.relative_to(path)), _kind(status.st_mode), status.st_size, place.read_bytes


def _raise(error):
    raise error


def _tar(raw):
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
            if kind == "file" and member.filename.lower().endswith(PACKED[:-1]):
                with archive.open(member) as inside:
                    yield from _tar(inside)
                continue
            yield member.filename, kind, member.file_size, lambda member=member: archive.read(member)


def _kind(mode):
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "device"
