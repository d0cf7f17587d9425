"""A sweep on a real Slurm: jobs that reach their time limit, one that is killed; the results are those of -j. `make test-slurm`."""

import os
import re
import subprocess
import sys
import time

import pytest
from conftest import ROOT, build_set, draw_images
from one_machine_slurm import one_machine_slurm

CELLS = ("lifted_64", "contrastive_64", "triplet_64")
SWEEP = ["tools/sweep.py", "--set", "demo", "--methods", "lifted,contrastive,triplet", "--jobs", "2"]
LIMITED = ["--engine", "slurm", "--minutes", "1", "--signal-seconds", "30", "--cpus", "1", "--memory", "3"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp("drawn") / "images", 60, 6, side=64)


def checkout(home, images):
    """A folder with this checkout's code, and a set of drawn images as data/demo."""
    home.mkdir()
    for name in ("Makefile", "prototxt", "python_layers", "tools", "data_prep", ".venv", ".caffe"):
        (home / name).symlink_to(ROOT / name)
    build_set(images, home / "data/demo", size=64, batch=128)
    subprocess.run(
        [".venv/bin/python", "tools/extract.py", "--set", "data/demo", "--pixels", "16", "--out", "runs/demo/raw_pixels.npz"],
        cwd=home,
        check=True,
    )
    return home


def start(home, *more, **environment):
    command = [sys.executable, *SWEEP, "--with", "ITERS=400", *more]
    return subprocess.Popen(command, cwd=home, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, **environment})  # fmt: skip


def test_a_sweep_on_slurm_equals_one_side_by_side(images, tmp_path):
    here = checkout(tmp_path / "here", images)
    process = start(here)
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output

    there = checkout(tmp_path / "there", images)
    (tmp_path / "s").mkdir()
    with one_machine_slurm(tmp_path / "s") as environment:
        process = start(there, *LIMITED, **environment)
        log = there / "runs/demo/lifted_64/seed1/log.csv"
        while not (log.exists() and len(log.read_text().splitlines()) > 20):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
        queue = subprocess.run(["squeue", "--noheader", "--array", "--format=%i %T"], env={**os.environ, **environment}, text=True,
                               capture_output=True, check=True).stdout  # fmt: skip
        array = re.search(r"^(\d+)_0 RUNNING$", queue, re.MULTILINE)[1]
        subprocess.run(["scancel", "--signal=KILL", f"{array}_0"], env={**os.environ, **environment}, check=True)
        output = process.communicate(timeout=900)[0]
        assert process.returncode == 1, output
        assert re.search(r"lifted_64_seed1: ended without a result, (cancelled|failed|gone)", output), output
        assert "2 done, 1 failed of 3 cells" in output, output

        # At its time limit a job saves a snapshot, is pending again, and goes on where it was.
        for cell in CELLS[1:]:
            assert re.search(rf"{cell}_seed1: running .*\n(.*\n)*{cell}_seed1: pending .*\n(.*\n)*{cell}_seed1: running", output), (
                output
            )
            said = (there / f"runs/demo/sweep/{cell}_seed1.log").read_text()
            assert re.search(r"stopped after iteration (\d+), snapshot saved", said) and "going on from iteration" in said

        process = start(there, *LIMITED, **environment)
        output = process.communicate(timeout=900)[0]
        assert process.returncode == 0 and "3 done of 3 cells" in output, output

    for cell in CELLS:
        ours, theirs = (home / f"runs/demo/{cell}/seed1/model.caffemodel" for home in (there, here))
        assert ours.read_bytes() == theirs.read_bytes(), cell
    tables = [(home / "runs/demo/report.md").read_text().split("\n", 2)[2] for home in (there, here)]
    assert tables[0] == tables[1]
