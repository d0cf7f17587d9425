"""An hour of training on the demo's set, killed every few minutes, beside the same training undisturbed. `make soak`.

Both are looked at every few seconds. Threads and open files must not grow, nor the memory of the undisturbed one, and at
the last snapshot that both have the weights and the solver's state must be equal to the bit. Prints what was seen, writes it to
runs/soak/soak.json, and ends with 1 where it is not so.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import lmdb

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "runs/soak"
DATA = ROOT / "data/demo"
SETTLED = 60  # seconds after which a training has taken what it needs
GROWTH = 0.02  # share by which the last quarter of a life may have more than the first


class Training:
    """A training that is started, looked at, and stopped."""

    def __init__(self, name):
        self.run, self.lives, self.process = HOME / name, [], None

    def start(self):
        command = [sys.executable, "tools/train.py", "--solver", "prototxt/demo/lifted_64/solver.prototxt", "--set", "data/demo",
                   "--run", self.run, "--iterations", "1000000", "--save-minutes", "0.5"]  # fmt: skip
        with open(f"{self.run}.log", "ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                                            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})  # fmt: skip
        self.began = time.monotonic()
        self.lives.append([])

    def look(self):
        """Note (seconds, bytes of memory that are no file's, threads, open files)."""
        home = Path("/proc", str(self.process.pid))
        status = dict(line.split(":\t", 1) for line in (home / "status").read_text().splitlines() if ":\t" in line)
        self.lives[-1].append((time.monotonic() - self.began, int(status["RssAnon"].split()[0]) << 10, int(status["Threads"]),
                               len(list((home / "fd").iterdir()))))  # fmt: skip

    def stop(self, number):
        self.process.send_signal(number)
        return self.process.wait()

    def snapshots(self):
        """The iterations of the solver's own interval at which there is a snapshot."""
        return {int(path.stem.rsplit("_", 1)[1]) for path in self.run.glob("snapshot_iter_*.solverstate")}

    def seen(self):
        """Of the lives that were long enough: the largest growth from a life's first quarter to its last, by medians."""
        settled = [[look for look in life if look[0] >= SETTLED] for life in self.lives]
        quarters = [(life[: len(life) // 4], life[-(len(life) // 4) :]) for life in settled if len(life) >= 12]
        growth = {}
        for column, name in enumerate(("memory", "threads", "open_files"), 1):
            medians = [[statistics.median(look[column] for look in quarter) for quarter in pair] for pair in quarters]
            growth[name] = round(max((last / first - 1 for first, last in medians), default=0), 4)
        longest = max(life[-1][0] for life in self.lives if life) / 60
        largest = max(look[1] for life in self.lives for look in life) / 1e6
        return {
            "lives": len(self.lives),
            "longest_minutes": round(longest, 1),
            "largest_megabytes": round(largest),
            "growth": growth,
        }


def readers(path):
    """How many readers stand in an LMDB's table."""
    with lmdb.open(str(path), readonly=True) as environment:
        listed = environment.readers()
    return 0 if "no active readers" in listed else len(listed.splitlines()) - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--between", type=float, nargs=2, default=(60, 360), metavar=("LEAST", "MOST"), help="seconds to a kill")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.minutes < 3:
        parser.error("--minutes must be 3 at least: growth is looked at after the first")
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    moments = random.Random(arguments.seed)
    killed, spared = Training("killed"), Training("spared")  # names of one length: a state holds its path
    for training in (killed, spared):
        training.start()
    began = time.monotonic()
    kills, next_kill = 0, began + moments.uniform(*arguments.between)
    while time.monotonic() - began < 60 * arguments.minutes:
        time.sleep(5)
        for training in (killed, spared):
            if training.process.poll() is not None:
                print(f"{training.run}.log: the training ended with status {training.process.returncode}")
                return 1
            training.look()
        if time.monotonic() > next_kill:
            killed.stop(signal.SIGKILL)
            killed.start()
            kills, next_kill = kills + 1, time.monotonic() + moments.uniform(*arguments.between)
    for training in (killed, spared):
        training.stop(signal.SIGTERM)
    last = max(killed.snapshots() & spared.snapshots())
    names = [f"snapshot_iter_{last}{suffix}" for suffix in (".caffemodel", ".solverstate")]
    equal = all((killed.run / name).read_bytes().replace(b"/killed/", b"/spared/") == (spared.run / name).read_bytes()
                for name in names)  # fmt: skip
    stale = sum(readers(DATA / f"{part}.lmdb") for part in ("train", "test"))
    seen = {"minutes": arguments.minutes, "kills": kills, "iteration": last, "equal": equal, "lmdb_readers": stale,
            "killed": killed.seen(), "undisturbed": spared.seen()}  # fmt: skip
    (HOME / "soak.json").write_text(json.dumps(seen, indent=2) + "\n")
    print(json.dumps(seen, indent=2))
    # A life that ends after minutes is still growing into its buffers: memory is judged by the one that goes on.
    judged = [*seen["undisturbed"]["growth"].values(), *(seen["killed"]["growth"][name] for name in ("threads", "open_files"))]
    return 0 if equal and last and not stale and max(judged) <= GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
