"""make env, second half: the virtual environment `.venv/` and real BVLC Caffe in `.caffe/`.

Runs under the system's Python with the standard library alone (tools/env.sh has installed the system packages).
Each of the two folders carries a record of what it was made from, written last: a folder without it, or with another
one, is made again from the beginning, so nothing half built is ever taken for built.

    .venv/                  Python packages of requirements.txt; finds pycaffe, python_layers/ and this checkout
    .caffe/caffe/           bin/caffe, lib/, python/ (pycaffe, and caffe_pb2 alone), caffe.json (where it came from)
    .caffe/downloads/       the source package, kept
    .caffe/env.sh           source it, and the stock `caffe` binary finds all of the above
"""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # there is no .venv yet that would know this checkout

from data_prep.files import read_record, sha256, written_aside
from tools.caffe_edits import EDITS, apply_edits

VENV = ROOT / ".venv"
CAFFE_HOME = ROOT / ".caffe"
CAFFE = CAFFE_HOME / "caffe"
REQUIREMENTS = ROOT / "requirements.txt"

# Debian 11's source package: BVLC master at 99bd997 with the distribution's patches. Later releases have none.
SUITE = "bullseye"
VERSION = "1.0.0+git20180821.99bd997-8"
ORIGIN = "BVLC/caffe 99bd997 (2018-08-21), Debian source package caffe " + VERSION
FILES = {
    "caffe_1.0.0+git20180821.99bd997.orig.tar.gz": "e0eb3f06794f7402c77b7dec8e8480273ee1a1bb192e9122b621a69d4147ad0c",
    "caffe_1.0.0+git20180821.99bd997-8.debian.tar.xz": "07cf073227494a6b07234e40cb5df91db566616593eef9baafdc4d06ad159f21",
    "caffe_1.0.0+git20180821.99bd997-8.dsc": "c492f4893fc1ba1fb514b2d9b4763bc78dc93571ea24adc6e604eccbb93cdd64",
}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

CMAKE_OPTIONS = (
    "-DCPU_ONLY=ON",
    "-DUSE_OPENCV=OFF",  # our LMDBs hold raw pixels, which Caffe's Data layer reads without it
    "-DUSE_LEVELDB=OFF",
    "-DUSE_LMDB=ON",
    "-DBLAS=Open",
    "-Dpython_version=3",
    "-DBUILD_docs=OFF",
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_CXX_STANDARD=14",
)


class Failure(Exception):
    """What went wrong, in words for the person at the keyboard."""


def say(text):
    print(f"make env: {text}", flush=True)


def run(command, log, **kwargs):
    """Run `command`, its output appended to the file `log`; on failure show the log's end."""
    with open(log, "ab") as out:
        out.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        out.flush()
        code = subprocess.run(list(map(str, command)), stdout=out, stderr=subprocess.STDOUT, **kwargs).returncode
    if code:
        tail = "\n".join(line[:200] for line in log.read_text(errors="replace").splitlines()[-15:])
        raise Failure(f"{Path(command[0]).name} failed (status {code}):\n{tail}\n\nThe whole log: {log}")


# --- the virtual environment ---------------------------------------------------------------------------------------


def make_venv():
    """Create .venv with the packages of requirements.txt; return the path of its Python."""
    python = VENV / "bin" / "python"
    wanted = {"requirements": sha256(REQUIREMENTS), "python": sys.version, "checkout": str(ROOT), "layout": 1}
    record = VENV / "made_from.json"
    if read_record(record) == wanted and python.exists():
        return python
    say("making .venv (packages of requirements.txt, about 30 s)")
    shutil.rmtree(VENV, ignore_errors=True)
    log = CAFFE_HOME / "venv.log"
    log.unlink(missing_ok=True)
    run([sys.executable, "-m", "venv", VENV], log)
    run([python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "-r", REQUIREMENTS], log)
    run([python, "-m", "pip", "check", "--disable-pip-version-check"], log)
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.check_output(ask, text=True).strip())
    folders = (ROOT, ROOT / "python_layers", CAFFE / "python")
    (site / "checkout.pth").write_text("".join(f"{folder}\n" for folder in folders))
    with written_aside(record) as aside:
        aside.write_text(json.dumps(wanted, indent=2))
    return python


# --- Caffe ---------------------------------------------------------------------------------------------------------


def mirrors():
    """The addresses of the Debian archives that this machine's own apt uses, security archives last."""
    # Without ReleaseInfo a machine whose package lists were never fetched, or were removed, shows its archives too.
    lines = subprocess.check_output(["apt-get", "-o", "APT::Get::IndexTargets::ReleaseInfo=false", "indextargets",
                                     "--format", "$(REPO_URI)"], text=True).split()  # fmt: skip
    return sorted(dict.fromkeys(lines), key=lambda uri: "security" in uri)


def fetch_source(mirror):
    """Put the source package's files into .caffe/downloads, checked; apt's own configuration is neither used nor changed."""
    downloads = CAFFE_HOME / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)

    def wrong():
        return [name for name, digest in FILES.items() if not (downloads / name).is_file() or sha256(downloads / name) != digest]

    if not wrong():
        return downloads
    say("fetching the Caffe source package (8.5 MB)")
    private = CAFFE_HOME / "apt"
    log = CAFFE_HOME / "fetch.log"
    log.unlink(missing_ok=True)
    failure = "apt knows no archive here."
    for uri in [mirror] if mirror else mirrors():
        shutil.rmtree(private, ignore_errors=True)
        for folder in ("lists/partial", "cache/archives/partial"):
            (private / folder).mkdir(parents=True)
        for name in wrong():  # apt goes on with a partial file, and keeps a wrong one
            (downloads / name).unlink(missing_ok=True)
        (private / "sources.list").write_text(f"deb-src [signed-by={KEYRING}] {uri} {SUITE} main\n")
        apt = ["apt-get", "-q", "-o", f"Dir::Etc::sourcelist={private}/sources.list", "-o", "Dir::Etc::sourceparts=-",
               "-o", f"Dir::State::Lists={private}/lists", "-o", f"Dir::Cache={private}/cache",
               "-o", "APT::Sandbox::User=root"]  # fmt: skip
        try:
            run([*apt, "update"], log)
            run([*apt, "source", "--download-only", f"caffe={VERSION}"], log, cwd=downloads)
        except Failure as error:
            failure = error
            continue
        if names := wrong():
            found = "\n".join(f"    {name}: expected {FILES[name]}, found {sha256(downloads / name)}"
                              for name in names if (downloads / name).is_file())  # fmt: skip
            raise Failure(f"the fetched source is not the one this was written for (SHA-256):\n{found}\n"
                          "Name another mirror: make env MIRROR=<address of a Debian archive>")  # fmt: skip
        shutil.rmtree(private, ignore_errors=True)
        return downloads
    raise Failure(f"the Caffe source package could not be fetched from this machine's mirror.\n{failure}\n\n"
                  f"Name a Debian archive that has the suite {SUITE}: make env MIRROR=<address>, or put these files into "
                  f"{downloads}: {', '.join(FILES)}")  # fmt: skip


def caffe_record(python):
    """What .caffe/caffe is made from, and the folder of the numpy headers."""
    numpy_version, numpy_include = subprocess.check_output(
        [python, "-c", "import numpy; print(numpy.__version__); print(numpy.get_include())"], text=True).splitlines()  # fmt: skip
    record = {
        "origin": ORIGIN,
        "files": FILES,
        "edits": {edit.name: [edit.reason, edit.file, edit.old, edit.new] for edit in EDITS},
        "cmake": list(CMAKE_OPTIONS),
        "numpy": numpy_version,
        "python": sys.version,
        "checkout": str(ROOT),  # the libraries find each other by absolute path
        "layout": 1,
    }
    return record, numpy_include


def check_import(python, caffe, log):
    """Import pycaffe from the folder `caffe`, wherever its libraries expect to be."""
    code = "import caffe_pb2, caffe; assert 'Python' in caffe.layer_type_list(); assert caffe.proto.caffe_pb2 is caffe_pb2"
    paths = {"PYTHONPATH": f"{caffe}/python", "LD_LIBRARY_PATH": f"{caffe}/lib"}
    run([python, "-c", code], log, env={**os.environ, **paths})


def make_caffe(python, mirror):
    """Build Caffe into .caffe/caffe; a folder made from the same files and options is kept."""
    wanted, numpy_include = caffe_record(python)
    record = CAFFE / "caffe.json"
    if read_record(record) == wanted:
        return
    shutil.rmtree(CAFFE, ignore_errors=True)
    downloads = fetch_source(mirror)
    work, aside = CAFFE_HOME / "work", CAFFE_HOME / "caffe.tmp"
    for folder in (work, aside):
        shutil.rmtree(folder, ignore_errors=True)
    work.mkdir()
    log = CAFFE_HOME / "build.log"
    log.unlink(missing_ok=True)

    source, build = work / "source", work / "build"
    dsc = next(downloads / name for name in FILES if name.endswith(".dsc"))
    run(["dpkg-source", "--no-check", "-x", dsc, source], log)
    try:
        apply_edits(source)
    except ValueError as error:
        raise Failure(str(error)) from None

    jobs = os.cpu_count() or 1
    say(f"building Caffe with {jobs} jobs (about 2 minutes on two cores; log: {log.relative_to(ROOT)})")
    run(["cmake", "-S", source, "-B", build, *CMAKE_OPTIONS, f"-DCMAKE_INSTALL_PREFIX={CAFFE}",
         "-DCMAKE_INSTALL_LIBDIR=lib", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",  # used from where they are copied to
         f"-DPYTHON_EXECUTABLE={python}", f"-DNUMPY_INCLUDE_DIR={numpy_include}",
         # Debian's own numpy headers, where installed, lie in Python's include folder: ours must come first.
         f"-DCMAKE_CXX_FLAGS=-I{numpy_include}"], log)  # fmt: skip
    run(["cmake", "--build", build, "--target", "caffe", "pycaffe", "caffe.bin", "--", f"-j{jobs}"], log)

    for folder in ("bin", "lib"):
        (aside / folder).mkdir(parents=True)
    shutil.copy2(build / "tools" / "caffe", aside / "bin")
    for library in (build / "lib").glob("libcaffe.so*"):
        shutil.copy2(library, aside / "lib", follow_symlinks=False)
    shutil.copytree(source / "python", aside / "python")  # _caffe.so is a link there, and arrives as a file
    # The message classes must also be had without pycaffe, and protobuf takes one definition of them in a process.
    os.rename(aside / "python" / "caffe" / "proto" / "caffe_pb2.py", aside / "python" / "caffe_pb2.py")
    (aside / "python" / "caffe" / "proto" / "caffe_pb2.py").write_text(
        "import sys\n\nimport caffe_pb2\n\nsys.modules[__name__] = caffe_pb2\n")  # fmt: skip
    check_import(python, aside, log)
    (aside / "caffe.json").write_text(json.dumps(wanted, indent=2))
    os.sync()
    os.rename(aside, CAFFE)
    shutil.rmtree(work)


ENV_SH = """\
# Source this from the checkout (`source .caffe/env.sh`): the stock `caffe` binary then finds this project's Python,
# pycaffe and python_layers/. Made by `make env`.
export PATH="{caffe}/bin:{venv}/bin:$PATH"
export PYTHONPATH="{root}/python_layers:{caffe}/python${{PYTHONPATH:+:$PYTHONPATH}}"
# Better BLAS kernels, where OpenBLAS does not know this CPU (tools/blas.py).
if [ -z "${{OPENBLAS_CORETYPE:-}}" ]; then
  OPENBLAS_CORETYPE=$("{venv}/bin/python" "{root}/tools/blas.py")
  if [ -n "$OPENBLAS_CORETYPE" ]; then export OPENBLAS_CORETYPE; else unset OPENBLAS_CORETYPE; fi
fi
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mirror", default="", help="address of a Debian archive to fetch the Caffe source from")
    parser.add_argument("--quiet", action="store_true", help="say nothing when everything is there already")
    arguments = parser.parse_args()
    if sys.version_info[:2] != (3, 11):
        raise Failure(f"the system's Python is {sys.version.split()[0]}; this was made for Debian 12's Python 3.11")
    CAFFE_HOME.mkdir(exist_ok=True)
    with open(CAFFE_HOME / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another `make env` is at work in this checkout; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        python = make_venv()
        make_caffe(python, arguments.mirror)
        env_sh = ENV_SH.format(caffe=CAFFE, venv=VENV, root=ROOT)
        if not (CAFFE_HOME / "env.sh").exists() or (CAFFE_HOME / "env.sh").read_text() != env_sh:
            (CAFFE_HOME / "env.sh").write_text(env_sh)
    if not arguments.quiet:
        say("ready: .venv/bin/python can `import caffe`; for the stock binary: source .caffe/env.sh")


if __name__ == "__main__":
    try:
        main()
    except (Failure, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"make env: {error}")
    except KeyboardInterrupt:
        sys.exit("\nmake env: interrupted; the same command goes on")
