"""The paper's figure 4: where the contrastive and the triplet loss push a positive the wrong way and the lifted one does not.

    .venv/bin/python tools/gradient_figure.py --out runs/figures/gradients.png

Three classes in the plane, laid out to show it. The contrastive and the triplet loss see a few edges of the batch, drawn
by chance and unluckily; the lifted structured loss sees all. Each arrow is the direction of the negative gradient on the
positive, computed from these points, never drawn by hand; the arrows' lengths are made equal.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt

from data_prep.files import require_writable, written_aside
from lifted_structured_loss import lifted_structured_loss
from triplet_loss import triplet_loss

MARGIN = 1.0
POINTS = np.array([
    [0.0, 0.0], [0.92, -0.06], [-0.18, 0.52], [-0.45, 0.60],  # the positive that the picture is about, and its class
    [-0.27, -0.12], [-0.49, -0.14], [-0.40, -0.33],  # a second class
    [0.33, 0.02], [0.35, -0.17], [0.52, 0.04], [0.55, -0.14],  # a third, of which the drawn edges have none
])  # fmt: skip
LABELS = np.array([0] * 4 + [1] * 3 + [2] * 4)
POSITIVE, ANCHOR, NEGATIVE = 0, 1, 4
THIRD = np.flatnonzero(LABELS == 2)
PAIRS = [(ANCHOR, POSITIVE, 1), (POSITIVE, NEGATIVE, 0)]  # what the contrastive loss drew: (i, j, of one class)
TRIPLETS = [(ANCHOR, POSITIVE, NEGATIVE)]  # and the triplet loss: (anchor, positive, negative)

STYLES = (("#8c510a", "o", "class of the positive"), ("#009e73", "s", "second class"), ("#7b3294", "h", "third class"))
ARROW = "#d6006c"
STEP = 0.42  # length of an arrow


def contrastive_loss(x, pairs, margin=MARGIN):
    """Equation 1 over pairs (i, j, y) of the points x (m, c): loss, gradient (m, c). A pair's two images count as two.

    loss = 1/(2 n) sum of y D^2 + (1 - y) max(0, margin - D)^2
    """
    loss, gradient = 0.0, np.zeros_like(x)
    for i, j, same in pairs:
        difference = x[i] - x[j]
        distance = np.linalg.norm(difference)
        short = max(0.0, margin - distance)
        loss += distance**2 if same else short**2
        push = 2 * difference if same else -2 * short * difference / distance
        gradient[i] += push
        gradient[j] -= push
    return loss / (2 * len(pairs)), gradient / (2 * len(pairs))


def by_triplets(x, triplets):
    """Equation 2 over triplets (anchor, positive, negative) of the points x (m, c): loss, gradient (m, c)."""
    rows = np.array(triplets).T.ravel()
    labels = np.repeat([0, 0, 1], len(triplets))
    loss, push = triplet_loss(x[rows], labels, MARGIN)
    gradient = np.zeros_like(x)
    np.add.at(gradient, rows, push)
    return loss, gradient


class Panel(NamedTuple):
    title: str
    edges: list  # (i, j) that the loss sees
    arrows: np.ndarray  # (m, 2) the negative gradient


def panels():
    """The three Panels of the picture."""
    every = [(i, j) for i in range(len(POINTS)) for j in range(i)]
    ends = [(i, j) for i, j, _ in PAIRS]
    sides = [edge for a, p, n in TRIPLETS for edge in ((a, p), (a, n))]
    return [Panel("Contrastive, equation 1", ends, -contrastive_loss(POINTS, PAIRS)[1]),
            Panel("Triplet, equation 2", sides, -by_triplets(POINTS, TRIPLETS)[1]),
            Panel("Lifted structured, equation 4", every, -lifted_structured_loss(POINTS, LABELS, MARGIN)[1])]  # fmt: skip


def towards_third(arrow):
    """Cosines between an arrow on the positive and the directions to each point of the third class."""
    ways = POINTS[THIRD] - POINTS[POSITIVE]
    return ways @ arrow / (np.linalg.norm(ways, axis=1) * np.linalg.norm(arrow))


def draw(path):
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.9))
    for axis, panel in zip(axes, panels()):
        few = len(panel.edges) < 5
        for i, j in panel.edges:
            same, near = LABELS[i] == LABELS[j], few or POSITIVE in (i, j)
            axis.plot(*POINTS[[i, j]].T, color="#444444", linestyle="-" if same else (0, (4, 3)), linewidth=1.3 if near else 0.5,
                      alpha=0.8 if near else 0.25, zorder=1)  # fmt: skip
        for label, (colour, marker, name) in enumerate(STYLES):
            axis.scatter(*POINTS[label == LABELS].T, s=90, color=colour, marker=marker, edgecolor="white", label=name, zorder=3)
        arrow = panel.arrows[POSITIVE]
        axis.annotate("", POINTS[POSITIVE] + STEP * arrow / np.linalg.norm(arrow), POINTS[POSITIVE], zorder=5,
                      arrowprops={"arrowstyle": "-|>", "color": ARROW, "shrinkA": 0, "shrinkB": 0, "linewidth": 3,
                                  "mutation_scale": 20})  # fmt: skip
        cosines = towards_third(arrow)
        axis.set_title(panel.title, fontsize=11, fontweight="bold")
        way = "towards" if cosines.min() > 0 else "away from" if cosines.max() < 0 else "neither to nor from"
        axis.set_xlabel(f"moves the positive {way} the third class", fontsize=9.5)
        for place, name in ((POSITIVE, "positive"), (ANCHOR, "anchor"), (NEGATIVE, "negative")):
            axis.annotate(name, POINTS[place], (0, -13), textcoords="offset points", fontsize=8.5, ha="center", color="#333333")
        axis.set(xlim=(-0.68, 1.1), ylim=(-0.52, 0.78), aspect="equal", xticks=[], yticks=[])
        axis.spines[:].set_color("#cccccc")
    handles, names = axes[0].get_legend_handles_labels()
    handles += [plt.Line2D([], [], color="#444444"), plt.Line2D([], [], color="#444444", linestyle=(0, (4, 3))),
                plt.Line2D([], [], color=ARROW, linewidth=3)]  # fmt: skip
    names += ["edge within a class", "edge between classes", "negative gradient, direction"]
    figure.legend(handles, names, loc="lower center", ncols=6, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1), w_pad=1.5)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/figures/gradients.png"), help="picture to write")
    arguments = parser.parse_args()
    require_writable(arguments.out)
    draw(arguments.out)
    print(f"{arguments.out}: negative gradients of three losses on the same points")


if __name__ == "__main__":
    run("gradient_figure", main)
