"""A searchable embedding of one's own images: from a folder, or a list, to a trained net and its report.

    make train DATA=~/photos NAME=shoes             # ~/photos/<class>/<anything>.jpg
    make train DATA=~/photos/list.csv NAME=shoes    # columns path and class

Unset options are chosen from the data and printed: the net, the size of the images, the images a batch, the iterations.
Classes are split, so that the report measures on classes that training never saw. Each step is one of the project's own
commands; run it again and completed steps are skipped.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np

from data_prep.batch_plan import MAX_POSITIVE_PAIRS, OWN_BATCH, ensure_plan, labels_of, make_plan, make_triplet_plan, plan_file
from data_prep.build_set import build, split_classes
from data_prep.files import locked, read_rows, user_path, written_aside
from data_prep.folder import level, read_images
from data_prep.imagenet import check_file
from data_prep.write_set import read_set
from prototxt import own
from prototxt.records import methods, trunks
from tools.caffe_files import check_trunk
from tools.experiment import step
from tools.verbs import NAME, VARIABLES

LEAST = 4  # classes: two to train, and two to measure on, for with one of them every answer is right
TAKEN = ("cub", "cars196", "sop", "demo", "demo_holdout", "downloads", "figures")  # names of data/ and runs/
TEST = 0.2  # share of the classes that the report is about; half of them where there are fewer than
FEW = 20
WASTE = 0.1  # share of the negative pairs that may be cut
SMALLER = {"pairs": (128, 64, 32, 16, 8, 4), "triplets": (120, 60, 30, 15, 6, 3)}  # images a batch, the first that can be filled


def choose_net(asked, weights):
    """The Trunk, and a sentence that says why."""
    trunk = trunks()[asked or ("googlenet" if weights else "small")]
    if weights and trunk.mean == "own":
        raise ValueError(f"{weights}: these weights are for another net (NET=googlenet); the {trunk.name} net starts at random")
    if trunk.mean == "own":
        return trunk, (
            "The small net of the demo, three convolutions from random weights: a CPU trains it in minutes. With "
            "WEIGHTS=<bvlc_googlenet.caffemodel> GoogLeNet is trained from it, which wants a GPU or days."
        )
    if not weights:
        return (
            trunk,
            f"{trunk.title} from random weights: it learns little from a few thousand images; WEIGHTS=<file> starts it otherwise.",
        )
    return trunk, f"{trunk.title}, from {weights}."


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


def choose_iterations(images, batch, trunk):
    """Iterations for so many training images: a number of passes over them, in whole hundreds, within bounds."""
    least, most = trunk.iterations
    return min(most, max(least, int(round(trunk.passes * images / batch, -2))))


# What a person sets, where it stands in a net or a solver, and how it is said.
SAID = {"ITERS": r"max_iter: (\d+)", "MIRRORED": r'"mirror": (true|false)', "the crop": r'"crop": (\d+)'}


def difference(then, now):
    """What is other in two texts of a net or a solver, in the words of a person's own variables as far as they have some."""
    words = {"true": "yes", "false": "no"}
    found = []
    for name, pattern in SAID.items():
        old, new = (re.search(pattern, text) for text in (then, now))
        if old and new and old[1] != new[1]:
            found.append(f"{name}: {words.get(old[1], old[1])} then, {words.get(new[1], new[1])} now")
    return "; ".join(found) or "another version of this project wrote them"


def write_nets(run, files):
    """Write the nets and the solver into the folder `net` of a run; ValueError where the run was begun with others."""
    for name, text in files.items():
        path = run / "net" / name
        there = path.read_text() if path.exists() else None
        if there is not None and there != text and (run / "run.json").exists():
            raise ValueError(
                f"{run}: was begun with other settings ({difference(there, text)}). Call it with those, name another run "
                "(RUN=name), or remove the folder"
            )
        if there != text:
            with written_aside(path) as aside:
                aside.write_text(text)


def make_set(arguments, trunk, size):
    """Make data/<name>; returns the Folder of images and the labels of those that train. ValueError where there are too few."""
    data_set = Path("data", arguments.name)
    found = read_images(arguments.images)  # what is mistyped shows before a folder is made
    if len(found.images) < LEAST:
        has, hint = f"{len(found.images)} class{'es' * (len(found.images) != 1)}", level(arguments.images)
        raise ValueError(f"{arguments.images}: has {has}; {LEAST} are needed at least, two to train and two to measure on{hint}")
    test = arguments.test or (TEST if len(found.images) >= FEW else 0.5)
    _, kept = split_classes(sorted(found.images), {}, test, 0.0, arguments.split)
    if len(kept) < 2:
        raise ValueError(
            f"--test {test:g} (TEST=) keeps {len(kept)} of {len(found.images)} classes for the report; two are needed "
            "at least, for with one of them every answer is right"
        )
    with locked(data_set, "making a set"):
        mean = trunk.mean if arguments.weights else "own"
        options = {"mean": mean, "replace": why_not_replaced(arguments.name), "duplicates": arguments.duplicates}
        build(
            arguments.images,
            data_set,
            size,
            {},
            test,
            0.0,
            arguments.split,
            None,
            MAX_POSITIVE_PAIRS,
            arguments.skip_unreadable,
            **options,
        )
    # As the set has them: leaving out duplicates may have emptied a class.
    kept = sorted({row["class"] for _, row in read_rows(data_set / "test.csv", "class")})
    print(f"kept for the report: {len(kept)} classes, such as {', '.join(kept[:3])} ({data_set}/test.csv; SPLIT=)")
    if np.unique(labels_of(data_set / "test.csv"), return_counts=True)[1].max() < 2:
        raise ValueError(
            f"{arguments.images}: no class that is kept for the report has two images, so nothing can be measured; "
            f"SPLIT= and TEST= choose others, once data/{arguments.name} is removed"
        )
    return found, labels_of(data_set / "train.csv")


def plan(arguments, trunk, labels):
    """(kind of plan, images a batch, iterations): what was asked for, and the rest chosen by the training images."""
    plans = methods()[arguments.method].plan
    batch, batches = choose_batch(labels, plans)
    iterations = arguments.iterations or choose_iterations(len(labels), batch, trunk)
    mirrored = "not mirrored" if arguments.no_mirror else "mirrored at random (MIRRORED=no: never)"
    print(f"training: {len(labels):,} images, {batch} a batch ({batches:,} batches), {iterations:,} iterations", flush=True)
    print(f"    {arguments.method} loss, {arguments.dim} dimensions, seed {arguments.seed}, images {mirrored}", flush=True)
    return plans, batch, iterations


def fit(arguments, trunk, size, folder, plans, batch, iterations):
    """Write the plan and the nets, train, and make a model of it."""
    data_set, net = Path("data", arguments.name), folder / "net"
    ensure_plan(data_set, plans, batch)
    mirror, plan_name = not arguments.no_mirror, plan_file(batch, plans)
    method = methods()[arguments.method]
    files = own.files(arguments.name, trunk, method, arguments.dim, size, mirror, plan_name, iterations, net)
    write_nets(folder, files)
    given = {name: getattr(arguments, name) for name in ("seed", "weights", "gpu", "save_minutes", "keep")}
    step("tools/train.py", threads=trunk.threads, solver=net / "solver.prototxt", set=data_set, run=folder, batch=batch, **given)
    step("tools/model_folder.py", set=data_set, run=folder, net=net / "deploy.prototxt")


def score(name, size, folder, again, gpu=None):
    """Features, scores and the report of the run in `folder`."""
    data_set, net, pixels = Path("data", name), folder / "net/deploy.prototxt", folder / "raw_pixels.npz"
    metrics, features, untrained = folder / "metrics.json", folder / "features.npz", folder / "features_untrained.npz"
    with locked(folder, "scoring"):
        for weights, out in (("model", features), ("snapshot_iter_0", untrained)):
            step("tools/extract.py", set=data_set, net=net, weights=folder / f"{weights}.caffemodel", out=out, gpu=gpu)
        baselines = [f"untrained={untrained}"]
        if size % 16 == 0:
            step("tools/extract.py", set=data_set, pixels=16, out=pixels)
            baselines.append(f"raw_pixels={pixels}")
        step("tools/evaluate.py", features=features, out=metrics, baseline=baselines)
        step("tools/compare.py", metrics=metrics, out=folder / "report.md")
        step("tools/report.py", set=data_set, run=folder, out=folder / "report.html", again=again)


def read_arguments():
    """What the person asked for, the Trunk and the size of the images; leaves with a message for what cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=user_path, required=True, help="folder with a folder for each class, or list.csv (DATA)")
    parser.add_argument("--name", required=True, help="of the set: data/<name>, runs/<name> (NAME)")
    parser.add_argument("--method", choices=tuple(methods()), default="lifted", help="the loss (METHOD)")
    parser.add_argument("--dim", type=int, default=64, help="size of the embedding (default 64; DIM)")
    parser.add_argument("--seed", type=int, default=1, help="of the training (default 1; SEED)")
    parser.add_argument("--split", type=int, default=1, help="seed of the split of the classes (default 1; SPLIT)")
    parser.add_argument("--net", choices=tuple(trunks()), help="default: googlenet with --weights, else small (NET)")
    parser.add_argument("--weights", type=user_path, help=".caffemodel to start GoogLeNet from (WEIGHTS)")
    parser.add_argument("--size", type=int, help="pixels a side of the stored images (default 64, GoogLeNet 256; SIZE)")
    parser.add_argument("--iterations", type=int, help="default by the number of training images (ITERS)")
    parser.add_argument("--test", type=float, help=f"share of the classes that is kept for the report (default {TEST}; TEST)")
    parser.add_argument("--no-mirror", action="store_true", help="do not mirror images in training (MIRRORED=no)")
    parser.add_argument("--skip-unreadable", action="store_true", help="pass over files that cannot be decoded (UNREADABLE=skip)")
    parser.add_argument(
        "--duplicates",
        choices=("keep", "drop"),
        default="keep",
        help="drop: leave out images that are in several classes (DUPLICATES)",
    )
    parser.add_argument("--run", help="name of the run's folder (default seed<seed>; RUN)")
    parser.add_argument("--gpu", type=int, metavar="N", help="compute on this GPU, counted from 0 (default the CPU; GPU)")
    parser.add_argument("--save-minutes", type=float, help="minutes after which a training saves a snapshot (SAVE_MINUTES)")
    parser.add_argument("--keep", type=int, help="how many of those snapshots stay (KEEP)")
    parser.add_argument("--again", help="the command that the report shows")
    arguments = parser.parse_args()
    arguments.run = arguments.run or f"seed{arguments.seed}"
    arguments.again = arguments.again or shlex.join([".venv/bin/python", "tools/own.py", *sys.argv[1:]])
    for option, name in (("--name (NAME=)", arguments.name), ("--run (RUN=)", arguments.run)):
        if not re.fullmatch(NAME, name):
            parser.error(f"{option}: {name!r} must be {VARIABLES['NAME'][1]}")
    if arguments.name in TAKEN:
        parser.error(f"--name (NAME=): {arguments.name} is a name of this project's own; give another")
    for option, number in (
        ("--dim (DIM=)", arguments.dim),
        ("--iterations (ITERS=)", arguments.iterations),
        ("--size (SIZE=)", arguments.size),
    ):
        if number is not None and number < 1:
            parser.error(f"{option} must be positive, not {number}")
    if min(arguments.seed, arguments.split) < 0:
        parser.error("--seed (SEED=) and --split (SPLIT=) must not be negative")
    if arguments.test is not None and not 0 < arguments.test < 1:
        parser.error(f"--test (TEST=) must lie between 0 and 1, not {arguments.test}")
    if arguments.weights:
        check_file(arguments.weights)
    trunk, why = choose_net(arguments.net, arguments.weights)
    size = arguments.size or trunk.image
    if size != trunk.image and (trunk.least is None or own.crop_of(trunk, size) < trunk.least):
        taken = trunk.image if trunk.least is None else f"{-(-trunk.least * trunk.image // trunk.crop)} at least"
        parser.error(f"--size {size} (SIZE=): {trunk.title} takes images of {taken}")
    if arguments.weights:
        check_trunk(arguments.weights, trunk)
    print(f"net: {why}", flush=True)
    return arguments, trunk, size


def main():
    arguments, trunk, size = read_arguments()
    found, labels = make_set(arguments, trunk, size)
    plans, batch, iterations = plan(arguments, trunk, labels)
    suffix = "" if batch == OWN_BATCH[plans] else f"_m{batch}"
    folder = Path("runs", arguments.name, f"{arguments.method}_{arguments.dim}{suffix}", arguments.run)
    with locked(folder / "net", "at work"):  # a second call of this run must not write another solver
        fit(arguments, trunk, size, folder, plans, batch, iterations)
        score(arguments.name, size, folder, arguments.again, arguments.gpu)
    print(
        f"report: {folder}/report.html\n"
        f"search: .venv/bin/python tools/search.py index {shlex.quote(str(common_folder(found)))} --model {folder}"
    )


def why_not_replaced(name):
    """Why the set data/<name> must not be replaced by another, and what to do; None where nothing depends on it."""
    made = read_set(Path("data", name))
    if made and made.get("batch", 0) is not None:
        return "`make train` did not make it: give another NAME, or remove it."
    if runs := sorted(Path("runs", name).glob("*/*/run.json")):
        return (
            f"{runs[0].parent} was trained on it: call `make train` as before, give another NAME, or remove data/{name} "
            f"and runs/{name}."
        )
    return None


def common_folder(found):
    """The folder that holds all images of a Folder, for the next command."""
    folders = {os.path.dirname(os.path.abspath(found.root / name)) for names in found.images.values() for name in names}
    return os.path.commonpath(folders)


if __name__ == "__main__":
    run("make train", main)
