"""The verbs of the Makefile and the variables that each takes. The standard library alone: it runs before anything is built.

    python3 tools/verbs.py "train-cub" DIM=128 SEED=2      # refuses what these verbs do not take, or cannot

A variable counts where it was typed behind `make`. One of the environment does not: NAME and TEST are often set there.
"""

import difflib
import re
import sys
from pathlib import Path

WHOLE, POSITIVE, NAME = r"[0-9]{1,9}", r"[1-9][0-9]{0,8}", r"[A-Za-z0-9][A-Za-z0-9._-]*"
LETTERS = "letters, digits, dots, - and _, the first a letter or a digit"
LISTED = "{0}(,{0})*"


def _files(folder):
    """The names of the records in a folder of prototxt/: each is one file."""
    return tuple(sorted(path.stem for path in (Path(__file__).parent.parent / "prototxt" / folder).glob("[a-z]*.py")))


METHODS, NETS = _files("methods"), _files("trunks")
SIZES = ("64", "128", "256", "512")
PAPER = ("cub", "cars196", "sop")

# What a text must be, in a pattern and in words, and what the variable means. None: any text, a path or an address.
VARIABLES = {
    "DATA": (None, "", "folder with a folder of images for each class, or list.csv with the columns path and class"),
    "NAME": (NAME, LETTERS, "what the set is called: data/<NAME>, runs/<NAME>"),
    "NET": ("|".join(NETS), f"one of {', '.join(NETS)}", "the net (default googlenet with WEIGHTS=, else small)"),
    "SIZE": (POSITIVE, "a number of pixels", "pixels a side of the stored images (default 64, for GoogLeNet 256)"),
    "TEST": (r"0?\.[0-9]*[1-9][0-9]*", "above 0 and below 1", "share of the classes kept for the report"),
    "SPLIT": (WHOLE, "a whole number", "seed of the choice of those classes (default 1)"),
    "MIRRORED": ("yes|no", "yes or no", "yes, or no: images are not mirrored in training, as for letters, text and logos"),
    "DUPLICATES": ("keep|drop", "keep or drop", "drop: leave out images that stand in several classes"),
    "METHOD": (
        "|".join((*METHODS, "pool5")),
        f"one of {', '.join(METHODS)}; on the paper's sets also pool5",
        f"the loss: {', '.join(METHODS)} (default lifted)",
    ),
    "DIM": (POSITIVE, "a number of dimensions", "dimensions of the embedding (default 64)"),
    "SEED": (WHOLE, "a whole number", "starting weights, crops, mirrors, dropout (default 1)"),
    "RUN": (NAME, LETTERS, "the run's folder (default seed<SEED>)"),
    "ITERS": (POSITIVE, "a number of iterations", "another length of training"),
    "BATCH": (POSITIVE, "a number of images", "images a batch (default 128, triplet 120)"),
    "SAVE_MINUTES": (r"[0-9]{1,6}(\.[0-9]+)?", "a number of minutes", "minutes between snapshots of a training (default 30)"),
    "KEEP": (POSITIVE, "a number of snapshots", "how many of those snapshots stay (default 2)"),
    "GPU": (WHOLE, "the number of a GPU, from 0", "the GPU that trains and extracts, from 0 (default: the CPU)"),
    "RECIPE": ("paper|authors", "paper or authors", "authors: CUB's 40,000 iterations instead of the paper's 20,000"),
    "ARCHIVE": (None, "", "the set's file where you have it, or a folder that holds it"),
    "WEIGHTS": (None, "", "a .caffemodel to start from"),
    "RESIZE": ("plain|crop15", "plain or crop15", "the whole image, or the authors' crop"),
    "COUNTS": ("any", "any, or left out", "any: go on with other files, images or classes than the published ones"),
    "UNREADABLE": ("skip", "skip, or left out", "skip: pass over images that cannot be decoded"),
    "LAYOUT": ("paired", "paired, or left out", "paired: also the authors' LMDB, for stock Data layers"),
    "HOLDOUT": ("1", "1, or left out", "1: score a tenth of the training classes, held out"),
    "METHODS": (
        LISTED.format(f"({'|'.join((*METHODS, 'pool5'))})"),
        f"of {', '.join(METHODS)}, pool5; comma-separated",
        "losses of a sweep",
    ),
    "DIMS": (LISTED.format(POSITIVE), "numbers, comma-separated", "dimensions of a sweep"),
    "SEEDS": (LISTED.format(WHOLE), "numbers, comma-separated", "seeds of a sweep"),
    "BATCHES": (LISTED.format(POSITIVE), "numbers, comma-separated", "images a batch of a sweep"),
    "ENGINE": ("local|slurm", "local or slurm", "where the cells of a sweep run"),
    "PARTITION": (NAME, "the name of a partition", "of the cluster"),
    "ACCOUNT": (r"[^\s-]\S*", "the name of an account", "on the cluster"),
    "GPUS": (WHOLE, "a number of GPUs", "GPUs a cell, on the cluster"),
    "CPUS": (POSITIVE, "a number of cores", "cores a cell, on the cluster"),
    "MINUTES": (POSITIVE, "a number of minutes", "length of a job on the cluster, or of the soak"),
    "REPORT": (None, "", "the report to open"),
    "MIRROR": (None, "", "a Debian archive to fetch Caffe's source from"),
    "PYCAFFE": (None, "", "a pycaffe that is built"),
    "CAFFE_SRC": (None, "", "a checkout of BVLC's Caffe, to build"),
    "CUDA_ARCH": (None, "", "the GPUs to build for, such as 90"),
    "CUDNN": (None, "", "1: build with cuDNN"),
    "MARCH": (None, "", "the CPU to build for"),
    "PLAIN": (None, "", "1: build without what is only faster"),
    "SCRATCH": (None, "", "the folder to build in"),
}

CAFFE = "PYCAFFE CAFFE_SRC GPU CUDA_ARCH CUDNN MARCH PLAIN"  # which Caffe: said to `make env` alone, which remembers it
TRAINING = "METHOD DIM SEED RUN ITERS SAVE_MINUTES KEEP GPU"
SET = "ARCHIVE RESIZE COUNTS UNREADABLE LAYOUT"
SWEEP = "SEEDS ITERS SAVE_MINUTES KEEP GPU ENGINE PARTITION ACCOUNT GPUS CPUS MINUTES"


def _verbs():
    takes = {
        "help": "",
        "check": "",
        "test": "",
        "test-slurm": "",
        "test-faults": "",
        "lint": "",
        "prototxt": "",
        "figures": "",
        "bench": "",
        "bench-eval": "",
        "env": CAFFE,
        "soak": "MINUTES",
        "test-gpu-build": "CUDA_ARCH CUDNN SCRATCH",
        "test-layers": "SCRATCH",
        "check-report": "REPORT",
        "weights": "WEIGHTS",
        "train": f"DATA NAME NET WEIGHTS SIZE TEST SPLIT MIRRORED DUPLICATES UNREADABLE {TRAINING}",
        "data-demo": "HOLDOUT",
        "train-demo": f"HOLDOUT {TRAINING}",
        "demo": f"HOLDOUT {TRAINING}",
        "demo-all": f"HOLDOUT METHODS DIMS {SWEEP}",
    }
    for name in PAPER:
        recipe = " RECIPE" if name == "cub" else ""  # the authors' is the paper's on the other sets
        takes[f"data-{name}"] = f"{SET} BATCH"
        takes[f"train-{name}"] = f"{SET} BATCH WEIGHTS {TRAINING}{recipe}"
        takes[f"report-{name}"] = f"METHOD DIM SEED RUN BATCH{recipe}"
        takes[f"compare-{name}"] = ""
        takes[f"reproduce-{name}"] = f"{SET} BATCH WEIGHTS METHODS DIMS {SWEEP}{recipe}"
        if name != "sop":
            takes[f"ablation-{name}"] = f"{SET} WEIGHTS DIM BATCHES {SWEEP}{recipe}"
    return {verb: (*names.split(), *(("MIRROR",) if verb not in ("help", "check") else ())) for verb, names in takes.items()}


VERBS = _verbs()
REQUIRED = {"train": ("DATA", "NAME")}


def read(words):
    """{name: text} of words such as DIM=128; a variable without a text is one that was not given."""
    return {name: text for name, text in (word.split("=", 1) for word in words) if text}


def wrong(verbs, given):
    """What is wrong with a call of these verbs with these variables, in words; None where nothing is."""
    called = f"make {' '.join(verbs)}"
    if "env" in verbs and len(verbs) > 1 and set(given) & set(CAFFE.split()):
        return "which Caffe it is to be is said in a call of its own, and remembered: make env " + next(iter(given)) + "=..."
    taken = [name for verb in verbs for name in VERBS.get(verb, ())]
    for name, text in given.items():
        if name not in taken:
            others = [verb for verb, names in VERBS.items() if name in names]
            near = difflib.get_close_matches(name, taken, 1)
            hint = f"did you mean {near[0]}=?" if near and not others else f"it takes {', '.join(taken)}"
            return f"{name}= does nothing in {called}; {hint}"
        pattern, words, _ = VARIABLES[name]
        if "env" not in verbs and pattern and not re.fullmatch(pattern, text):
            return f"{name}={text}: must be {words}"
    paper = [verb for verb in verbs if verb.rpartition("-")[2] in PAPER]
    if "pool5" in f"{given.get('METHOD')},{given.get('METHODS')}".split(",") and not paper:
        return "pool5: GoogLeNet as it was pretrained is scored on the paper's sets: make train-cub METHOD=pool5"
    sizes = {*given.get("DIM", "64").split(","), *given.get("DIMS", "64").split(",")}
    if sizes - set(SIZES) and verbs != ["train"]:
        return f"DIM={min(sizes - set(SIZES))}: the nets have {', '.join(SIZES)} dimensions; make train takes any number"
    for verb in verbs:
        if lacking := [name for name in REQUIRED.get(verb, ()) if name not in given]:
            lines = [f"  {name + '=':14}{VARIABLES[name][2]}" for name in VERBS[verb]]
            return f"make {verb} needs {'= and '.join(lacking)}=. It takes:\n" + "\n".join(lines)
    return None


def main():
    verbs, given = sys.argv[1].split(), read(sys.argv[2:])
    if problem := wrong(verbs or ["help"], given):
        sys.exit(f"make: {problem}")


if __name__ == "__main__":
    main()
