"""make env, second half: the virtual environment `.venv/` and real BVLC Caffe in `.caffe/`.

Runs under the system's Python with the standard library alone (tools/env.sh has installed the system packages).
Each of the two folders carries a record of what it was made from, written last: a folder without it, or with another
one, is made again from the beginning, so nothing half built is ever taken for built. What is in them finds the rest by
where it lies itself, so a checkout can be moved, and a copy of it runs its own code.

Which Caffe it is, when it is not the one that is fetched and built for this machine's CPU, is remembered: a call that names
none of --pycaffe, --caffe-src, --gpu, --cuda-arch, --cudnn, --march and --plain goes by the last call that did; one that
names any, '' too, forgets the last.

    .venv/                  Python packages of requirements.txt; finds pycaffe, python_layers/ and this checkout
    .caffe/caffe/           bin/caffe, lib/, python/ (pycaffe, and caffe_pb2 alone), caffe.json (where it came from)
    .caffe/choice.json      which Caffe that is
    .caffe/downloads/       the source package, kept
    .caffe/cuda/            a CUDA toolkit from PyPI, where the machine has none; .caffe/cudnn/ likewise
    .caffe/env.sh           source it, and the stock `caffe` binary finds all of the above
"""

import argparse
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # there is no .venv yet that would know this checkout

from data_prep.files import read_record, sha256, written_aside
from tools import cpu, cuda
from tools.caffe_edits import apply_edits, edits_for
from tools.given_caffe import check_source, copy_source, describe_source, find_pycaffe, given_path, identity, link_pycaffe

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

CPU_ONLY = "-DCPU_ONLY=ON"
CMAKE_OPTIONS = (
    CPU_ONLY,
    "-DUSE_OPENCV=OFF",  # our LMDBs hold raw pixels, which Caffe's Data layer reads without it
    "-DUSE_LEVELDB=OFF",
    "-DUSE_LMDB=ON",
    "-DBLAS=Open",
    "-Dpython_version=3",
    "-DBUILD_docs=OFF",
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_CXX_STANDARD=14",
)


# For the CPU that it runs on. None of it changes a result: no product and sum are fused into one operation, and only
# errno and the flags of floating-point exceptions, which Caffe does not read, are left out.
TUNED = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")


class Failure(Exception):
    """What went wrong, in words for the person at the keyboard."""


@dataclass(frozen=True)
class Choice:
    """Which Caffe: a built pycaffe; or a build, of a source checkout or the package that is fetched, with CUDA or without."""

    pycaffe: str = ""
    caffe_src: str = ""
    gpu: bool = False
    cuda_arch: str = ""
    cudnn: bool = False
    march: str = ""  # the CPU that it is compiled for, in the compiler's words; "" is this machine's
    plain: bool = False  # the compiler's defaults, and no edit that is only faster


def say(text):
    print(f"make env: {text}", flush=True)


def run(command, log, **kwargs):
    """Run `command`, its output appended to the file `log`; on failure show the log's end."""
    with open(log, "ab") as out:
        out.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        out.flush()
        process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it ends with all that it started, such as compilers
            **kwargs,
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if code:
        tail = "\n".join(line[:200] for line in log.read_text(errors="replace").splitlines()[-15:])
        raise Failure(f"{Path(command[0]).name} failed (status {code}):\n{tail}\n\nThe whole log: {log}")


# --- the virtual environment ---------------------------------------------------------------------------------------


def why_again(folder, found, wanted):
    """In words, why `folder`, whose record is `found`, is made again; "" where it is made for the first time."""
    if not folder.exists():
        return ""
    changed = [name for name in wanted if found.get(name) != wanted[name]]
    return f" again ({', '.join(changed)} changed)" if found else " again (it was not finished)"


def make_venv():
    """Create .venv with the packages of requirements.txt; return the path of its Python."""
    python = VENV / "bin" / "python"
    packages = {"requirements": sha256(REQUIREMENTS), "python": sys.version}
    wanted = {**packages, "checkout": str(ROOT), "layout": 2}
    record = VENV / "made_from.json"
    found = read_record(record)
    if found == wanted and python.exists():
        return python
    log = CAFFE_HOME / "venv.log"
    log.unlink(missing_ok=True)
    if python.exists() and packages.items() <= found.items():
        say(f"writing the scripts of .venv again: they were for {found['checkout']}")
        run([sys.executable, "-m", "venv", "--without-pip", VENV], log)
    else:
        say(f"making .venv{why_again(VENV, found, packages)}: the packages of requirements.txt, about 30 s")
        shutil.rmtree(VENV, ignore_errors=True)
        run([sys.executable, "-m", "venv", VENV], log)
        run([python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "-r", REQUIREMENTS], log)
        run([python, "-m", "pip", "check", "--disable-pip-version-check"], log)
    make_movable(python)
    with written_aside(record) as aside:
        aside.write_text(json.dumps(wanted, indent=2))
    return python


# How a file that bash or zsh is sourcing knows its place, whatever was written into it.
HERE = '[ -z "${BASH_SOURCE:-${ZSH_VERSION:-}}" ] || %s=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE:-$0}")/.." && pwd)'
# The first lines of a script, with the path of its Python; and others, with which a shell starts the Python that lies beside
# the script, and which are a string to that.
FIRST_LINES = re.compile(rb"#!(/bin/sh\n'''exec' )?[^\n]*/\.venv/bin/python[^\n]*\n(' '''\n)?")
MOVABLE = b"""#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")/python" "$0" "$@"
' '''
"""


def make_movable(python):
    """Have the virtual environment, and through it this checkout, found wherever the two are moved or copied together."""
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.check_output(ask, text=True).strip())
    folders = (ROOT, ROOT / "python_layers", CAFFE / "python")
    (site / "checkout.pth").write_text("".join(f"{os.path.relpath(folder, site)}\n" for folder in folders))
    for script in python.parent.iterdir():
        text = script.read_bytes()
        if found := FIRST_LINES.match(text):
            script.write_bytes(MOVABLE + text[found.end() :])
    activate = python.parent / "activate"
    export = "\nexport VIRTUAL_ENV\n"
    activate.write_text(activate.read_text().replace(export, f"\n{HERE % 'VIRTUAL_ENV'}{export}"))


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


def last_choice():
    """The Choice that an earlier call remembered; what another version of this project wrote besides is passed over."""
    found = read_record(CAFFE_HOME / "choice.json")
    return Choice(**{field.name: found[field.name] for field in fields(Choice) if field.name in found})


def choose(given):
    """The Choice that was `given` ({option: text, None where it was not named}), or the last one that was."""
    if all(text is None for text in given.values()):
        return last_choice()
    given = {name: (text or "").strip() for name, text in given.items()}
    for name in ("gpu", "cudnn", "plain"):
        if given[name] not in ("", "0", "1"):
            meaning = {"gpu": "1 builds with CUDA; the number of a GPU is for the commands that train and extract",
                       "cudnn": "1 builds with it", "plain": "1 builds without what is only faster"}[name]  # fmt: skip
            raise Failure(f"{name.upper()}={given[name]}: {meaning}")
        given[name] = given[name] == "1"
    if given["march"] == "native":
        given["march"] = ""
    given["pycaffe"], given["caffe_src"] = (str(given_path(given[name]) or "") for name in ("pycaffe", "caffe_src"))
    choice = Choice(**given)
    if choice.pycaffe and choice != Choice(pycaffe=choice.pycaffe):
        raise Failure("PYCAFFE= names a Caffe that is built; the other variables are for one that is built here")
    if (choice.cuda_arch or choice.cudnn) and not choice.gpu:
        raise Failure("CUDA_ARCH= and CUDNN= are for a build with CUDA: make env GPU=1 CUDA_ARCH=90")
    if choice.march and choice.plain:
        raise Failure("MARCH= and PLAIN=1: a plain build is for any CPU of this kind; one of the two")
    return replace(choice, cuda_arch=",".join(cuda.architectures(choice.cuda_arch))) if choice.gpu else choice


def from_pypi(python, folder, packages):
    """Install PyPI's packages of CUDA into .caffe/<folder>, unless they are there; returns that folder."""
    home, record = CAFFE_HOME / folder, CAFFE_HOME / folder / "made_from.json"
    if read_record(record) != {"packages": list(packages)}:
        say(f"installing {len(packages)} packages of CUDA into {home.relative_to(ROOT)} (about a gigabyte)")
        log = CAFFE_HOME / f"{folder}.log"
        log.unlink(missing_ok=True)
        with written_aside(home) as aside:
            run([python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--target", aside, *packages], log)
            for root in sorted((aside / "nvidia").iterdir()):
                cuda.complete_links(root)
            (aside / record.name).write_text(json.dumps({"packages": list(packages)}))
    return home


def find_cuda(python, cudnn):
    """(Toolkit, folder of cuDNN or None): the machine's own where they are whole, or PyPI's."""
    toolkit, problems = cuda.on_this_machine()
    if toolkit is None:
        home = CAFFE_HOME / "cuda"
        if problems and not home.exists():
            say(f"passing over {'; '.join(problems)}")
        toolkit, problem = cuda.look_at(from_pypi(python, "cuda", cuda.FROM_PYPI) / "nvidia" / "cu13")
        if toolkit is None:
            raise Failure(f"{home}: {problem}; remove it, and call the same command again")
    if not cudnn:
        return toolkit, None
    return toolkit, cuda.cudnn_of(toolkit) or from_pypi(python, "cudnn", [cuda.CUDNN[toolkit.major]]) / "nvidia" / "cudnn"


def compiled_for(choice):
    """(the compiler's flags, the instruction sets that it may use with them) of a build."""
    flags = () if choice.plain else (f"-march={choice.march or 'native'}", *TUNED)
    compiler = os.environ.get("CXX", "c++")
    try:
        return flags, cpu.allowed(compiler, flags)
    except ValueError as error:
        raise Failure(f"MARCH={choice.march or 'native'}: {compiler} does not know it: {error}") from None


def caffe_record(python):
    """What .caffe/caffe is made from when it is the one that is fetched, and the folder of the numpy headers."""
    numpy_version, numpy_include = subprocess.check_output(
        [python, "-c", "import numpy; print(numpy.__version__); print(numpy.get_include())"], text=True).splitlines()  # fmt: skip
    record = {
        "origin": ORIGIN,
        "files": FILES,
        "numpy": numpy_version,
        "python": sys.version,
        "layout": 2,
    }
    return record, numpy_include


def check_import(python, caffe, log):
    """Import pycaffe from the folder `caffe`, wherever its libraries expect to be."""
    code = "import caffe_pb2, caffe; assert 'Python' in caffe.layer_type_list(); assert caffe.proto.caffe_pb2 is caffe_pb2"
    paths = {"PYTHONPATH": f"{caffe}/python", "LD_LIBRARY_PATH": f"{caffe}/lib"}
    run([python, "-c", code], log, env={**os.environ, **paths})


def check_libraries(libraries):
    """Raise Failure when a library that one of `libraries` is linked with is not found where it says."""
    for library in libraries:
        said = subprocess.run(["ldd", library], text=True, capture_output=True).stdout
        if lost := [line.strip() for line in said.splitlines() if "not found" in line and "libcaffe" not in line]:
            raise Failure(f"{library.name}: {'; '.join(lost)}")


def replace_caffe(wanted, aside):
    """Put the finished folder `aside` in the place of .caffe/caffe, with its record."""
    (aside / "caffe.json").write_text(json.dumps(wanted, indent=2))
    os.sync()
    shutil.rmtree(CAFFE, ignore_errors=True)
    os.rename(aside, CAFFE)


def use_pycaffe(python, folder):
    """Make .caffe/caffe of links to a pycaffe that is built."""
    package = find_pycaffe(Path(folder))
    wanted = {
        "origin": f"pycaffe of {package}",
        "built": identity(package),
        "python": sys.version,
        "layout": 2,
    }
    if read_record(CAFFE / "caffe.json") == wanted:
        return
    aside = CAFFE_HOME / "caffe.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    link_pycaffe(package, aside)
    code = "from tools.check import problem_with_caffe as problem; print(problem() or '')"
    done = subprocess.run([python, "-c", code], env={**os.environ, "PYTHONPATH": f"{aside}/python:{ROOT}"}, text=True,
                          capture_output=True)  # fmt: skip
    problem = done.stdout.strip()
    if done.returncode:
        problem = f"its import ended Python (status {done.returncode}): {done.stderr.strip()[-500:]}"
    if problem:
        raise Failure(f"PYCAFFE={folder}: {problem}\n`make env PYCAFFE=` builds one here.")
    log = CAFFE_HOME / "pycaffe.log"
    log.unlink(missing_ok=True)
    check_import(python, aside, log)
    replace_caffe(wanted, aside)


def make_caffe(python, choice, mirror):
    """Build Caffe into .caffe/caffe; a folder made from the same files and options is kept."""
    wanted, numpy_include = caffe_record(python)
    flags, instructions = compiled_for(choice)
    options, toolkit = list(CMAKE_OPTIONS), None
    if choice.caffe_src:
        given = Path(choice.caffe_src)
        check_source(given)
        commit, files = describe_source(given)
        wanted |= {"origin": f"Caffe checkout {given} ({commit})", "files": files}
        options.append("-DCMAKE_POLICY_VERSION_MINIMUM=3.5")  # newer CMakes refuse what BVLC's own asks for
    if choice.gpu:
        toolkit, cudnn = find_cuda(python, choice.cudnn)
        archs = choice.cuda_arch.split(",")
        options = [option for option in options if option != CPU_ONLY] + cuda.cmake_options(toolkit, archs, cudnn)
        wanted["origin"] += f", CUDA {toolkit.version} for {choice.cuda_arch}{', cuDNN' if cudnn else ''}"
        if any(CAFFE_HOME in folder.parents for folder in (toolkit.root, cudnn) if folder):
            wanted["checkout"] = str(ROOT)  # it finds the libraries of CUDA by absolute path
    kinds = {"checkout": choice.caffe_src, "cuda": choice.gpu, "cudnn": choice.cudnn, "tuned": not choice.plain}
    edits = edits_for(*(kind for kind, is_it in kinds.items() if is_it))
    wanted |= {"cmake": options, "flags": list(flags), "edits": {edit.name: asdict(edit) for edit in edits},
               "cuda": toolkit.version if toolkit else None}  # fmt: skip
    record = read_record(CAFFE / "caffe.json")
    needed = record.pop("instructions", [])
    if record == wanted:
        if not (missing := cpu.lacking(needed)):
            return
        again = f" again (it is for a CPU with {', '.join(missing)}, which this one has not)"
    else:
        again = why_again(CAFFE, record, wanted)
    wanted["instructions"] = instructions
    work, aside = CAFFE_HOME / "work", CAFFE_HOME / "caffe.tmp"
    for folder in (work, aside):
        shutil.rmtree(folder, ignore_errors=True)
    log = CAFFE_HOME / "build.log"
    log.unlink(missing_ok=True)
    source, build = work / "source", work / "build"
    if choice.caffe_src:
        copy_source(given, source)
    else:
        downloads = fetch_source(mirror)
        work.mkdir()
        dsc = next(downloads / name for name in FILES if name.endswith(".dsc"))
        run(["dpkg-source", "--no-check", "-x", dsc, source], log)
    try:
        apply_edits(source, edits, mended_allowed=bool(choice.caffe_src))
    except ValueError as error:
        advice = "\nWithout the edits that are only faster: make env PLAIN=1" if choice.caffe_src and not choice.plain else ""
        raise Failure(f"{error}{advice}") from None

    jobs = os.cpu_count() or 1
    minutes = "10" if choice.gpu else "2"
    say(f"building Caffe{again} with {jobs} jobs (about {minutes} minutes on two cores; log: {log.relative_to(ROOT)})")
    run(["cmake", "-S", source, "-B", build, *options, f"-DCMAKE_INSTALL_PREFIX={CAFFE}",
         "-DCMAKE_INSTALL_LIBDIR=lib", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",  # used from where they are copied to
         f"-DPYTHON_EXECUTABLE={python}", f"-DNUMPY_INCLUDE_DIR={numpy_include}",
         # Debian's own numpy headers, where installed, lie in Python's include folder: ours must come first.
         f"-DCMAKE_CXX_FLAGS={' '.join((f'-I{numpy_include}', *flags))}"], log)  # fmt: skip
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
    check_libraries([aside / "lib" / "libcaffe.so", aside / "python" / "caffe" / "_caffe.so", aside / "bin" / "caffe"])
    check_import(python, aside, log)
    replace_caffe(wanted, aside)
    shutil.rmtree(work)


ENV_SH = """\
# Source this (`source .caffe/env.sh`): the stock `caffe` binary then finds this project's Python, pycaffe and
# python_layers/. Made by `make env`.
checkout={root}
{here}
export PATH="$checkout/.caffe/caffe/bin:$checkout/.venv/bin:$PATH"
export PYTHONPATH="$checkout/python_layers:$checkout/.caffe/caffe/python${{PYTHONPATH:+:$PYTHONPATH}}"
"$checkout/.venv/bin/python" "$checkout/tools/cpu.py" # says so where this CPU is not one that Caffe was built for
# Better BLAS kernels, where OpenBLAS does not know this CPU (tools/blas.py).
if [ -z "${{OPENBLAS_CORETYPE:-}}" ]; then
  OPENBLAS_CORETYPE=$("$checkout/.venv/bin/python" "$checkout/tools/blas.py")
  if [ -n "$OPENBLAS_CORETYPE" ]; then export OPENBLAS_CORETYPE; else unset OPENBLAS_CORETYPE; fi
fi
unset checkout
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mirror", default="", help="address of a Debian archive to fetch the Caffe source from")
    parser.add_argument("--quiet", action="store_true", help="say nothing when everything is there already")
    parser.add_argument("--pycaffe", metavar="DIR", help="use the pycaffe that is built there")
    parser.add_argument("--caffe-src", metavar="DIR", help="build this checkout of BVLC's Caffe, on a copy")
    parser.add_argument("--gpu", metavar="1", help="build with CUDA")
    parser.add_argument("--cuda-arch", metavar="90", help="for these GPUs; commas between (default those that are here)")
    parser.add_argument("--cudnn", metavar="1", help="with cuDNN too")
    parser.add_argument("--march", metavar="native", help="for this CPU, as the compiler calls it (default native, this machine's)")
    parser.add_argument("--plain", metavar="1", help="with the compiler's defaults, and without the edits that are only faster")
    arguments = parser.parse_args()
    CAFFE_HOME.mkdir(exist_ok=True)
    with open(CAFFE_HOME / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another `make env` is at work in this checkout; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            choice = choose({field.name: getattr(arguments, field.name) for field in fields(Choice)})
            if sys.version_info < (3, 11) or (sys.version_info[:2] != (3, 11) and not (choice.pycaffe or choice.caffe_src)):
                raise Failure(f"the system's Python is {sys.version.split()[0]}; this was made for Debian 12's Python 3.11")
            python = make_venv()
            if choice.pycaffe:
                use_pycaffe(python, choice.pycaffe)
            else:
                make_caffe(python, choice, arguments.mirror)
        except ValueError as error:
            raise Failure(str(error)) from None
        if last_choice() != choice:
            with written_aside(CAFFE_HOME / "choice.json") as aside:
                aside.write_text(json.dumps(asdict(choice), indent=2))
        env_sh = ENV_SH.format(root=shlex.quote(str(ROOT)), here=HERE % "checkout")
        if not (CAFFE / "bin" / "caffe").exists():
            env_sh += 'echo "There is no stock caffe binary: the pycaffe that was named to make env came without one." >&2\n'
        if not (CAFFE_HOME / "env.sh").exists() or (CAFFE_HOME / "env.sh").read_text() != env_sh:
            (CAFFE_HOME / "env.sh").write_text(env_sh)
    if not arguments.quiet:
        origin = "" if choice == Choice() else f" ({read_record(CAFFE / 'caffe.json')['origin']})"
        say(f"ready: .venv/bin/python can `import caffe`{origin}; for the stock binary: source .caffe/env.sh")


def interrupt(number, frame):
    """Handler of a signal that ends this: as Ctrl+C does, in words, and with all that was started."""
    signal.signal(number, signal.SIG_IGN)  # make has it too, and sends it once more
    raise KeyboardInterrupt


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(number, interrupt)
    try:
        main()
    except (Failure, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"make env: {error}")
    except KeyboardInterrupt:
        print("\nmake env: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
