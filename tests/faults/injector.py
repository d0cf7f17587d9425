"""Commands that are killed, or that a disk fails: what the tests of `make test-faults` share."""

import csv
import io
import json
import os
import random
import signal
import subprocess
from pathlib import Path

from conftest import ROOT

MOST_KILLS = 12  # of one command, before it is left in peace


def compile_faults(folder):
    """Compile faults.c; returns the library's path."""
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-o", library, source, "-ldl"], check=True)
    return library


def checkout(home):
    """A folder with this checkout's code and environment, and with no data and no runs."""
    home.mkdir(parents=True, exist_ok=True)
    for name in ("Makefile", "prototxt", "python_layers", "tools", "data_prep", ".venv", ".caffe"):
        (home / name).symlink_to(ROOT / name)
    return home


class Job:
    """A shell script that is run in a checkout of its own, with faults or without; and what it leaves there."""

    def __init__(self, library, script, folders=("data", "runs")):
        self.library, self.script, self.folders = library, script, folders

    def start(self, home, **faults):
        """Start it as a group of processes that can be killed at once."""
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        if faults:
            environment |= {"LD_PRELOAD": str(self.library), "FAULT_UNDER": str(home), "FAULT_LOG": f"{home}.events"}
            environment |= {f"FAULT_{name.upper()}": str(value) for name, value in faults.items()}
        with open(f"{home}.log", "ab") as log:
            return subprocess.Popen(["bash", "-ec", self.script], cwd=home, env=environment, stdout=log, stderr=subprocess.STDOUT,
                                    stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip

    def run(self, home, **faults):
        """Run it to its end; returns its status and what it said."""
        before = Path(f"{home}.log").stat().st_size if Path(f"{home}.log").exists() else 0
        status = self.start(home, **faults).wait(timeout=900)
        return status, Path(f"{home}.log").read_bytes()[before:].decode(errors="replace")

    def finish(self, home):
        """Run it to a good end."""
        status, said = self.run(home)
        assert status == 0, said[-3000:]

    def kill_at_random(self, home, length, seed):
        """Kill it at moments that are drawn up to `length` seconds, until it ends; returns how many kills that took."""
        moments = random.Random(seed)
        for kills in range(MOST_KILLS):
            process = self.start(home)
            try:
                status = process.wait(timeout=moments.uniform(0, length))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                continue
            assert status == 0, Path(f"{home}.log").read_bytes()[-3000:].decode(errors="replace")
            return kills
        self.finish(home)
        return MOST_KILLS

    def events(self, home, kind):
        """The paths of the events of one kind in a run without faults, in their order."""
        status, said = self.run(home, kind=kind, at=0)
        assert status == 0, said[-3000:]
        return Path(f"{home}.events").read_text(errors="replace").splitlines()

    def result(self, home):
        """{path: content} of all that it made; what a run may well do otherwise than another is left out."""
        found = {}
        for folder in self.folders:
            for path in sorted((home / folder).rglob("*")):
                name = str(path.relative_to(home))
                if path.is_file() and path.name not in (".lock", "lock.mdb", "write.lock"):
                    found[name] = _comparable(path, home)
        assert found
        return found


def _comparable(path, home):
    """A file's content without the seconds that something took, and without the checkout's own address."""
    content = path.read_bytes().replace(str(home).encode(), b"HOME")
    if path.name == "log.csv":
        rows = list(csv.DictReader(io.StringIO(content.decode())))
        return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]
    if path.name == "index.json":  # its checksum is of the address too
        return {name: value for name, value in json.loads(content).items() if name != "sha256"}
    return content


def assert_same(found, expected):
    """The same files with the same content; says which differ."""
    assert not set(found) ^ set(expected), sorted(set(found) ^ set(expected))
    differing = [name for name in expected if found[name] != expected[name]]
    assert not differing, differing
