"""A Caffe that is there already: a pycaffe that somebody built (PYCAFFE=), or a source checkout (CAFFE_SRC=).

Neither is changed: of a pycaffe `.caffe/caffe` holds links to it, of a checkout a copy is built.
"""

import hashlib
import shlex
import shutil
import subprocess
from pathlib import Path

# What of a checkout the build reads; the rest may change without a new build.
SOURCES = ("CMakeLists.txt", "cmake", "include", "src", "python", "tools")
PASSED_OVER = (".git", "build*", ".build*", "distribute", "_caffe*.so", "__pycache__")

PACKAGE = '''\
"""pycaffe of {folder}, with `caffe_pb2` beside it for its messages. Made by `make env`."""

import importlib
import sys

import caffe_pb2

__path__ = [{folder!r}]
# Protobuf takes one definition of the messages in a process.
sys.modules[__name__ + ".proto.caffe_pb2"] = caffe_pb2
importlib.import_module(__name__ + ".proto").caffe_pb2 = caffe_pb2
with open({init!r}) as _text:
    exec(compile(_text.read(), {init!r}, "exec"))
'''


def find_pycaffe(folder):
    """The folder `caffe/` of a built pycaffe, given as that, as the `python` folder it lies in, or as a checkout.

    Raises ValueError where none is.
    """
    if not folder.is_dir():
        raise ValueError(f"PYCAFFE={folder}: no such folder. `make env PYCAFFE=` goes back to the Caffe that is built here")
    for package in (folder / "python" / "caffe", folder / "caffe", folder):
        if (package / "pycaffe.py").is_file():
            if list(package.glob("_caffe*.so")):
                return package.absolute()
            raise ValueError(f"PYCAFFE={folder}: {package} is not built (it has no _caffe.so). Build it (make pycaffe), or have it "
                             f"built here: make env CAFFE_SRC={shlex.quote(str(package.parent.parent))}")  # fmt: skip
    placeholder = " PyPI's package `caffe` is an empty placeholder." if (folder / "caffe" / "__init__.py").exists() else ""
    raise ValueError(f"PYCAFFE={folder}: no pycaffe is there.{placeholder} Name the `python` folder of a built BVLC Caffe, "
                     "the one that holds caffe/pycaffe.py and caffe/_caffe.so")  # fmt: skip


def find_binary(package):
    """The stock `caffe` binary that was built with a pycaffe, or None."""
    home = package.parent.parent
    built = next(package.glob("_caffe*.so")).resolve().parent.parent  # CMake: a link to <build>/lib
    places = [built / "tools", home / "build" / "tools", home / "bin"]
    return next((place / name for place in places for name in ("caffe", "caffe.bin") if (place / name).is_file()), None)


def link_pycaffe(package, aside):
    """Fill the folder `aside` as a build does: python/caffe, python/caffe_pb2.py, and bin/caffe where there is one."""
    (aside / "python" / "caffe").mkdir(parents=True)
    (aside / "bin").mkdir()
    text = PACKAGE.format(folder=str(package), init=str(package / "__init__.py"))
    (aside / "python" / "caffe" / "__init__.py").write_text(text)
    if (package / "imagenet").is_dir():  # scripts look for ImageNet's mean beside caffe.__file__
        (aside / "python" / "caffe" / "imagenet").symlink_to(package / "imagenet")
    alone = package.parent / "caffe_pb2.py"  # of another checkout of this project
    messages = alone if alone.is_file() else package / "proto" / "caffe_pb2.py"
    if not messages.is_file():
        raise ValueError(f"PYCAFFE: {messages} is not there: its build did not end. Build it again (make pycaffe)")
    (aside / "python" / "caffe_pb2.py").symlink_to(messages)
    if binary := find_binary(package):
        (aside / "bin" / "caffe").symlink_to(binary)


def identity(package):
    """What tells a pycaffe that was built again: the size and time of its library."""
    found = next(package.glob("_caffe*.so")).resolve().stat()
    return [found.st_size, found.st_mtime_ns]


def check_source(folder):
    """Raise ValueError when `folder` is no source checkout of Caffe."""
    for name in ("CMakeLists.txt", "src/caffe/proto/caffe.proto", "python/caffe/pycaffe.py"):
        if not (folder / name).is_file():
            raise ValueError(f"CAFFE_SRC={folder}: {name} is not there; name a checkout of BVLC's Caffe. `make env CAFFE_SRC=` "
                             "builds the one that is fetched")  # fmt: skip


def describe_source(folder):
    """(the commit, or "no git"; a checksum of the names, sizes and times of what is built) of a source checkout."""
    done = subprocess.run(["git", "-C", folder, "rev-parse", "--short", "HEAD"], text=True, capture_output=True)
    commit = done.stdout.strip() if done.returncode == 0 and (folder / ".git").exists() else "no git"
    digest = hashlib.sha256()
    for top in SOURCES:
        for path in sorted((folder / top).rglob("*") if (folder / top).is_dir() else [folder / top]):
            if path.is_file() and not path.is_symlink() and path.suffix not in (".pyc", ".so") and path.name != "caffe_pb2.py":
                stat = path.stat()
                digest.update(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return commit, digest.hexdigest()


def copy_source(folder, work):
    """Copy a source checkout without what was built in it."""
    shutil.copytree(folder, work, symlinks=True, ignore=shutil.ignore_patterns(*PASSED_OVER))


def given_path(text):
    """A folder as a person names it, absolute; None of ''."""
    return Path(text).expanduser().absolute() if text else None
