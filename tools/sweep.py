"""Run the cells of a sweep, method x size x batch x seed, side by side here or as a job array of a Slurm cluster.

    .venv/bin/python tools/sweep.py --set cub --methods lifted,triplet --dims 64,128 --seeds 1,2,3 --jobs 2
    .venv/bin/python tools/sweep.py --set cub --methods lifted --dims 64,128 --engine slurm --partition gpu --gpus 1 --minutes 600

or `make reproduce-cub`, `ablation-cub`, `demo-all`. A cell is `tools/experiment.py cell-<set> METHOD=… DIM=… BATCH=… SEED=…`, and
has a run folder of its own: called again, or on another machine that shares the disk, a sweep passes over what is done and
what another process is working on. The output of a cell is in runs/<set>/sweep/<cell>.log. At the end come the tables and
figures of everything that is finished; the exit status is 1 when a cell failed. Ctrl+C stops the cells, each with a
snapshot; on a cluster they go on, and the next call finds them at work.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from data_prep.batch_plan import ensure_plan
from data_prep.files import read_record
from prototxt.generate import ensure_net
from prototxt.records import methods
from tools.cell import BUSY, DONE, STOPPED, Cell
from tools.published import own_batch

METHODS = (*methods(), "pool5")
ALIVE = (
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
    "RESIZING",
)
POLL = 2  # seconds between two looks at the cluster
PATIENCE = 30  # seconds that a job may be gone without a result
LOG_LINES = 8  # of a failed cell that are shown
SAY = 60  # seconds between two lines about the cells at work


def cells_of(data_set, methods, dims, batches, seeds, variables):
    """The Cells of a sweep. pool5 is one cell: nothing is trained. No batch stands for the method's own."""
    found = {}
    if data_set.endswith("_holdout"):
        variables = {**variables, "HOLDOUT": "1"}
    for method, dim, batch, seed in itertools.product(methods, dims, batches, seeds):
        if method == "pool5":
            name, given = "pool5", {"METHOD": "pool5"}
        else:
            batch = batch or own_batch(method)
            name = f"{method}_{dim}{'' if batch == own_batch(method) else f'_m{batch}'}_seed{seed}"
            given = {"METHOD": method, "DIM": dim, "BATCH": batch, "SEED": seed}
        target = data_set.removesuffix("_holdout")
        command = [sys.executable, "tools/experiment.py", f"cell-{target}"]
        command += [f"{key}={value}" for key, value in {**variables, **given}.items()]
        found[name] = Cell(name, command, str(Path("runs", data_set, "sweep", f"{name}.log").absolute()), given)
    return list(found.values())


def prepare(data_set, cells):
    """Write the nets and batch plans that the cells read, before they run side by side."""
    for given in (cell.given for cell in cells if cell.given["METHOD"] != "pool5"):
        ensure_net(f"{data_set.removesuffix('_holdout')}/{given['METHOD']}_{given['DIM']}")
        ensure_plan(Path("data", data_set), methods()[given["METHOD"]].plan, given["BATCH"])


def here(cells, jobs, threads):
    """Run the cells, `jobs` at a time, each with so many threads; {cell's name: status}."""
    environment = {"OPENBLAS_NUM_THREADS": str(threads), **os.environ}
    stopping = threading.Event()

    def stop(number, frame):
        if not stopping.is_set():
            print("stopping: each cell saves a snapshot", flush=True)
        stopping.set()
        for cell in cells:
            cell.stop(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    ended, begun = {}, time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(lambda cell=cell: STOPPED if stopping.is_set() else cell.run(environment)): cell for cell in cells}
        threading.Thread(target=say_progress, args=(cells, ended), daemon=True).start()
        for future in as_completed(waiting):
            cell = waiting[future]
            ended[cell.name] = status = future.result()
            minutes = (time.monotonic() - begun) / 60
            print(f"{cell.name}: {cell.words(status)}; {len(ended)} of {len(cells)} after {minutes:.0f} min", flush=True)
    return ended


def say_progress(cells, ended):
    """Every minute a line on each cell that is at work."""
    while len(ended) < len(cells):
        time.sleep(SAY)
        for cell in cells:
            if cell.process is not None and cell.name not in ended:
                print(f"  {cell.name}: {(cell.last_lines(1) or ['begun'])[0]}", flush=True)


def on_slurm(cells, folder, options):
    """Send the cells to Slurm as one job array and wait for them; {cell's name: status}.

    A job that reaches its time limit, or is preempted, gets a signal, stops its cell, which saves a snapshot, and is
    requeued by submitit; it then goes on where it was.
    """
    import submitit

    if shutil.which("sbatch") is None:
        raise ValueError(
            "sbatch is not there: ENGINE=slurm needs a machine that submits to a Slurm cluster; ENGINE=local runs here"
        )
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=options.pop("requeues"))
    executor.update_parameters(name="sweep", slurm_signal_delay_s=options.pop("signal_seconds"), **options)
    with executor.batch():
        jobs = {cell.name: executor.submit(cell) for cell in cells}
    first = next(iter(jobs.values())).job_id.split("_")[0]
    print(
        f"Slurm: job array {first}, {len(cells)} cells; squeue -j {first} shows it, scancel {first} ends it. "
        "Ctrl+C leaves it running.",
        flush=True,
    )
    ended, states, gone = {}, {}, {}
    while len(ended) < len(jobs):
        time.sleep(POLL)
        now = slurm_states(first)
        for cell in cells if now is not None else []:
            job = jobs[cell.name]
            if cell.name in ended:
                continue
            state = now.get(job.job_id, "gone")
            if state != states.get(cell.name):
                states[cell.name] = state
                print(f"{cell.name}: {state.lower()} (job {job.job_id})", flush=True)
            # A job that was killed leaves no result; one that ended may leave it a moment later, on a shared disk.
            gone[cell.name] = 0 if state in ALIVE else gone.get(cell.name, 0) + 1
            if job.paths.result_pickle.exists():
                failure = job.exception()
                ended[cell.name] = job.result() if failure is None else str(failure).strip().splitlines()[-1]
            elif gone[cell.name] * POLL >= PATIENCE:
                ended[cell.name] = f"ended without a result, {state.lower()}; {job.paths.stderr} may say why"
            if cell.name in ended:
                print(f"{cell.name}: {cell.words(ended[cell.name])}; {len(ended)} of {len(jobs)}", flush=True)
    return ended


def slurm_states(array):
    """{job id: state} of a job array, as squeue tells, None where it cannot; a job that Slurm has forgotten is not there."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={array}", "--format=%i %T"]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)


def report(cells, ended):
    """Say which cells failed, with the last lines of their logs; returns how many."""
    failed = [cell for cell in cells if ended[cell.name] not in (DONE, BUSY, STOPPED)]
    for cell in failed:
        print(f"\n{cell.name}: {cell.words(ended[cell.name])}; the last lines of {os.path.relpath(cell.log)}:", file=sys.stderr)
        print("\n".join(f"    {line}" for line in cell.last_lines(LOG_LINES)), file=sys.stderr)
    counts = {
        word: sum(status == number for status in ended.values())
        for number, word in ((DONE, "done"), (BUSY, "at work elsewhere"), (STOPPED, "stopped"))
    }
    counts["failed"] = len(failed)
    print("\n" + ", ".join(f"{number} {word}" for word, number in counts.items() if number) + f" of {len(cells)} cells")
    return len(failed)


def words(text):
    return text.split(",")


def numbers(text):
    return [int(number) for number in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", required=True, help="cub, cars196, sop, demo or demo_holdout; its data is in data/<set>")
    parser.add_argument("--methods", type=words, required=True, help=f"of {', '.join(METHODS)}; commas between")
    parser.add_argument("--dims", type=numbers, default=[64], help="sizes of the embedding (default 64)")
    parser.add_argument("--batches", type=numbers, default=[None], help="images a batch (default the method's own)")
    parser.add_argument("--seeds", type=numbers, default=[1], help="default 1")
    parser.add_argument(
        "--with", action="append", default=[], dest="variables", metavar="NAME=VALUE", help="a variable for each cell"
    )
    parser.add_argument("--jobs", type=int, default=1, help="cells side by side (default 1)")
    parser.add_argument("--engine", choices=("local", "slurm"), default="local")
    parser.add_argument("--partition", help="of the cluster, as the following")
    parser.add_argument("--account")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs a cell (default 0)")
    parser.add_argument("--cpus", type=int, default=2, help="cores a cell (default 2)")
    parser.add_argument("--memory", type=float, default=12, help="GB a cell (default 12: GoogLeNet at batch 128 takes 10)")
    parser.add_argument("--minutes", type=int, default=1440, help="time limit of a job; it is requeued and goes on (default 1440)")
    parser.add_argument("--signal-seconds", type=int, default=90, help="of warning before the limit, for a snapshot (default 90)")
    parser.add_argument("--requeues", type=int, default=100, help="how often a job may reach its limit (default 100)")
    arguments = parser.parse_args()
    if wrong := [method for method in arguments.methods if method not in METHODS]:
        parser.error(f"--methods: {wrong[0]} is none of {', '.join(METHODS)}")
    if wrong := [pair for pair in arguments.variables if "=" not in pair]:
        parser.error(f"--with takes NAME=VALUE, not {wrong[0]}")
    if arguments.jobs < 1 or min(arguments.seeds) < 0:
        parser.error("--jobs must be positive, --seeds must not be negative")
    if not read_record(Path("data", arguments.set, "set.json")):
        raise ValueError(f"data/{arguments.set}: no set is there; make data-{arguments.set.removesuffix('_holdout')}")
    variables = dict(pair.split("=", 1) for pair in arguments.variables)
    cells = cells_of(arguments.set, arguments.methods, arguments.dims, arguments.batches, arguments.seeds, variables)
    print(f"{len(cells)} cells: {', '.join(cell.name for cell in cells)}", flush=True)
    prepare(arguments.set, cells)
    if arguments.engine == "slurm":
        options = {
            "timeout_min": arguments.minutes,
            "cpus_per_task": arguments.cpus,
            "mem_gb": arguments.memory,
            "slurm_array_parallelism": max(arguments.jobs, 1) if arguments.jobs > 1 else 256,
            "signal_seconds": arguments.signal_seconds,
            "requeues": arguments.requeues,
        }
        options |= {"gpus_per_node": arguments.gpus} if arguments.gpus else {}
        options |= {f"slurm_{name}": value for name in ("partition", "account") if (value := getattr(arguments, name))}
        ended = on_slurm(cells, f"runs/{arguments.set}/sweep/slurm", options)
    else:
        ended = here(cells, arguments.jobs, max(1, (os.cpu_count() or 1) // arguments.jobs))
    failed = report(cells, ended)
    if DONE in ended.values():
        failed += not draw_tables(arguments.set)
    return 130 if STOPPED in ended.values() else 1 if failed else 0


def draw_tables(data_set):
    """Tables and figures of all finished runs of the set; False where they cannot be made, which the commands explain."""
    published = [] if data_set.startswith("demo") else ["--published", data_set]
    made = [
        subprocess.run(
            [sys.executable, f"tools/{tool}.py", "--runs", f"runs/{data_set}", *published, "--out", f"runs/{data_set}/{out}"]
        ).returncode
        == 0
        for tool, out in (("compare", "report.md"), ("plots", "curves.png"))
    ]
    return all(made)


if __name__ == "__main__":
    run("sweep", main)
