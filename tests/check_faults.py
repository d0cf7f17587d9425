"""Faults while the commands work: killed at any moment, a full disk, a disk that fails. `make test-faults`.

Each is followed by the same command; what is there then is what an undisturbed run leaves, file by file. A count of what
was tried is written to runs/faults.json.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import miniature
import pytest
from conftest import ROOT, draw_images, write_solver
from conftest import build_set as build_small_set

sys.path.insert(0, str(Path(__file__).parent / "faults"))
from injector import Job, assert_same, checkout, compile_faults

SEED = int(os.environ.get("FAULTS_SEED", "1"))
CHAINS = 12  # of kills at random moments, for each job
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
    for number, target in enumerate(targets, 1):
        home = checkout(tmp_path / str(number))
        status, said = job.run(home, kind="kill-at-rename", at=number)
        assert status == -signal.SIGKILL, (target, said[-2000:])
        job.finish(home)
        assert_same(job.result(home), expected)
        subprocess.run(["rm", "-r", home], check=True)
    tried(f"{name}: killed before a rename", len(targets))


@pytest.mark.parametrize("name", ["own", "paper"])
def test_killed_at_random_moments(name, jobs, tmp_path):
    job, expected, length = jobs[name]
    kills = 0
    for chain in range(CHAINS):
        home = checkout(tmp_path / str(chain))
        kills += job.kill_at_random(home, length, SEED * 1000 + chain)
        assert_same(job.result(home), expected)
        subprocess.run(["rm", "-r", home], check=True)
    assert kills >= CHAINS
    tried(f"{name}: killed at a random moment", kills)


@pytest.mark.parametrize("name", ["own", "paper"])
@pytest.mark.parametrize("kind", ["fail-write", "fail-read"])
def test_a_disk_that_fails(kind, name, jobs, tmp_path):
    """A write that finds no room, and all after it; a read that fails once. A message, no Traceback, no abort of Caffe's."""
    job, expected, _ = jobs[name]
    calls = job.events(checkout(tmp_path / "count"), kind)
    numbers = random.Random(SEED).sample(range(1, len(calls) + 1), min(SAMPLED, len(calls)))
    for number in sorted(numbers):
        home = checkout(tmp_path / str(number))
        status, said = job.run(home, kind=kind, at=number)
        assert "Traceback" not in said and "*** Check failure" not in said, (calls[number - 1], said[-3000:])
        assert status >= 0, (calls[number - 1], said[-3000:])
        assert status or kind == "fail-read", (calls[number - 1], said[-3000:])  # a read may be one that is tried again
        job.finish(home)
        assert_same(job.result(home), expected)
        subprocess.run(["rm", "-r", home], check=True)
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
    assert status > 0 and "Traceback" not in said and "Read-only file system" in said, said[-3000:]
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
    kills = 0
    for chain in range(CHAINS):
        home = checkout(tmp_path / str(chain))
        kills += job.kill_at_random(home, length, SEED * 2000 + chain)
        assert_same(job.result(home), expected)
    tried("a training with dropout: killed at a random moment", kills)
