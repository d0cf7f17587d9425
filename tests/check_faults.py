"""Faults while the commands work: killed at any moment, a full disk, a disk that fails. `make test-faults`.

Each is followed by the same command; what is there then is what an undisturbed run leaves, file by file. A count of what
was tried is written to runs/faults.json.
"""

import contextlib
import gzip
import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import miniature
import pytest
from conftest import ROOT, draw_images, write_solver
from conftest import build_set as build_small_set

sys.path.insert(0, str(Path(__file__).parent / "faults"))
from injector import Job, assert_same, checkout, compile_faults

SEED = int(os.environ.get("FAULTS_SEED", "1"))
CHAINS = 12  # of kills at random moments, for each job
ENVIRONMENT_KILLS = 5  # a build takes minutes
SAMPLED = 25  # reads and writes that fail, of each job's thousands

# Own images: LMDBs, mean, plan, training with snapshots, model folder, extraction, clustering, report; then the index.
OWN = """
make -s -o env train DATA={images} NAME=own ITERS=150 SIZE=32
.venv/bin/python tools/search.py index {images} --model runs/own/lifted_64_m64/seed1
"""
# An archive of the paper: LMDBs, mean, both plans, the authors' layout; affinity propagation, ONNX, figures and tables.
PAPER = """
make -s -o env data-cub ARCHIVE={archive} COUNTS=any BATCH=16 LAYOUT=paired
.venv/bin/python data_prep/batch_plan.py --set data/cub --kind triplets --batch 15
.venv/bin/python tools/extract.py --set data/cub --pixels 8 --out runs/cub/a_64/seed1/features.npz
.venv/bin/python tools/evaluate.py --features runs/cub/a_64/seed1/features.npz --out runs/cub/a_64/seed1/metrics.json
.venv/bin/python tools/figures.py --set data/cub --features runs/cub/a_64/seed1/features.npz --out runs/cub/retrieval.png
.venv/bin/python tools/compare.py --runs runs/cub --published cub --out runs/cub/report.md
.venv/bin/python tools/export_onnx.py --net {model}/deploy.prototxt --weights {model}/model.caffemodel --out runs/cub/model.onnx
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return compile_faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def jobs(library, tmp_path_factory):
    """{name: (job, what it leaves undisturbed, the seconds that it took, its home)}"""
    home = tmp_path_factory.mktemp("undisturbed")
    images = draw_images(home / "images", 24, 5, side=32, noise=60)
    scripts = {"own": OWN.format(images=images)}
    found = {"own": undisturbed(Job(library, scripts["own"]), home / "own")}
    model = home / "own/runs/own/lifted_64_m64/seed1"
    scripts["paper"] = PAPER.format(archive=miniature.cub(home), model=model)
    found["paper"] = undisturbed(Job(library, scripts["paper"]), home / "paper")
    return found


def undisturbed(job, home):
    began = os.times().elapsed
    job.finish(checkout(home))
    return job, job.result(home), os.times().elapsed - began


def side_by_side(trial, items):
    """What `trial` returns for each item; as many at a time as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(trial, items))


def tried(name, count):
    """Note for README's table how often a fault was tried."""
    path = ROOT / "runs/faults.json"
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, name: count}, indent=2) + "\n")


@pytest.mark.parametrize("name", ["own", "paper"])
def test_killed_before_every_rename(name, jobs, tmp_path):
    job, expected, _ = jobs[name]
    targets = job.events(checkout(tmp_path / "count"), "kill-at-rename")

    def trial(number):
        home = checkout(tmp_path / str(number))
        status, said = job.run(home, kind="kill-at-rename", at=number)
        assert status == -signal.SIGKILL, (targets[number - 1], said[-2000:])
        job.finish(home)
        assert_same(job.result(home), expected)
        shutil.rmtree(home)

    side_by_side(trial, range(1, len(targets) + 1))
    tried(f"{name}: killed before a rename", len(targets))


@pytest.mark.parametrize("name", ["own", "paper"])
def test_killed_at_random_moments(name, jobs, tmp_path):
    job, expected, length = jobs[name]

    def trial(chain):
        home = checkout(tmp_path / str(chain))
        kills = job.kill_at_random(home, length, SEED * 1000 + chain)
        assert_same(job.result(home), expected)
        shutil.rmtree(home)
        return kills

    kills = sum(side_by_side(trial, range(CHAINS)))
    assert kills >= CHAINS
    tried(f"{name}: killed at a random moment", kills)


@pytest.mark.parametrize("name", ["own", "paper"])
@pytest.mark.parametrize("kind", ["fail-write", "fail-read"])
def test_a_disk_that_fails(kind, name, jobs, tmp_path):
    """A write that finds no room, and all after it; a read that fails once. A message, no traceback."""
    job, expected, _ = jobs[name]
    calls = job.events(checkout(tmp_path / "count"), kind)
    numbers = random.Random(SEED).sample(range(1, len(calls) + 1), min(SAMPLED, len(calls)))

    def trial(number):
        home = checkout(tmp_path / str(number))
        status, said = job.run(home, kind=kind, at=number)
        assert "Traceback" not in said, (calls[number - 1], said[-3000:])
        # Caffe reads again what was checked before, and aborts where that fails; it names the file.
        assert said.count("*** Check failure") == said.count("Failed to parse"), (calls[number - 1], said[-3000:])
        assert status >= 0, (calls[number - 1], said[-3000:])
        assert status or kind == "fail-read", (calls[number - 1], said[-3000:])  # a read may be one that is tried again
        job.finish(home)
        assert_same(job.result(home), expected)
        shutil.rmtree(home)

    side_by_side(trial, sorted(numbers))
    tried(f"{name}: {kind}", len(numbers))


@pytest.fixture
def mounted(tmp_path):
    """A function that gives a checkout on a file system of its own, mounted with some options, or mounts it with others."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    home = tmp_path / "home"

    def mount(options):
        if home.exists():
            subprocess.run(["mount", "-o", f"remount,{options}", home], check=True)
            return home
        home.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", home], check=True)
        return checkout(home)

    yield mount
    subprocess.run(["umount", home], check=True)


@pytest.mark.parametrize("kilobytes", [64, 256, 512, 1024, 1536, 2048, 2560, 3072, 4096, 5120])
def test_a_disk_too_small(kilobytes, jobs, mounted):
    """Stopped with a status of its own and in words, at whatever stage; then there is room."""
    job, expected, _ = jobs["own"]
    status, said = job.run(mounted(f"size={kilobytes}k"))
    assert status > 0 and "Traceback" not in said and "Check failure" not in said, said[-3000:]
    assert "Error 74" in said and ("bytes are needed" in said or "make room" in said), said[-3000:]
    home = mounted("size=1g")
    job.finish(home)
    assert_same(job.result(home), expected)
    tried(f"own: a disk of {kilobytes} kB", 1)


def test_a_folder_that_cannot_be_written(jobs, mounted):
    job, expected, _ = jobs["own"]
    mounted("rw")
    status, said = job.run(mounted("ro"))
    assert status > 0 and "Traceback" not in said and "its disk is read-only" in said, said[-3000:]
    home = mounted("rw")
    job.finish(home)
    status, said = job.run(mounted("ro"))
    assert "Traceback" not in said, said[-3000:]
    assert_same(job.result(home), expected)


def test_a_training_with_dropout_killed_at_random_moments(library, tmp_path):
    """Snapshots every 7 iterations, kills in between and while they are written; weights and solver state equal to the bit."""
    build_small_set(draw_images(tmp_path / "images", 12, 5), tmp_path / "set")
    solver = write_solver(tmp_path, tmp_path / "set", dropout=0.3, iterations=1500, snapshot=7)
    script = f"{ROOT}/.venv/bin/python {ROOT}/tools/train.py --solver {solver} --run runs/it --seed 3"
    job = Job(library, script, folders=("runs",))
    job, expected, length = undisturbed(job, tmp_path / "undisturbed")

    def trial(chain):
        home = checkout(tmp_path / str(chain))
        kills = job.kill_at_random(home, length, SEED * 2000 + chain)
        assert_same(job.result(home), expected)
        return kills

    kills = sum(side_by_side(trial, range(CHAINS)))
    assert kills >= CHAINS
    tried("a training with dropout: killed at a random moment", kills)


def test_an_archive_of_a_million_members(tmp_path):
    """Read member by member: what it takes in memory does not grow with their number."""
    header = tarfile.TarInfo("CUB_200_2011/images/x.txt").tobuf()
    with gzip.open(tmp_path / "CUB_200_2011.tgz", "wb", compresslevel=1) as stream:
        for _ in range(1000):
            stream.write(header * 1000)
        stream.write(bytes(1024))
    command = [ROOT / ".venv/bin/python", ROOT / "data_prep/paper_sets.py", "--set", "cub", "--out", tmp_path / "cub", "--archive",
               tmp_path / "CUB_200_2011.tgz"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1 and "Traceback" not in said and "CUB_200_2011.tgz" in said, said[-2000:]
    assert usage.ru_maxrss < 300_000, usage.ru_maxrss  # kB


CONTENT = random.Random(0).randbytes(3_000_000)


class SlowServer(http.server.BaseHTTPRequestHandler):
    """CONTENT in small pieces, from the byte that is asked for."""

    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for place in range(start, len(CONTENT), 30_000):
                self.wfile.write(CONTENT[place : place + 30_000])
                time.sleep(0.02)

    def log_message(self, *_):
        pass


def test_a_download_killed_at_random_moments(library, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    wanted = f"'x.tgz', ['http://127.0.0.1:{server.server_port}/x'], {len(CONTENT)}, 'md5:{hashlib.md5(CONTENT).hexdigest()}'"
    script = f"""exec {ROOT}/.venv/bin/python -c "
from pathlib import Path
from data_prep.download import Download, fetch
fetch(Download({wanted}), Path('data'))
" """
    job, expected, length = undisturbed(Job(library, script, folders=("data",)), tmp_path / "undisturbed")
    assert expected == {"data/x.tgz": CONTENT}

    def trial(chain):
        home = checkout(tmp_path / str(chain))
        kills = job.kill_at_random(home, length, SEED * 3000 + chain)
        assert_same(job.result(home), expected)
        return kills

    kills = sum(side_by_side(trial, range(CHAINS)))
    server.shutdown()
    assert kills >= CHAINS
    tried("a download: killed at a random moment", kills)


def test_the_environment_killed_at_random_moments(library, tmp_path):
    """`make env` from nothing, in one place twice: libraries know where they lie. What pip and the compiler said may differ."""
    home = tmp_path / "home"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=True).stdout.split()
    job = Job(library, "make env", folders=(".venv", ".caffe"))
    results, length = [], 0
    for kills in (0, ENVIRONMENT_KILLS):
        for name in tracked:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, home / name)
        moments = random.Random(SEED)
        for _ in range(kills):
            process = job.start(home)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=moments.uniform(0, length))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        began = time.monotonic()
        job.finish(home)
        length = time.monotonic() - began
        results.append({name: content for name, content in job.result(home).items()
                        if not name.endswith((".pyc", ".log")) and "/downloads/" not in name})  # fmt: skip
        subprocess.run([home / ".venv/bin/python", home / "tools/check.py"], cwd=home, check=True)
        shutil.rmtree(home)
    assert_same(results[1], results[0])
    tried("make env: killed at a random moment", ENVIRONMENT_KILLS)
