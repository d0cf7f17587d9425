"""Train a solver with real Caffe; everything that belongs to the run lies in its folder.

    .venv/bin/python tools/train.py --solver prototxt/demo/lifted_64/solver.prototxt --run runs/demo/lifted_64/seed1
    .venv/bin/python tools/train.py --solver prototxt/cub/lifted_64/solver.prototxt --run runs/cub/lifted_64/seed1 \\
                                    --weights data/bvlc_googlenet.caffemodel

Called again, it goes on from the newest snapshot; when training is done it does nothing. Ctrl+C and SIGTERM end the
current iteration, save a snapshot, and exit with status 130 or 143; with 74 when the disk is full, the snapshots before
being kept, and with 1 on any other error. The run folder afterwards:

    solver.prototxt, train_val.prototxt   exactly what ran; stock `caffe train` takes them too
    run.json                              arguments, versions, BLAS
    log.csv                               loss of every iteration, pair distances every `display`
    snapshot_iter_N.{caffemodel,solverstate}; N = 0 is the net before training. Those of the solver's `snapshot`
        interval are kept, and the last two of others
    model.caffemodel                      the final weights; there only when training is complete
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import csv
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import ClassVar

os.environ.setdefault("GLOG_minloglevel", "2")  # Caffe's errors only, not its net listings

from tools.blas import VARIABLE, choose_kernels

KERNELS = choose_kernels()  # before Caffe is imported

import caffe
import numpy as np
from caffe_pb2 import NetParameter, SolverParameter, SolverState
from google.protobuf import text_format
from tqdm import tqdm

from data_prep.batch_plan import kind_of, plan_file, require_batch
from data_prep.files import DiskFull, locked, read_record, read_rows, require_space, sha256, user_path, written_aside
from data_prep.imagenet import known_weights
from layer_support import read_param_str
from lifted_structured_loss import pair_statistics
from pair_batch import PARAMETERS
from tools.caffe_files import (
    check_loss,
    check_solver,
    check_start,
    check_state,
    constructed,
    in_copy,
    load_modules,
    load_weights,
    read_binary,
    read_text,
)
from tools.device import use_device
from tools.runs import read_run
from tools.versions import versions
from tools.watch import Watch

DATA_FILES = ("lmdb", "plan", "mean_file")  # what PairBatchData's param_str names
WATCHED = ("fc_embedding", "label", "loss")  # blobs that a net must have to be shown while it trains
MAKERS = {"demo_holdout": "make data-demo HOLDOUT=1", **{name: f"make data-{name}" for name in ("demo", "cub", "cars196", "sop")}}
SAVE_MINUTES = 30  # what a crash may cost, where the solver's own interval is days
KEEP = 2  # of the snapshots that were saved because time went by
TIMED = 20  # iterations after which the duration is told
STATISTICS = ("positive_min", "positive_mean", "positive_max", "negative_min", "active")


def run_files(solver_path, run, seed, iterations, data_set, batch, gpu=None):
    """The run's own solver and net, messages, with seed, iterations, folder, data set and batch written in."""
    solver = read_text(solver_path, SolverParameter())
    if not solver.net:
        raise ValueError(f'{solver_path}: names no net; a solver that is trained here has a line such as net: "train_val.prototxt"')
    net = read_text(solver.net, NetParameter())
    tops = {top for layer in net.layer for top in layer.top}
    if lacking := [blob for blob in WATCHED if blob not in tops]:
        raise ValueError(f"{solver.net}: has no blob {lacking[0]!r}; a net trained here has {', '.join(WATCHED)}")
    for layer in net.layer:
        if layer.python_param.layer == "PairBatchData":
            given = read_param_str(layer.python_param.param_str, f"{solver.net}: layer {layer.name!r}", **PARAMETERS)
            parameters = {**given, "seed": seed}
            if data_set:
                parameters |= {name: str(data_set / Path(parameters[name]).name) for name in DATA_FILES if parameters.get(name)}
            if batch:
                parameters["plan"] = str(Path(parameters["plan"]).with_name(plan_file(batch, kind_of(parameters["plan"]))))
            layer.python_param.param_str = json.dumps(parameters, sort_keys=True)
    solver.net = str(run / "train_val.prototxt")
    if gpu is not None:  # which one is not the run's: it may go on with another
        solver.solver_mode = SolverParameter.GPU
    solver.random_seed = seed
    solver.max_iter = iterations or solver.max_iter
    solver.display = solver.display or 20
    solver.snapshot_prefix = str(run / "snapshot")
    return solver, net


def check_data(net, batch=None):
    """Raise ValueError for a data file that a layer names and that is not there, where Caffe would abort; and for a plan of
    another number of images a batch than was asked for.

    Returns what identifies the content of the sets and plans that are read.
    """
    contents = {}
    for layer in net.layer:
        if layer.python_param.layer == "PairBatchData":
            parameters = json.loads(layer.python_param.param_str)
            folder = Path(parameters["lmdb"]).parent
            for name in DATA_FILES:
                path = parameters.get(name)
                if path and not Path(path).exists():
                    maker = MAKERS.get(folder.name, ".venv/bin/python data_prep/build_set.py")
                    raise ValueError(f"{path}: not there (layer {layer.name!r}, {name}); `{maker}` makes it")
            if batch:
                require_batch(parameters["plan"], batch)
            contents[str(folder)] = read_record(folder / "set.json").get("content")
            contents[parameters["plan"]] = sha256(parameters["plan"])
    return contents


def difference(name, then, now):
    """Two values of the setting `name`, in words; of the data, which is known by checksums, what has another one."""
    if name == "data" and then and now:
        changed = sorted(path for path in {*then, *now} if then.get(path) != now.get(path))
        return f"other images, another split or another batch plan ({', '.join(changed)})"
    return f"{then!r} then, {now!r} now"


def other_kernels(then, now):
    """How to go on with the BLAS kernels of then, where it is those that differ; '' where it is not."""
    if not then or then[0] != now[0] or then[1] == now[1]:
        return ""
    return f". Its BLAS kernels were {then[1]}, now they are {now[1]}: {VARIABLE}={then[1]} before the command keeps them"


def prepare(run, solver, net, settings):
    """Write the run's files, or check that they are those of an earlier call; ValueError lists what differs."""
    texts = {"solver.prototxt": text_format.MessageToString(solver), "train_val.prototxt": text_format.MessageToString(net)}
    record = run / "run.json"
    if record.exists():
        earlier = read_run(run)
        changed = [f"    {name}: {difference(name, earlier['settings'].get(name), settings.get(name))}"
                   for name in sorted({*earlier["settings"], *settings})
                   if earlier["settings"].get(name) != settings.get(name)]  # fmt: skip
        changed += [f"    {name}: is not what this call would write" for name, text in texts.items()
                    if not (run / name).is_file() or (run / name).read_bytes() != text.encode()]  # fmt: skip
        if changed:
            raise ValueError(f"{run}: was begun with other settings:\n" + "\n".join(changed) +
                             "\nCall it with those, name another run (RUN=name), or remove the folder.")  # fmt: skip
        then, now = earlier["versions"], versions()
        if changed := [name for name in ("python", "numpy", "caffe", "caffe_blas") if then.get(name) != now[name]]:
            print(f"{run}: was begun with another {', '.join(changed)} (run.json tells which); the last digits will differ "
                  f"from an undisturbed run's{other_kernels(then.get('caffe_blas'), now['caffe_blas'])}")  # fmt: skip
        return
    for name, text in texts.items():
        with written_aside(run / name) as aside:
            aside.write_text(text)
    with written_aside(record) as aside:
        aside.write_text(json.dumps({"settings": settings, "versions": versions(), "command": sys.argv}, indent=2) + "\n")


class Snapshots:
    """Snapshots of a solver that are complete or absent: written aside, renamed, the state last.

    A damaged one is moved aside, under a name of its own, so that it neither counts nor is lost.

    Those of every `interval` iterations stay; of others, saved when `minutes` went by, the last `keep`.
    """

    def __init__(self, run, solver, interval, minutes=SAVE_MINUTES, keep=KEEP):
        self.run, self.solver, self.interval, self.minutes, self.keep = run, solver, interval, minutes, keep
        self.folder = run / ".writing"
        self.saved_at = time.monotonic()

    def due(self):
        """Whether it is time to save: at the solver's interval, or when a crash would cost more than `minutes`."""
        return self._stays(self.solver.iter) or time.monotonic() - self.saved_at > 60 * self.minutes

    def _stays(self, iteration):
        return iteration == 0 or (self.interval > 0 and iteration % self.interval == 0)

    def states(self):
        """The states in the run's folder, newest first."""
        named = (path for path in self.run.glob("snapshot_iter_*.solverstate") if path.stem.rsplit("_", 1)[1].isdecimal())
        return sorted(named, key=_iteration, reverse=True)

    def save(self):
        """Save at the current iteration; ValueError instead when a weight is not finite, DiskFull when there is no room.

        Caffe aborts the process where it cannot write, so the room is looked at first, for the weights, the solver's state,
        which is as large, and what is written aside; and a copy of the process writes.
        """
        for name, blobs in self.solver.net.params.items():
            if not all(np.isfinite(blob.data).all() for blob in blobs):
                raise ValueError(f"weights of layer {name!r} are not finite at iteration {self.solver.iter}; no snapshot is made")
        shutil.rmtree(self.folder, ignore_errors=True)
        size = sum(blob.data.nbytes for blobs in self.solver.net.params.values() for blob in blobs)
        require_space(self.run, 3 * size + (1 << 20), "The snapshots before are kept; make room, and the same command goes on.")
        self.folder.mkdir()
        written, refused = in_copy(self.solver.snapshot)
        if refused:
            raise DiskFull(f"{self.folder}: Caffe cannot write a snapshot there ({refused}): the disk is full, or fails. Those "
                           "before are kept; make room, and the same command goes on")  # fmt: skip
        if not written:
            self.solver.snapshot()
        name = f"snapshot_iter_{self.solver.iter}"
        weights, state = self.run / f"{name}.caffemodel", self.run / f"{name}.solverstate"
        message = read_binary(self.folder / f"{name}.solverstate", SolverState())
        message.learned_net = str(weights)  # Caffe aborts on the path of a file that was moved
        with written_aside(weights) as aside:
            os.replace(self.folder / f"{name}.caffemodel", aside)
        with written_aside(state) as aside:
            aside.write_bytes(message.SerializeToString())
        shutil.rmtree(self.folder)
        past = [state for state in self.states() if _iteration(state) <= self.solver.iter]
        for passing in [state for state in past if not self._stays(_iteration(state))][self.keep :]:
            passing.unlink()  # the state first: without it the weights are no snapshot
            passing.with_suffix(".caffemodel").unlink(missing_ok=True)
        self.saved_at = time.monotonic()

    def restore(self):
        """Go on from the newest snapshot that is whole; one that is not is named and moved aside."""
        for state in self.states():
            try:
                check_state(self.solver.net, state, _iteration(state))
            except ValueError as error:
                print(f"passing over a snapshot: {error}")
                for file in (state, state.with_suffix(".caffemodel")):
                    if file.exists():
                        file.rename(file.with_name(f"{file.name}.damaged"))
                print(f"    it is kept as {state.name}.damaged")
                continue
            self.solver.restore(str(state))
            load_weights(self.solver.net, state.with_suffix(".caffemodel"))
            return


def _iteration(path):
    """The iteration in the name of a snapshot's file."""
    return int(path.stem.rsplit("_", 1)[1])


class Log:
    """log.csv: a row an iteration, with distances every `display`; rows after the one gone on from are dropped."""

    fields: ClassVar = ("iteration", "loss", *STATISTICS, "images_per_second")

    def __init__(self, path, iteration):
        kept = []
        if path.exists():
            with open(path, "r+b") as stream:
                stream.truncate(stream.read().rfind(b"\n") + 1)  # a full disk cuts the last row off
            try:
                rows = ({name: row[name] for name in self.fields} for _, row in read_rows(path, *self.fields))
                kept = [row for row in rows if int(row["iteration"]) <= iteration]
            except ValueError as error:
                raise ValueError(f"{path}: is damaged ({error}); remove it, and the same command goes on: only the curves of the "
                                 "training are drawn from it") from None  # fmt: skip
        with written_aside(path) as aside, open(aside, "w", newline="") as stream:
            rows = csv.DictWriter(stream, self.fields)
            rows.writeheader()
            rows.writerows(kept)
        self.stream = open(path, "a", newline="")
        self.rows = csv.DictWriter(self.stream, self.fields)

    def write(self, row):
        self.rows.writerow(row)
        self.stream.flush()


def seed_of(seed, iteration):
    """Caffe's random state for one iteration (dropout): a function of (seed, iteration), not of what ran before."""
    return int(np.random.SeedSequence([seed, iteration]).generate_state(1)[0] >> 1)


def margin_of(net):
    """The margin of the net's lifted structured loss, for the share of active pairs; None where the net has another loss."""
    for layer in net.layer:
        if layer.python_param.layer == "LiftedStructuredLossLayer":
            return read_param_str(layer.python_param.param_str, f"layer {layer.name!r}", margin=1.0)["margin"]
    return None


def train(run, solver_message, net_message, seed, weights, minutes, keep, gpu=None):
    """Train to the end or to a signal; returns the signal's number, or 0."""
    received, margin = [], margin_of(net_message)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.append(number))

    # The solver that Caffe loads differs from the run's in where and when it saves: we do that, step by step.
    working = SolverParameter()
    working.CopyFrom(solver_message)
    working.snapshot, working.snapshot_after_train, working.display = 0, False, 0
    working.snapshot_format = SolverParameter.BINARYPROTO  # what a snapshot is checked as, whatever the solver says
    working.snapshot_prefix = str(run / ".writing" / "snapshot")
    with written_aside(run / ".solver.prototxt") as aside:
        aside.write_text(text_format.MessageToString(working))
    use_device(gpu)
    solver = constructed(lambda: caffe.get_solver(str(run / ".solver.prototxt")), run / "solver.prototxt")
    snapshots = Snapshots(run, solver, solver_message.snapshot, minutes, keep)
    snapshots.restore()
    if solver.iter == 0:
        if weights:
            load_start(solver.net, weights)
        snapshots.save()
    log = Log(run / "log.csv", solver.iter)
    if solver.iter:
        print(f"going on from iteration {solver.iter}")

    net = solver.net
    # On a GPU the gradients would have to be copied here each time.
    watch = Watch(solver, net_message, run, every=1 if gpu is None else solver_message.display)
    batch = net.blobs["label"].count
    losses, since = [], time.perf_counter()  # of the iterations since the last display
    first, began = solver.iter, since
    bar = tqdm(total=working.max_iter, initial=solver.iter, desc="training", unit="it", mininterval=0.5)
    while solver.iter < working.max_iter and not received:
        caffe.set_random_seed(seed_of(seed, solver.iter))
        try:
            solver.step(1)
        except (ValueError, OverflowError) as error:
            bar.close()
            raise watch.stopped(error) from None
        bar.update()
        losses.append(float(net.blobs["loss"].data))
        row = {"iteration": solver.iter, "loss": losses[-1]}
        if solver.iter % solver_message.display == 0 or solver.iter == working.max_iter:
            statistics = pair_statistics(net.blobs["fc_embedding"].data, net.blobs["label"].data, margin or 0.0)
            if margin is None:  # "active" is a word of the lifted loss
                statistics["active"] = None
            rate = len(losses) * batch / (time.perf_counter() - since)
            bar.set_postfix_str(_postfix(np.mean(losses), rate, statistics))
            row |= {**statistics, "images_per_second": round(rate, 1)}
            for warning in watch.look(np.mean(losses), working.max_iter):
                bar.write(warning)
            losses, since = [], time.perf_counter()
        log.write(row)
        if solver.iter == first + TIMED and solver.iter < working.max_iter:
            bar.write(duration((time.perf_counter() - began) / TIMED, working.max_iter - solver.iter, run, weights, gpu))
        if snapshots.due() and solver.iter < working.max_iter:
            snapshots.save()
    bar.close()
    snapshots.save()
    if solver.iter < working.max_iter:
        print(f"stopped after iteration {solver.iter}, snapshot saved; the same command goes on")
        return received[0]
    with written_aside(run / "model.caffemodel") as aside:
        shutil.copyfile(run / f"snapshot_iter_{solver.iter}.caffemodel", aside)
    return 0


def load_start(net, weights):
    """Copy the starting weights into the net: every layer's but the embedding's, which starts at random."""
    layers = [name for name in net.params if net.layer_dict[name].type != "Python"]
    load_weights(net, weights, new=[name for name in net.params if name not in layers or name == "fc_embedding"])
    if bad := [name for name in layers if not all(np.isfinite(blob.data).all() for blob in net.params[name])]:
        raise ValueError(f"{weights}: the weights of layer {bad[0]!r} are not finite")
    for name in set(net.params) - set(layers):
        for blob in net.params[name]:
            blob.data[...] = 0  # a batch counter that the weights brought along


def duration(seconds, iterations, run, weights, gpu=None):
    """How long the rest will take, in words; and what to do when that is days."""
    left = seconds * iterations
    unit, length = next((name, length) for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 0))
                        if left >= 2 * length)  # fmt: skip
    text = f"An iteration takes {seconds:.3g} s: the {iterations:,} that are left take about {left / (length or 1):.1f} {unit}."
    if left < 86400 or gpu is not None:
        return text
    start = f" -weights {weights}" if weights else ""
    return (f"{text}\nThat is on this CPU. Ctrl+C is fine at any time, the same command goes on. With a GPU, `make env GPU=1`\n"
            f"and this command with GPU=0, in another run (RUN=), train on it; and any Caffe with CUDA and Python layers trains\n"
            f"this run's files, from this folder:\n"
            f"    caffe train -gpu 0 -solver {run}/solver.prototxt{start}\n"
            "and this command then takes up what it saved in the run's folder.")  # fmt: skip


def _postfix(loss, rate, statistics):
    def number(name):
        return "-" if statistics[name] is None else f"{statistics[name]:.2f}"

    return (f"loss {loss:.3f}, {rate:.0f} images/s, positive {number('positive_min')}/{number('positive_mean')}/"
            f"{number('positive_max')}, negative {number('negative_min')}, active {number('active')}")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solver", type=Path, required=True, help="solver.prototxt to train")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, runs/<set>/<method>_<dim>/<run>")
    parser.add_argument("--seed", type=int, default=1, help="of the starting weights, crops, mirrors, dropout (default 1)")
    parser.add_argument("--set", type=Path, help="folder of another set, instead of the one that the net names")
    parser.add_argument("--iterations", type=int, help="instead of the solver's max_iter")
    parser.add_argument("--weights", type=user_path, help=".caffemodel to start from; all layers but fc_embedding must be in it")
    parser.add_argument("--batch", type=int, help="images a batch, where the set has a plan for it (default the net's plan)")
    parser.add_argument("--save-minutes", type=float, default=SAVE_MINUTES,
                        help=f"save a snapshot when so much time went by without one (default {SAVE_MINUTES})")  # fmt: skip
    parser.add_argument("--keep", type=int, default=KEEP,
                        help=f"of those are kept; of the solver's own interval all are (default {KEEP})")  # fmt: skip
    parser.add_argument("--gpu", type=int, metavar="N", help="compute on this GPU, counted from 0 (default the CPU)")
    arguments = parser.parse_args()
    if arguments.save_minutes < 0 or arguments.keep < 1:
        parser.error("--save-minutes must not be negative, --keep must be positive")
    if arguments.seed < 0 or (arguments.iterations is not None and arguments.iterations < 1):
        parser.error("--seed must not be negative, --iterations must be positive")
    run = arguments.run
    solver, net = run_files(arguments.solver, run, arguments.seed, arguments.iterations, arguments.set, arguments.batch,
                            arguments.gpu)  # fmt: skip
    check_solver(solver, arguments.solver)
    check_loss(net, read_text(arguments.solver, SolverParameter()).net)
    load_modules(net, read_text(arguments.solver, SolverParameter()).net)
    settings = {"solver": str(arguments.solver), "seed": arguments.seed, "iterations": solver.max_iter, "base_lr": solver.base_lr}
    settings |= {"batch": arguments.batch, "data": check_data(net, arguments.batch), "weights": known_weights(arguments.weights)}
    if arguments.gpu is not None:  # a run on the CPU has no word of it, as before there was a choice
        settings["mode"] = "GPU"
    if arguments.weights:
        weighted = [layer.name for layer in net.layer if layer.type in ("Convolution", "InnerProduct")]
        check_start(arguments.weights, [name for name in weighted if name != "fc_embedding"])
    use_device(arguments.gpu)  # before anything is written
    with locked(run, "training"):
        prepare(run, solver, net, settings)
        if (run / "model.caffemodel").exists():
            print(f"{run}: trained already ({solver.max_iter} iterations)")
            return 0
        if KERNELS:
            print(KERNELS)
        stopped_by = train(run, solver, net, arguments.seed, arguments.weights, arguments.save_minutes, arguments.keep,
                           arguments.gpu)  # fmt: skip
        return 128 + stopped_by if stopped_by else 0


if __name__ == "__main__":
    run("train", main)
