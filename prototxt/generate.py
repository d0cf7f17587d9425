"""Writes the nets and solvers from their one definition.

    .venv/bin/python prototxt/generate.py                       # or: make prototxt; all that are committed or there
    .venv/bin/python prototxt/generate.py cub/contrastive_128   # others: one folder, which git ignores

Committed are the lifted loss in every size, and contrastive and triplet in 64, from which another size differs in one
number. A test regenerates the files and fails on one that differs. Change the definition, never a generated file:

    methods/, trunks/   a file for each loss and each net
    nets.py             how they make a net; layers.py, the layers that they share
    solvers.py          the solvers
    text.py             how a message is written, with the reasons above its values
"""

import sys
from itertools import product
from pathlib import Path

from data_prep.files import written_aside  # not found? Run this with .venv/bin/python (make env)
from prototxt import nets, solvers
from prototxt.records import methods, trunks
from prototxt.text import render

SETS = ("cub", "cars196", "sop")  # the paper's
SIZES = (64, 128, 256, 512)
HERE = Path(__file__).resolve().parent
HEADER = "# Made by `make prototxt` from its definition in prototxt/*.py; change that, not this file.\n"


def is_committed(path):
    """Whether the file at `path` (below prototxt/) is committed."""
    folder = path.split("/")[1]
    return folder.endswith("_64") or (folder.startswith("lifted_") and not path.startswith("demo/"))


def messages():
    """Path (below prototxt/) -> message of every file, of every set, method and size."""
    googlenet, small = trunks()["googlenet"], trunks()["small"]
    found = {}
    for method, size in product(methods().values(), SIZES):
        folder = f"demo/{method.name}_{size}"
        made = {**nets.demo(method, small, size), "solver.prototxt": solvers.demo(method, size)}
        found |= {f"{folder}/{name}": message for name, message in made.items()}
        for data_set in SETS:
            made = {**nets.paper(data_set, method, googlenet, size), "solver.prototxt": solvers.paper(data_set, method, size)}
            if "train_val_paired.prototxt" in made:
                made["solver_paired.prototxt"] = solvers.paired(data_set, method, size)
            if data_set == "cub":
                made["solver_authors.prototxt"] = solvers.authors(method, size)
            found |= {f"{data_set}/{method.name}_{size}/{name}": message for name, message in made.items()}
    return found


def files():
    """Path (below prototxt/) -> text of every file, committed or not."""
    return {path: HEADER + render(message) + "\n" for path, message in messages().items()}


def ensure_net(folder):
    """Write the files of `folder`, such as cub/contrastive_128, where they are not there yet."""
    if not (HERE / folder / "solver.prototxt").exists():
        main([folder])


def main(folders):
    every = files()
    known = sorted({path.rsplit("/", 1)[0] for path in every})
    if unknown := [folder for folder in folders if folder not in known]:
        sys.exit(f"generate: there is no net {unknown[0]}; there are {', '.join(known)}")
    for path, text in every.items():
        target, folder = HERE / path, path.rsplit("/", 1)[0]
        if not folders and not is_committed(path) and not target.exists():
            continue
        if (not folders or folder in folders) and (not target.exists() or target.read_text() != text):
            with written_aside(target) as aside:
                aside.write_text(text)
            print(f"prototxt/{path}")


if __name__ == "__main__":
    main(sys.argv[1:])
