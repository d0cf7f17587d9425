"""A searchable embedding of one's own images: from a folder, or a list, to a trained net and its report.

    .venv/bin/python tools/own.py --images ~/photos --name shoes          # ~/photos/<class>/<anything>.jpg
    .venv/bin/python tools/own.py --images ~/photos/list.csv --name shoes # columns path and class

or `make train DATA=~/photos NAME=shoes`. What is not asked for is chosen by the data and said: the net, the size of the
images, the images a batch, the iterations. Classes are split, so that what the report measures was never seen in
training. Every step is one of the project's own commands; called again, what is done is not done again.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from data_prep.batch_plan import MAX_POSITIVE_PAIRS, OWN_BATCH, ensure_plan, labels_of, make_plan, make_triplet_plan, plan_file
from data_prep.build_set import build
from data_prep.files import locked, user_path, written_aside
from data_prep.folder import read_images
from data_prep.imagenet import check_file
from data_prep.write_set import read_set
from prototxt import own
from prototxt.layers import LOSSES

TAKEN = ("cub", "cars196", "sop", "demo", "demo_holdout", "downloads", "figures")  # names of data/ and runs/
# Passes over the training images, the demo's and about the paper's on Online Products; and what they are kept between.
PASSES = {own.SMALL: 50, own.GOOGLENET: 40}
ITERATIONS = {own.SMALL: (500, 6000), own.GOOGLENET: (1000, 20000)}
SIZE = {own.SMALL: 64, own.GOOGLENET: 256}  # pixels of the stored images
TEST = 0.2  # share of the classes that the report is about; half of them where there are fewer than
FEW = 20
WASTE = 0.1  # share of the negative pairs that may be cut
SMALLER = {"pairs": (128, 64, 32, 16, 8, 4), "triplets": (120, 60, 30, 15, 6, 3)}  # images a batch, the first that can be filled


def choose_net(asked, weights):
    """The kind of net, and a sentence that says why."""
    kind = asked or (own.GOOGLENET if weights else own.SMALL)
    if kind == own.SMALL and weights:
        raise ValueError(f"{weights}: these weights are for GoogLeNet (NET=googlenet); the small net starts at random")
    if kind == own.SMALL:
        return kind, ("The small net of the demo, three convolutions from random weights: a CPU trains it in minutes. With "
                      "WEIGHTS=<bvlc_googlenet.caffemodel> GoogLeNet is trained from it, which wants a GPU or days.")  # fmt: skip
    if not weights:
        return (
            kind,
            "GoogLeNet from random weights: it learns little from a few thousand images; WEIGHTS=<file> starts it from others.",
        )
    return kind, f"GoogLeNet, from {weights}."


def choose_batch(labels, kind):
    """Images a batch, and how many batches the plan then has: the method's own, or the largest that wastes little.

    Pairs beyond the last full batch are cut from the negative ones; a batch of triplets is filled by repeating some.
    """
    make = {"pairs": make_plan, "triplets": make_triplet_plan}[kind]
    problem = None
    for batch in SMALLER[kind]:
        try:
            batches, facts = make(labels, batch)
        except ValueError as error:
            problem = problem or error
            continue
        if kind == "pairs":
            wanted = facts["negatives_per_image"] * len(labels)
            fits = wanted - facts["negative_pairs"] <= WASTE * wanted
        else:
            fits = facts["positive_pairs"] >= batch // 3
        if fits or batch == SMALLER[kind][-1]:
            return batch, len(batches)
    raise ValueError(f"training images: {problem}")


def choose_iterations(images, batch, kind):
    """Iterations for so many training images: a number of passes over them, in whole hundreds, within bounds."""
    least, most = ITERATIONS[kind]
    return min(most, max(least, int(round(PASSES[kind] * images / batch, -2))))


def step(script, *arguments, threads=None):
    """Run one of the project's commands, and leave with its status when it fails.

    Ctrl+C and SIGTERM are the command's to answer; when it ends well all the same, the next one is not begun.
    """
    command = [sys.executable, script, *map(str, arguments)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads)} if threads else None
    process = subprocess.Popen(command, env=environment)
    received = []

    def pass_on(number, frame):
        received.append(number)
        if number == signal.SIGTERM:  # Ctrl+C reaches the command from the terminal
            process.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    status = process.wait()
    if status or received:
        sys.exit(status if status > 0 else 128 - status if status else 128 + received[0])


def write_nets(folder, files):
    """Write the nets and the solver where they are not there yet or differ."""
    for name, text in files.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            with written_aside(path) as aside:
                aside.write_text(text)


def make_set(arguments, kind, size):
    """Make data/<name>; returns the Folder of images and the labels of those that train. ValueError where there are too few."""
    data_set = Path("data", arguments.name)
    with locked(data_set, "making a set"):
        found = read_images(arguments.images)
        if len(found.images) < 3:
            raise ValueError(f"{arguments.images}: has {len(found.images)} classes; three are needed at least, two to train and "
                             "one to test")  # fmt: skip
        test = arguments.test or (TEST if len(found.images) >= FEW else 0.5)
        build(arguments.images, data_set, size, {}, test, 0.0, arguments.split, None, MAX_POSITIVE_PAIRS, arguments.skip_unreadable,
              mean="imagenet" if kind == own.GOOGLENET and arguments.weights else "own",
              replace=why_not_replaced(arguments.name))  # fmt: skip
    if np.unique(labels_of(data_set / "test.csv"), return_counts=True)[1].max() < 2:
        raise ValueError(f"{arguments.images}: no class that is kept for the report has two images, so that nothing can be "
                         f"measured; SPLIT= and TEST= choose others, once data/{arguments.name} is removed")  # fmt: skip
    return found, labels_of(data_set / "train.csv")


def fit(arguments, kind, size, labels):
    """Write the plan and the nets, train, and make a model of it; returns the run's folder and its deploy net."""
    data_set = Path("data", arguments.name)
    plans = "triplets" if arguments.method == "triplet" else "pairs"
    batch, batches = choose_batch(labels, plans)
    ensure_plan(data_set, plans, batch)
    iterations = arguments.iterations or choose_iterations(len(labels), batch, kind)
    print(f"training: {len(labels):,} images, {batch} a batch ({batches:,} batches), {iterations:,} iterations", flush=True)
    suffix = "" if batch == OWN_BATCH[plans] else f"_m{batch}"
    home = Path("runs", arguments.name, f"{arguments.method}_{arguments.dim}{suffix}")
    folder, nets = home / arguments.run, home / "net"
    write_nets(nets, own.files(arguments.name, kind, arguments.method, arguments.dim, size, not arguments.no_mirror,
                               plan_file(batch, plans), iterations, nets))  # fmt: skip
    threads = 1 if kind == own.SMALL else None  # its matrices are small: two threads take longer than one
    start = ["--weights", arguments.weights] if arguments.weights else []
    step("tools/train.py", "--solver", nets / "solver.prototxt", "--set", data_set, "--run", folder, "--seed", arguments.seed,
         "--batch", batch, *start, *on_device(arguments.gpu), threads=threads)  # fmt: skip
    step("tools/model_folder.py", "--set", data_set, "--run", folder, "--net", nets / "deploy.prototxt")
    return folder, nets / "deploy.prototxt"


def on_device(gpu):
    """The option that train.py and extract.py take of it."""
    return [] if gpu is None else ["--gpu", gpu]


def score(name, size, folder, deploy, gpu=None):
    """Features, scores and the report of the run in `folder`."""
    given = ["--set", Path("data", name)]
    metrics, features, untrained = folder / "metrics.json", folder / "features.npz", folder / "features_untrained.npz"
    with locked(folder, "scoring"):
        for weights, out in (("model", features), ("snapshot_iter_0", untrained)):
            step("tools/extract.py", *given, "--net", deploy, "--weights", folder / f"{weights}.caffemodel", "--out", out,
                 *on_device(gpu))  # fmt: skip
        baselines = ["--baseline", f"untrained={untrained}"]
        if size % 16 == 0:
            step("tools/extract.py", *given, "--pixels", 16, "--out", folder / "raw_pixels.npz")
            baselines += ["--baseline", f"raw_pixels={folder / 'raw_pixels.npz'}"]
        step("tools/evaluate.py", "--features", features, "--out", metrics, *baselines)
        step("tools/compare.py", "--metrics", metrics, "--out", folder / "report.md")
        again = shlex.join(["python", "tools/own.py", *sys.argv[1:]])
        step("tools/report.py", *given, "--run", folder, "--out", folder / "report.html", "--again", again)


def read_arguments():
    """What the person asked for, the kind of net and the size of the images; leaves with a message for what cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=user_path, required=True, help="folder with a folder for each class, or list.csv (DATA)")
    parser.add_argument("--name", required=True, help="of the set: data/<name>, runs/<name> (NAME)")
    parser.add_argument("--method", choices=tuple(LOSSES), default="lifted", help="the loss (METHOD)")
    parser.add_argument("--dim", type=int, default=64, help="size of the embedding (default 64; DIM)")
    parser.add_argument("--seed", type=int, default=1, help="of the training (default 1; SEED)")
    parser.add_argument("--split", type=int, default=1, help="seed of the split of the classes (default 1; SPLIT)")
    parser.add_argument("--net", choices=(own.SMALL, own.GOOGLENET), help="default: googlenet with --weights, else small (NET)")
    parser.add_argument("--weights", type=user_path, help=".caffemodel to start GoogLeNet from (WEIGHTS)")
    parser.add_argument("--size", type=int, help="pixels a side of the stored images (default 64, GoogLeNet 256; SIZE)")
    parser.add_argument("--iterations", type=int, help="default by the number of training images (ITERS)")
    parser.add_argument("--test", type=float, help=f"share of the classes that is kept for the report (default {TEST}; TEST)")
    parser.add_argument("--no-mirror", action="store_true", help="do not mirror images in training (MIRRORED=no)")
    parser.add_argument("--skip-unreadable", action="store_true", help="pass over files that cannot be decoded (UNREADABLE=skip)")
    parser.add_argument("--run", help="name of the run's folder (default seed<seed>; RUN)")
    parser.add_argument("--gpu", type=int, metavar="N", help="compute on this GPU, counted from 0 (default the CPU; GPU)")
    arguments = parser.parse_args()
    arguments.run = arguments.run or f"seed{arguments.seed}"
    for option, name in (("--name", arguments.name), ("--run", arguments.run)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in TAKEN:
            parser.error(f"{option}: {name!r} must be letters, digits, - and _, and none of {', '.join(TAKEN)}")
    if any(number is not None and number < 1 for number in (arguments.dim, arguments.iterations, arguments.size)):
        parser.error("--dim, --iterations and --size must be positive")
    if min(arguments.seed, arguments.split) < 0:
        parser.error("--seed and --split must not be negative")
    if arguments.test is not None and not 0 < arguments.test < 1:
        parser.error(f"--test must lie between 0 and 1, not {arguments.test}")
    if arguments.weights:
        check_file(arguments.weights)
    kind, why = choose_net(arguments.net, arguments.weights)
    size = arguments.size or SIZE[kind]
    if (kind == own.GOOGLENET and size != SIZE[kind]) or own.crop_of(kind, size) < own.SMALLEST_CROP:
        parser.error(f"--size {size}: GoogLeNet takes images of 256, the small net of 19 pixels at least")
    print(f"net: {why}", flush=True)
    return arguments, kind, size


def main():
    arguments, kind, size = read_arguments()
    found, labels = make_set(arguments, kind, size)
    folder, deploy = fit(arguments, kind, size, labels)
    score(arguments.name, size, folder, deploy, arguments.gpu)
    print(f"report: {folder}/report.html\n"
          f"search: .venv/bin/python tools/search.py index {shlex.quote(str(common_folder(found)))} --model {folder}")  # fmt: skip


def why_not_replaced(name):
    """Why the set data/<name> must not be replaced by another, and what to do; None where nothing depends on it."""
    made = read_set(Path("data", name))
    if made and made.get("batch", 0) is not None:
        return "`make train` did not make it: give another NAME, or remove it."
    if runs := sorted(Path("runs", name).glob("*/*/run.json")):
        return (f"{runs[0].parent} was trained on it: call `make train` as before, give another NAME, or remove data/{name} "
                f"and runs/{name}.")  # fmt: skip
    return None


def common_folder(found):
    """The folder that holds all images of a Folder, for the next command."""
    folders = {os.path.dirname(os.path.abspath(found.root / name)) for names in found.images.values() for name in names}
    return os.path.commonpath(folders)


if __name__ == "__main__":
    run("own", main)
