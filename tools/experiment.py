"""What the verbs of the Makefile do: from the images to the plan, the training, the features, the scores and the tables.

    .venv/bin/python tools/experiment.py train-cub DIM=128 SEED=2      # as make train-cub DIM=128 SEED=2

Each stage is one of the project's own commands and passes over what is finished, so the same call goes on where it was. What
a person typed reaches a command as one word of its own: no shell and no make reads it again.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from data_prep.batch_plan import OWN_BATCH
from data_prep.files import user_path
from prototxt.records import methods, trunks
from tools import verbs
from tools.caffe_files import check_trunk

# The K of Recall@K that the literature reports for each set.
KS = {"cub": "1,2,4,8", "cars196": "1,2,4,8", "sop": "1,10,100,1000"}
BVLC = "data/bvlc_googlenet.caffemodel"


def step(script, *words, threads=None, **options):
    """Run one of the project's commands, and leave with its status when it fails.

    An option of None or False is left out, one of True stands alone, one that is a list is given once for each. Ctrl+C and
    SIGTERM are the command's to answer; when it ends well all the same, the next one is not begun.
    """
    command = [sys.executable, script, *map(str, words)]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            command.append(option)
        elif value is not None and value is not False:
            command += [f"{option}={one}" for one in (value if isinstance(value, list) else [value])]
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


def again(given, *called):
    """The command that does it once more: these verbs, with what they take of what was given."""
    taken = {name for verb in called for name in verbs.VERBS[verb]}
    return shlex.join(["make", *called, *(f"{name}={text}" for name, text in given.items() if name in taken)])


class Experiment:
    """A run of one method on one set: its folders, and the stages that make it. `given`: {variable: text}, checked."""

    def __init__(self, name, given):
        self.given, self.net_of = given, name
        self.set = f"{name}_holdout" if "HOLDOUT" in given else name
        self.data = Path("data", self.set)
        self.method, self.dim = given.get("METHOD", "lifted"), given.get("DIM", "64")
        self.plans = "pairs" if self.method == "pool5" else methods()[self.method].plan
        self.batch = int(given.get("BATCH", OWN_BATCH[self.plans]))
        self.authors = given.get("RECIPE") == "authors"
        self.seed = given.get("SEED", "1")
        name = given.get("RUN") or f"{'authors_' * self.authors}seed{self.seed}"
        suffix = "" if self.batch == OWN_BATCH[self.plans] else f"_m{self.batch}"
        self.folder = Path("runs", self.set, f"{self.method}_{self.dim}{suffix}", name)
        if self.method == "pool5":
            self.folder = Path("runs", self.set, "pool5_1024", "pretrained")
        self.net = Path("prototxt", self.net_of, "lifted_64" if self.method == "pool5" else f"{self.method}_{self.dim}")
        self.gpu = given.get("GPU")

    def fit(self, threads=None, **start):
        """The net, the batch plan and the training."""
        if not (self.net / "solver.prototxt").exists():
            step("prototxt/generate.py", self.net.relative_to("prototxt"))
        step("data_prep/batch_plan.py", set=self.data, kind=self.plans, batch=self.batch)
        solver = self.net / ("solver_authors.prototxt" if self.authors else "solver.prototxt")
        more = {
            "iterations": self.given.get("ITERS"),
            "save_minutes": self.given.get("SAVE_MINUTES"),
            "keep": self.given.get("KEEP"),
        }
        given = {"set": self.data, "run": self.folder, "seed": self.seed, "gpu": self.gpu, **more, **start}
        step("tools/train.py", threads=threads, solver=solver, **given)

    def newer(self, name, *sources):
        """Whether the file `name` of the run's folder is there and not older than `sources`."""
        path = self.folder / name
        return path.exists() and all(path.stat().st_mtime >= Path(source).stat().st_mtime for source in sources)

    def model_folder(self):
        step("tools/model_folder.py", run=self.folder, set=self.data, net=self.net / "deploy.prototxt")

    def figures(self):
        features, picture = self.folder / "features.npz", self.folder / "retrieval.png"
        if not self.newer(picture.name, features, self.folder / "metrics.json"):
            step("tools/figures.py", set=self.data, features=features, out=picture)


class Demo(Experiment):
    """The emoji drawings and the small net."""

    def make_data(self):
        holdout = 0.1 if "HOLDOUT" in self.given else None
        step("data_prep/demo_images.py")
        source = {"images": "data/demo/images", "groups": "data/demo/groups.csv"}
        step("data_prep/build_set.py", **source, size=64, out=self.data, holdout=holdout)
        for method in verbs.METHODS:  # stock `caffe train` aborts when the folder of its snapshots is missing
            Path("runs", self.set, f"{method}_{self.dim}", "caffe").mkdir(parents=True, exist_ok=True)

    def raw_pixels(self):
        found = Path("runs", self.set, "raw_pixels.npz")
        step("tools/extract.py", set=self.data, pixels=16, out=found)
        return found

    def cell(self):
        """From the set to the scores."""
        self.fit(threads=trunks()["small"].threads)
        features, untrained = self.folder / "features.npz", self.folder / "features_untrained.npz"
        for name, out in (("model", features), ("snapshot_iter_0", untrained)):
            weights = self.folder / f"{name}.caffemodel"
            step("tools/extract.py", set=self.data, net=self.net / "deploy.prototxt", weights=weights, out=out, gpu=self.gpu)
        baselines = [f"raw_pixels={self.raw_pixels()}", f"untrained={untrained}"]
        step("tools/evaluate.py", features=features, out=self.folder / "metrics.json", baseline=baselines)

    def whole(self):
        self.make_data()
        self.cell()
        self.figures()
        metrics, page = self.folder / "metrics.json", self.folder / "report.html"
        step("tools/compare.py", metrics=metrics, out=self.folder / "report.md")
        if not self.newer(page.name, self.folder / "features.npz", metrics, "tools/report.py", "tools/report_template.html"):
            step("tools/report.py", run=self.folder, set=self.data, out=page, again=again(self.given, "demo"))
        self.model_folder()
        print(f"report: {page}    picture: {self.folder / 'retrieval.png'}    numbers: {metrics}")


class Paper(Experiment):
    """One of the paper's sets and GoogLeNet."""

    def weights(self):
        given = self.given.get("WEIGHTS")
        step("data_prep/imagenet.py", weights=given)
        if given:
            check_trunk(user_path(given), trunks()["googlenet"])

    def make_data(self):
        get = self.given.get
        batch, skip = (get("BATCH") if self.plans == "pairs" else None), "UNREADABLE" in self.given
        options = {name.lower(): get(name) for name in ("ARCHIVE", "RESIZE", "COUNTS", "LAYOUT")}
        step("data_prep/paper_sets.py", set=self.set, batch=batch, skip_unreadable=skip, **options)
        for dim in verbs.SIZES:  # stock `caffe train` aborts when the folder of its snapshots is missing
            for method in verbs.METHODS:
                Path("runs", self.set, f"{method}_{dim}", "caffe").mkdir(parents=True, exist_ok=True)

    def cell(self):
        """From the set to the scores."""
        start, features = self.given.get("WEIGHTS", BVLC), {}
        if self.method == "pool5":
            features = {"weights": start, "blob": "pool5/7x7_s1"}
        else:
            self.fit(weights=start, batch=self.batch)
        deploy = self.net / "deploy.prototxt"
        step("tools/score.py", run=self.folder, set=self.data, net=deploy, ks=KS[self.set], gpu=self.gpu, **features)

    def whole(self):
        self.weights()
        self.make_data()
        self.cell()
        self.figures()
        table = self.folder / "report.md"
        step("tools/compare.py", "--metrics", *sorted(self.folder.glob("metrics*.json")), published=self.set, out=table)
        said = ""
        if self.method != "pool5":
            self.model_folder()
            said = f"    training: {self.folder / 'log.csv'}"
        page = again(self.given, f"report-{self.set}")
        print(f"report: {table} ({page} makes a page of it)    picture: {self.folder / 'retrieval.png'}{said}")

    def report(self):
        command = again(self.given, f"train-{self.set}", f"report-{self.set}")
        step("tools/report.py", run=self.folder, set=self.data, out=self.folder / "report.html", again=command)

    def compare(self):
        runs = Path("runs", self.set)
        step("tools/compare.py", runs=runs, published=self.set, out=runs / "report.md")
        step("tools/plots.py", runs=runs, published=self.set, out=runs / "curves.png")


def sweep(experiment, losses, dims, seeds, batches=None):
    """Cells of a sweep, side by side as -j says. What is the same for all cells goes to each as it was typed."""
    get = experiment.given.get
    jobs = re.search(r"(?:^| )-j(\d*)", os.environ.get("MAKEFLAGS", ""))
    shared = ("ITERS", "RECIPE", "WEIGHTS", "GPU", "SAVE_MINUTES", "KEEP")
    options = {name.lower(): get(name) for name in ("ENGINE", "PARTITION", "ACCOUNT", "GPUS", "CPUS", "MINUTES")}
    options |= {"with": [f"{name}={get(name)}" for name in shared if get(name)], "jobs": (jobs[1] or os.cpu_count()) if jobs else 1}
    options |= {"methods": get("METHODS", losses), "seeds": get("SEEDS", seeds)}
    step("tools/sweep.py", set=experiment.set, dims=dims, batches=batches, **options)


def own_images(given):
    """make train: tools/own.py with what was given, under the names of its own options."""
    names = {"DATA": "images", "ITERS": "iterations"}
    apart = ("MIRRORED", "UNREADABLE", "MIRROR")
    asked = {names.get(name, name.lower()): text for name, text in given.items() if name not in apart}
    no_mirror, skip = given.get("MIRRORED") == "no", "UNREADABLE" in given
    step("tools/own.py", **asked, no_mirror=no_mirror, skip_unreadable=skip, again=again(given, "train"))


def do(verb, given):
    """One verb of the Makefile."""
    if "GPU" in given and given.get("ENGINE") != "slurm":
        step("tools/device.py", given["GPU"])  # is there one? Asked before hours of other work
    what, _, name = verb.partition("-")
    if verb == "train":
        own_images(given)
    elif name in verbs.PAPER:
        experiment = Paper(name, given)
        if what in ("reproduce", "ablation"):
            experiment.weights()
            experiment.make_data()
        if what == "reproduce":
            sweep(experiment, ",".join((*methods(), "pool5")), given.get("DIMS", ",".join(verbs.SIZES)), "1", given.get("BATCH"))
        elif what == "ablation":
            sweep(experiment, "lifted", experiment.dim, "1", given.get("BATCHES", "32,48,64,128"))
        else:
            stages = {"data": experiment.make_data, "train": experiment.whole, "report": experiment.report}
            {**stages, "cell": experiment.cell, "compare": experiment.compare}[what]()
    elif verb == "weights":
        Paper("cub", given).weights()
    else:
        demo = Demo("demo", given)
        if verb == "train-demo":
            demo.make_data()
            demo.fit(threads=trunks()["small"].threads)
        elif verb == "demo-all":
            demo.make_data()
            demo.raw_pixels()
            sweep(demo, ",".join(methods()), given.get("DIMS", "64"), "1,2,3")
        else:
            {"data-demo": demo.make_data, "demo": demo.whole, "cell-demo": demo.cell}[verb]()


def main():
    do(sys.argv[1], verbs.read(sys.argv[2:]))


if __name__ == "__main__":
    run("make", main)
