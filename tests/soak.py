"""An hour of training on the demo's set, killed every few minutes, beside the same training undisturbed. `make soak`.

Both are looked at every few seconds: memory, threads and open files must stay as they were, and the final weights and
solver states must be equal to the bit. Prints what was seen, writes it to runs/soak/soak.json, and ends with 1 where it
is not so.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "runs/soak"
SETTLED = 120  # seconds after which a training has taken what memory it needs
GROWTH = 0.02  # share by which it may be larger after that


class Training:
    """A training that is started, looked at, and killed."""

    def __init__(self, name, iterations):
        self.run, self.iterations, self.lives, self.process = HOME / name, iterations, [], None

    def start(self):
        command = [sys.executable, "tools/train.py", "--solver", "prototxt/demo/lifted_64/solver.prototxt", "--set", "data/demo",
                   "--run", self.run, "--iterations", str(self.iterations), "--save-minutes", "0.5"]  # fmt: skip
        with open(f"{self.run}.log", "ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                                            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})  # fmt: skip
        self.began = time.monotonic()
        self.lives.append([])

    def look(self):
        """Note (seconds, bytes of memory that are no file's, threads, open files); nothing when it has ended."""
        home = Path("/proc", str(self.process.pid))
        try:
            status = dict(line.split(":\t", 1) for line in (home / "status").read_text().splitlines() if ":\t" in line)
            if "RssAnon" in status:
                self.lives[-1].append((round(time.monotonic() - self.began), int(status["RssAnon"].split()[0]) << 10,
                                       int(status["Threads"]), len(list((home / "fd").iterdir()))))  # fmt: skip
        except (FileNotFoundError, ProcessLookupError):
            pass

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def seen(self):
        """Over all its lives, from when they had settled on: the largest growth of memory, threads and files."""
        settled = [[look for look in life if look[0] >= SETTLED] for life in self.lives]
        settled = [life for life in settled if len(life) > 1]
        return {
            "lives": len(self.lives),
            "longest_seconds": max(life[-1][0] for life in self.lives if life),
            "largest_megabytes": round(max(look[1] for life in self.lives for look in life) / 1e6),
            "memory_growth": max((round(max(look[1] for look in life) / life[0][1] - 1, 4) for life in settled), default=None),
            "threads": sorted({look[2] for life in settled for look in life}),
            "open_files": sorted({look[3] for life in settled for look in life}),
        }


def readers(path):
    """How many readers stand in an LMDB's table."""
    with lmdb.open(str(path), readonly=True) as environment:
        listed = environment.readers()
    return 0 if "no active readers" in listed else len(listed.splitlines()) - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=12000, help="about an hour on two cores (default 12000)")
    parser.add_argument("--between", type=float, nargs=2, default=(60, 360), metavar=("LEAST", "MOST"), help="seconds to a kill")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    moments = random.Random(arguments.seed)
    killed, undisturbed = (Training(name, arguments.iterations) for name in ("killed", "spared"))
    began = time.monotonic()
    for training in (killed, undisturbed):
        training.start()
    kills, next_kill = 0, time.monotonic() + moments.uniform(*arguments.between)
    while killed.process.poll() is None or undisturbed.process.poll() is None:
        time.sleep(5)
        for training in (killed, undisturbed):
            if training.process.poll() is None:
                training.look()
        if killed.process.poll() is None and time.monotonic() > next_kill:
            killed.kill()
            killed.start()
            kills, next_kill = kills + 1, time.monotonic() + moments.uniform(*arguments.between)
    last = f"snapshot_iter_{arguments.iterations}.solverstate"
    equal = all((killed.run / name).exists() and (undisturbed.run / name).exists() and
                (killed.run / name).read_bytes().replace(b"/killed/", b"/spared/")
                == (undisturbed.run / name).read_bytes() for name in ("model.caffemodel", last))  # fmt: skip
    seen = {"iterations": arguments.iterations, "minutes": round((time.monotonic() - began) / 60, 1), "kills": kills,
            "equal_weights_and_state": equal, "killed": killed.seen(), "undisturbed": undisturbed.seen(),
            "lmdb_readers": readers(ROOT / "data/demo/train.lmdb")}  # fmt: skip
    (HOME / "soak.json").write_text(json.dumps(seen, indent=2) + "\n")
    print(json.dumps(seen, indent=2))
    flat = all((one["memory_growth"] or 0) <= GROWTH and len(one["threads"]) <= 1 and len(one["open_files"]) <= 1
               for one in (seen["killed"], seen["undisturbed"]))  # fmt: skip
    return 0 if equal and flat else 1


if __name__ == "__main__":
    sys.exit(main())
