"""Sweeps: their cells, side by side, failed, stopped, at work elsewhere; and a real one over the paper's methods."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT

from tools.cell import BUSY, DONE, STOPPED, Cell
from tools.sweep import cells_of

# A cell that takes a moment, or fails, or is somebody else's; each leaves a mark.
CELL = """
import glob, os, sys, time
given = dict(word.split("=", 1) for word in sys.argv[2:])
method = given["METHOD"]
settings = " ".join(given.get(name, "") for name in ("METHOD", "DIM", "BATCH", "SEED", "ITERS"))
environment = f"threads {os.environ.get('OPENBLAS_NUM_THREADS')} flags [{os.environ.get('MAKEFLAGS')}] [{os.environ.get('RUN')}]"
print(settings, environment, file=open("marks", "a"))
open(f"at_work_{method}", "w").close()
time.sleep(0.5)
print(len(glob.glob("at_work_*")), file=open("together", "a"))
os.remove(f"at_work_{method}")
if method == "contrastive":
    sys.exit("\\n".join(f"line {number} of a failure" for number in range(1, 11)))
if method == "triplet":
    sys.exit("train: runs/x: another process is training in this folder; wait for it, or stop it")
"""


@pytest.fixture
def folder(small_set, tmp_path):
    """A folder whose cells are stand-ins, and a small set as data/demo."""
    for name in ("prototxt", "python_layers", "data_prep", ".venv", ".caffe"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "tools").mkdir()
    for path in (ROOT / "tools").iterdir():
        (tmp_path / "tools" / path.name).symlink_to(path)
    (tmp_path / "tools/experiment.py").unlink()
    (tmp_path / "tools/experiment.py").write_text(CELL)
    (tmp_path / "data/demo").mkdir(parents=True)
    for path in small_set.iterdir():
        (tmp_path / "data/demo" / path.name).symlink_to(path)
    return tmp_path


def sweep(folder, *arguments, **environment):
    command = [sys.executable, "tools/sweep.py", "--set", "demo", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=120, env={**os.environ, **environment})


def test_cells():
    cells = cells_of("cub", ["lifted", "triplet", "pool5"], [64, 128], [None], [1, 2], {"ITERS": "5"})
    assert [cell.name for cell in cells] == [
        "lifted_64_seed1", "lifted_64_seed2", "lifted_128_seed1", "lifted_128_seed2", "triplet_64_seed1", "triplet_64_seed2",
        "triplet_128_seed1", "triplet_128_seed2", "pool5"]  # fmt: skip
    assert cells[3].command[1:] == ["tools/experiment.py", "cell-cub", "ITERS=5", "METHOD=lifted", "DIM=128", "BATCH=128", "SEED=2"]
    assert cells[4].given["BATCH"] == 120 and cells[-1].command[-1] == "METHOD=pool5"
    assert cells_of("cub", ["lifted"], [64], [48], [1], {})[0].name == "lifted_64_m48_seed1"
    assert cells_of("demo_holdout", ["lifted"], [64], [None], [1], {})[0].command[2:4] == ["cell-demo", "HOLDOUT=1"]


def test_failed_and_busy_cells_are_told_apart(folder):
    environment = {"MAKEFLAGS": "-j9", "OPENBLAS_NUM_THREADS": "3", "RUN": "mine"}
    ended = sweep(folder, "--methods", "contrastive,lifted,triplet", "--jobs", 2, "--with", "ITERS=7", **environment)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "contrastive_64_seed1: failed with status 1" in ended.stdout
    assert re.search(r"the last lines of runs/demo/sweep/contrastive_64_seed1.log:\n    line 3 of a failure\n", ended.stderr)
    assert "    line 10 of a failure\n" in ended.stderr and "line 1 of" not in ended.stderr
    assert "triplet_64_seed1: another process" in ended.stdout
    assert "1 done, 1 at work elsewhere, 1 failed of 3 cells" in ended.stdout
    marks = (folder / "marks").read_text()
    assert "lifted 64 128 1 7 threads 3 flags" in marks and "triplet 64 120 1 7" in marks and "-j9" not in marks
    assert "[mine]" not in marks  # a run's name is not for every cell
    assert "runs/demo: no finished run" in ended.stderr  # the tables that cannot be made say why
    assert (folder / "data/demo/triplets.npz").exists()  # made before the cells


@pytest.mark.parametrize("jobs", [1, 2])
def test_so_many_run_side_by_side(folder, jobs):
    without = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    command = [sys.executable, "tools/sweep.py", "--set", "demo", "--methods", "lifted,pool5", "--jobs", str(jobs)]
    assert subprocess.run(command, cwd=folder, text=True, capture_output=True, env=without).stdout.count("done;") == 2
    assert (folder / "marks").read_text().count(f"threads {max(1, os.cpu_count() // jobs)} ") == 2
    assert max(map(int, (folder / "together").read_text().split())) == jobs


def test_a_signal_stops_the_cells_and_starts_no_more(folder):
    (folder / "tools/experiment.py").write_text("""
import signal, sys, time
signal.signal(signal.SIGINT, lambda number, frame: sys.exit(130))
print("begun", file=open("marks", "a"), flush=True)
time.sleep(30)
""")
    command = [sys.executable, "tools/sweep.py", "--set", "demo", "--methods", "lifted", "--seeds", "1,2,3"]
    process = subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (folder / "marks").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "stopping: each cell saves a snapshot" in output
    assert "3 stopped of 3 cells" in output and (folder / "marks").read_text() == "begun\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--methods", "lifted,tripletts"], "tripletts is none of lifted, contrastive, triplet, pool5"),
        (["--methods", "lifted", "--with", "ITERS"], "--with takes NAME=VALUE, not ITERS"),
        (["--methods", "lifted", "--jobs", "0"], "--jobs must be positive"),
        (["--methods", "lifted", "--dims", "65"], "there is no net demo/lifted_65"),
    ],
)
def test_wrong_calls(folder, arguments, message):
    ended = sweep(folder, *arguments)
    assert ended.returncode != 0 and message in ended.stderr and "Traceback" not in ended.stderr
    assert not (folder / "marks").exists()


def test_without_a_set(folder):
    ended = sweep(folder, "--set", "sop", "--methods", "lifted")
    assert ended.returncode == 1 and "data/sop: no set is there; make data-sop" in ended.stderr


def a_cell(tmp_path, script):
    return Cell("name", ["bash", "-c", script], str(tmp_path / "logs/cell.log"), {}, str(tmp_path))


def test_a_cell(tmp_path):
    one = a_cell(tmp_path, "echo one; printf 'a\\rb\\rtwo\\n'")
    assert one.run() == DONE and one.last_lines(2) == ["one", "two"]
    assert a_cell(tmp_path, "echo another process is scoring in this folder; exit 1").run() == BUSY
    assert one.last_lines(2) == ["one", "two"]  # the log is the other process's
    assert a_cell(tmp_path, "echo wrong; exit 1").run() == "failed with status 1"
    assert one.last_lines(2) == ["$ bash -c 'echo wrong; exit 1'", "wrong"]  # below what was said before
    assert a_cell(tmp_path, "kill -9 $$").run() == "failed with status -9"
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["cell.log"]


@pytest.mark.parametrize(
    "script",
    [
        "echo 'stopped after iteration 3, snapshot saved; the same command goes on'; exit 2",
        "echo 'interrupted; nothing half made is left, and the same command goes on'; exit 2",
        "echo 'make: *** [Makefile:84: cell-demo] Error 143'; exit 2",
        "echo 'make: *** [Makefile:84: cell-demo] Interrupt'; exit 2",
        "kill -TERM $$",
        "exit 130",
    ],
)
def test_a_cell_that_was_told_to_end_has_not_failed(tmp_path, script):
    assert a_cell(tmp_path, script).run() == STOPPED


def test_two_sweeps_at_one_cell_are_told_apart(tmp_path):
    """The one that fails by itself says so, while the other is refused."""
    cells = [a_cell(tmp_path, "sleep 1; echo failure; exit 2"), a_cell(tmp_path, "echo another process is training; exit 2")]
    cells[1].log += "2"  # the second's own output would be of another process
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(Cell.run, cells)) == ["failed with status 2", BUSY]


def test_a_job_of_a_cluster_that_was_stopped_from_outside_waits_for_its_end(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr("tools.cell.time.sleep", lambda seconds: waited.append(seconds))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert a_cell(tmp_path, "echo $OPENBLAS_NUM_THREADS > threads; exit 1")() == "failed with status 1" and 600 not in waited
    assert (tmp_path / "threads").read_text() == "3\n"
    assert a_cell(tmp_path, "exit 143")() == STOPPED and 600 in waited
    assert a_cell(tmp_path, "kill -USR2 $$; exit 1")() == "failed with status 1"  # the warning before a time limit is not its own


def test_checkpoint_stops_the_command_and_sends_the_cell_again(tmp_path):
    """As in a job of a cluster: the call comes in a signal's handler, while run() waits."""
    marks, log = tmp_path / "marks", tmp_path / "log"
    script = f"trap 'echo stopped > {marks}; exit 143' TERM; touch {tmp_path}/begun; sleep 30 & wait"
    code = f"""
import os, signal, threading, time
from pathlib import Path
from tools.cell import Cell
cell = Cell("name", ["bash", "-c", {script!r}], {str(log)!r}, {{}})
def handler(number, frame):
    again = cell.checkpoint()
    assert again.function is cell and cell.process is None, again
    print("sent again", flush=True)
    os._exit(0)
signal.signal(signal.SIGUSR2, handler)
def later():
    while not Path({str(tmp_path / "begun")!r}).exists():
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGUSR2)
threading.Thread(target=later).start()
cell()
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert ended.stdout == "sent again\n", ended.stderr
    assert marks.read_text() == "stopped\n"  # it was waited for


def test_logs_are_in_the_run_folder_of_the_set(folder):
    assert sweep(folder, "--methods", "lifted").returncode in (0, 1)
    assert Path(folder, "runs/demo/sweep/lifted_64_seed1.log").exists()
