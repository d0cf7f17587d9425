"""Files from the internet: their addresses in order, resumed, size and checksum verified."""

import codecs
import hashlib
import subprocess
import urllib.parse
import zipfile
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import locked, require_space

DOWNLOADS = Path("data/downloads")


@dataclass(frozen=True)
class Download:
    """A file that can be fetched. `size` and `checksum` are None where none was ever published."""

    name: str
    addresses: tuple[str, ...]
    size: int | None = None  # bytes
    checksum: str | None = None  # "md5:...", "sha1:...", "sha256:..."

    def describe(self):
        known = [f"{self.size:,} bytes"] if self.size else []
        known += [self.checksum.replace(":", " ")] if self.checksum else ["no checksum was published"]
        return f"{self.name} ({', '.join(known)})"


PRIVATE = "may not be read by you; change its rights (chmod), or name a copy that is yours"
WEB_PAGE = "a web page that a server sent for the file, for a login, a moved address or a warning; fetch it again, in a browser"
UNPACK = "archive, which is not read here; unpack it, and name its folder"
# What often lies under a file's name in its place, by the first bytes, small letters.
STRANGERS = {
    b"<!doctype html": WEB_PAGE,
    b"<html": WEB_PAGE,
    b"<?xml": "a server's answer in XML, and not the file; fetch it again",
    b"version https://git-lfs": "a Git LFS pointer, and not the file; `git lfs pull` fetches that",
    b"rar!": f"a RAR {UNPACK}",
    b"7z\xbc\xaf": f"a 7-Zip {UNPACK}",
    b"bzh": f"a bzip2 {UNPACK}",
    b"\xfd7zxz": f"an xz {UNPACK}",
}


def stranger(content):
    """What a file with this content (its beginning will do) is instead of data, in words, or None."""
    if not content:
        return "is empty: its download or copy broke off; fetch it again"
    start = content[:512].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    return next((f"is {words}" for first, words in STRANGERS.items() if start.startswith(first)), None)


def unfit(path):
    """Why the file at `path` cannot be any set, net or mean, in words, or None."""
    try:
        with open(path, "rb") as stream:
            return stranger(stream.read(512))
    except PermissionError:
        return PRIVATE


class Unreachable(OSError):
    """No address gave the file."""


def digest(path, algorithm):
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def difference(path, expected):
    """What is wrong with the file at `path`, in words, or None where it is the one expected."""
    if wrong := unfit(path):
        return wrong
    size = path.stat().st_size
    if expected.size is not None and size != expected.size:
        return f"has {size:,} bytes, expected {expected.size:,}"
    if expected.checksum is None:
        return None if zipfile.is_zipfile(path) else "is no whole zip file"
    algorithm, value = expected.checksum.split(":")
    found = digest(path, algorithm)
    return None if found == value else f"has the {algorithm} {found}, expected {value}"


def fetch(expected, folder=DOWNLOADS):
    """The file's path in `folder`, downloaded where it is not there yet.

    Each address is tried in order; a part that an interrupted call left is gone on with. Raises OSError that says what
    each address answered, and where a file fetched by hand is looked for.
    """
    path = folder / expected.name
    if path.exists():
        if wrong := difference(path, expected):
            raise OSError(f"{path}: {wrong}. Remove it, and the same command fetches it again")
        return path
    part = folder / f".{expected.name}.partial"
    with locked(folder, "fetching files") as lock:
        here = part.stat().st_size if part.exists() else 0
        require_space(folder, max(0, (expected.size or 0) - here), "Make room, and the same command goes on.")
        return _fetch(expected, path, part, lock)


def _fetch(expected, path, part, lock):
    answers = []
    for address in expected.addresses:
        print(f"fetching {expected.name} from {urllib.parse.urlsplit(address).hostname}", flush=True)
        went_on = part.exists()
        wrong = _from(address, part, expected, lock)
        if wrong and went_on and not part.exists():  # what was there already may be to blame
            wrong = _from(address, part, expected, lock)
        if wrong is None:
            part.replace(path)
            return path
        print(f"    {wrong}", flush=True)
        answers.append(f"    {address}\n        {wrong}")
    raise Unreachable(f"{expected.describe()} could not be fetched:\n" + "\n".join(answers) +
                  f"\nFetch it by hand, and put it at {path}")  # fmt: skip


def _from(address, part, expected, lock):
    """Download to `part`, going on where it ends; None when the file is right, else what went wrong, in words.

    A complete file that is wrong is removed; a part of one is kept.
    """
    if part.exists() and expected.size is not None and part.stat().st_size >= expected.size:
        if difference(part, expected) is None:
            return None
        part.unlink()
    command = ["curl", "--location", "--fail", "--continue-at", "-", "--output", str(part), "--progress-bar", "--show-error",
               "--connect-timeout", "20", "--speed-limit", "1000", "--speed-time", "60", address]  # fmt: skip
    try:
        done = subprocess.run(command, pass_fds=[lock.fileno()])  # it holds the folder too, if this process is killed
    except FileNotFoundError:
        raise OSError("curl is not installed; make env installs it") from None
    if done.returncode == 23:
        raise OSError(f"{part.parent}: the disk is full, or cannot be written to; make room, and the same command goes on")
    if done.returncode:
        refused_to_go_on = done.returncode == 22 and expected.size is None  # also when the part was the whole already
        if done.returncode == 33 or refused_to_go_on or (part.exists() and not part.stat().st_size):
            part.unlink(missing_ok=True)  # 33: this server sends the whole file only
        return f"curl ended with status {done.returncode} ({CURL.get(done.returncode, 'see `man curl`')})"
    wrong = difference(part, expected)
    if wrong:
        part.unlink()
        return f"the file {wrong}"
    return None


CURL = {
    5: "the proxy is not known",
    6: "the host is not known",
    7: "no connection",
    18: "the transfer broke off",
    22: "the server refused",
    28: "no answer in time",
    33: "the server cannot go on with a part",
    35: "no secure connection",
    56: "the transfer broke off",
    60: "the server's certificate is not valid",
    67: "the server wants a login",
    78: "no such file there",
}
