"""Files that appear under their final name only when they are complete, and room for them on the disk.

The standard library alone: tools/env.py uses it before there is a virtual environment.
"""

import contextlib
import csv
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import socket
from pathlib import Path


def require_writable(path):
    """Raise OSError unless the file or folder `path` can be made: called before the work that ends in it. Makes nothing."""
    folder = Path(os.path.abspath(path)).parent
    while not os.path.lexists(folder):
        folder = folder.parent
    why = ("is no folder" if not folder.is_dir() else "" if os.access(folder, os.W_OK | os.X_OK)
           else "may not be written to, or its disk is read-only")  # fmt: skip
    if why:
        raise OSError(f"{path}: cannot be written, {folder} {why}; name another place")


@contextlib.contextmanager
def written_aside(path):
    """Yield a path beside `path` to write a file or a folder at; it gets its final name when the block ends well.

    That path is this process's own: two that write one file at once, on two machines that share the disk too, each publish a
    whole one. What processes of this machine that have ended left aside is removed first. A file that has the name already is
    replaced, and a folder by a folder; IsADirectoryError where a folder stands in a file's place.
    """
    path = Path(path)
    require_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    for left in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(host)}.*.partial*"):
        if not _is_running(left.name.split(".partial")[0].rsplit(".", 1)[1]):
            remove(left)
    aside = path.with_name(f".{path.name}.{host}.{os.getpid()}.partial{path.suffix}")
    remove(aside)
    try:
        yield aside
        _sync(aside)
        _publish(aside, path)
        _sync_entry(path.parent)
    finally:
        remove(aside)


def _publish(aside, path):
    """Give what is written aside its name."""
    while True:
        try:
            return os.replace(aside, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # Rename replaces a file, but no folder that holds something: that one is moved out of the way, whole.
        old = aside.with_name(f"{aside.name}.old")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(path, old)
        remove(old)


def _is_running(number):
    """Whether a process of this machine has that number. One that has ended and that nobody has asked about (Z) has not."""
    try:
        return Path("/proc", number, "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def remove(path):
    """Delete a file or a folder with all it holds; nothing happens where none is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path):
    """Write a file, or a folder with all it holds, through to the disk."""
    if path.is_dir():
        os.sync()  # one call for all disks: a folder of thousands of files would take as many
    else:
        _sync_entry(path)


def _sync_entry(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder, work):
    """Hold `folder` (made if missing) for this process; BlockingIOError when another one has it.

    The kernel lets go when the process ends, however it ends. `work` says in the message what the other is doing. Yields
    the lock's file: a program that inherits it holds the folder as well.
    """
    require_writable(folder / ".lock")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{folder}: another process is {work} in this folder; wait for it, or stop it") from None
        yield lock


def remove_partials(folder):
    """Delete what was left aside in `folder`, so that its room is free again: by whoever holds the folder's lock, under which
    all that write there work.
    """
    for partial in folder.glob(".*.partial*"):
        remove(partial)


def user_path(text):
    """The path that a person typed: ~ is their home also where the shell left it, as in ARCHIVE=~/file."""
    return Path(text).expanduser()


def sha256(path):
    """The SHA-256 of a file's content, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(text):
    """The object that the JSON `text` is; ValueError for anything else, brackets beyond Python's depth among it."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object was expected, not a {type(found).__name__}")
    return found


def read_record(path):
    """The JSON object in the file `path`, or an empty one when the file is missing or damaged."""
    try:
        return read_json(path.read_text())
    except (OSError, ValueError):
        return {}


def read_rows(path, *columns):
    """Yield (line, {column: text}) for each row of the CSV file `path`, whose first line must name `columns`.

    UTF-8, with or without a byte order mark; bytes that are none stay as they are (surrogateescape). Raises ValueError naming
    the file, and the line where a row has more or fewer fields than the first one, or a NUL: a name with a comma that is not
    quoted would else be taken for two.
    """
    expected = f"expected a CSV file, commas between, whose first line names {' and '.join(columns)}"
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; {expected}")
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
        rows = csv.reader(stream, strict=True)
        try:
            head = next(rows, [])
            if any(head.count(column) != 1 for column in columns):
                found = ", ".join(head) or "nothing"
                raise ValueError(f"{path}: {expected}; found {found if found.isprintable() else ascii(found[:100])}")
            for row in filter(None, rows):
                if len(row) != len(head):
                    raise ValueError(f"{path}: line {rows.line_num} has {len(row)} fields, the first line {len(head)}; a field "
                                     "with a comma in it stands in double quotes")  # fmt: skip
                if any("\0" in field for field in row):
                    raise ValueError(f"{path}: line {rows.line_num} holds a NUL, which no text does; write the file again")
                yield rows.line_num, dict(zip(head, row))
        except csv.Error as error:
            raise ValueError(f"{path}: line {rows.line_num} is not CSV ({error}); {expected}") from None


class DiskFull(OSError):
    """There is too little room on a disk; the message says how much is needed and what needs less."""


def require_space(folder, needed, advice):
    """Raise DiskFull when the disk of `folder` has less than `needed` bytes free; `advice` says what needs less."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(f"{folder}: {needed:,} bytes are needed and {free:,} are free on this disk. {advice}")
