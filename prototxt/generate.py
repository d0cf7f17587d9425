"""Writes every committed net and solver from its one definition.

    python prototxt/generate.py            # or: make prototxt

A test regenerates the files and fails on one that differs. Change the definition, never a generated file:

    demo.py        the demo's net and solver
    paper.py       the paper's nets and solvers, three sets times four sizes
    googlenet.py   their trunk
    layers.py      what these share
    text.py        how a message is written, with the reasons above its values
"""

from pathlib import Path

from prototxt import demo, paper
from prototxt.text import render

HERE = Path(__file__).resolve().parent
HEADER = "# Made by `make prototxt` from its definition in prototxt/*.py; change that, not this file.\n"


def files():
    """Path (below prototxt/) -> text of every generated file."""
    messages = {**demo.messages(), **paper.messages()}
    return {path: HEADER + render(message) + "\n" for path, message in messages.items()}


def main():
    for path, text in files().items():
        target = HERE / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
            print(f"prototxt/{path}")


if __name__ == "__main__":
    main()
