"""Curves: our runs beside the published figures, like the paper's figures 5, 6 and 9; and how a training went.

    .venv/bin/python tools/plots.py --runs runs/cub --published cub --out runs/cub/curves.png
    .venv/bin/python tools/plots.py --log runs/cub/lifted_64/seed1/log.csv --out training.png

F1 and NMI against the size of the embedding, Recall@K against K, for every method that has finished runs; the mean over
its seeds, with whiskers from the lowest to the highest. Published figures are open marks with dashed lines.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import io
import textwrap
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt

from data_prep.files import read_rows, require_writable, written_aside
from prototxt.records import methods
from tools.published import METHODS, cite, is_rerun, own_batch, read_published, title
from tools.runs import finished_runs, grouped, set_of

BLUE, GREEN, VERMILLION, GREY = "#0072b2", "#009e73", "#d55e00", "#767676"  # Okabe and Ito's palette, and grey
STYLES = {name: method.style for name, method in methods().items()}
OTHER_STYLES = (("#cc79a7", "D"), ("#a07000", "v"), ("#3a3a3a", "P"))
BASELINES = {"raw_pixels": "raw pixels, 16x16", "untrained": "the net, untrained"}
LOOK = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4", "axes.edgecolor": "#888888", "legend.frameon": False,
    "svg.hashsalt": "lifted",
}  # fmt: skip
LOGGED = ("iteration", "loss", "positive_min", "positive_mean", "positive_max", "negative_min", "active")  # what is drawn of it
SMOOTHED = 50  # the smoothed loss is the mean over this part of the training


class Series(NamedTuple):
    """A line of a panel."""

    label: str
    points: dict  # x: [percent of each seed]
    style: dict  # for matplotlib


class Curves(NamedTuple):
    """The lines of the three panels, and the sources that the labels' numbers stand for."""

    f1: list
    nmi: list
    recall: list
    dimensions: int | None  # of our runs in the panel of Recall@K
    sources: list
    official: bool  # whether all of our runs are of the official set, as far as is known


def gather(runs, published, dimensions=None):
    """The Curves of a set's finished runs (tools/runs.py) and published rows (tools/published.py).

    `dimensions`: of our runs in the panel of Recall@K; the largest unless named. Runs of another batch than their
    method's own are left to the table of batch sizes.
    """
    experiments = [one for one in grouped(runs) if one["batch"] == own_batch(one["method"])]
    sizes = [one["dimensions"] for one in experiments if one["dimensions"]]
    dimensions = dimensions or max(sizes, default=None)
    styles = _styles(experiments)
    official = all(set_of(metrics).get("official") is not False for one in experiments for metrics in one["runs"])
    curves = Curves([], [], [], dimensions, [], official)
    for panel, name in ((curves.f1, "f1"), (curves.nmi, "nmi")):
        lines = {}
        for one in experiments:
            if one["dimensions"]:
                lines.setdefault(_label(one), {})[one["dimensions"]] = [100 * metrics[name] for metrics in one["runs"]]
        panel += [Series(label, points, styles[label]) for label, points in lines.items()]
    baselines = {}
    for one in experiments:
        if one["dimensions"] == dimensions:
            ks = sorted(set.intersection(*(set(metrics["recall_at"]) for metrics in one["runs"])), key=int)
            points = {int(k): [100 * metrics["recall_at"][k] for metrics in one["runs"]] for k in ks}
            curves.recall.append(Series(_label(one), points, styles[_label(one)]))
        for metrics in one["runs"]:
            baselines |= metrics["baselines"]
    for number, (name, row) in enumerate(baselines.items()):
        style = {"color": GREY, "marker": "x+*"[number % 3], "linestyle": ":", "markersize": 5}
        points = {int(k): [100 * share] for k, share in row["recall_at"].items()}
        curves.recall.append(Series(BASELINES.get(name, name), points, style))
    for row in published:
        if row["method"] not in METHODS or row["batch"] not in (None, own_batch(row["method"])) or is_rerun(row):
            continue
        colour, marker = STYLES[row["method"]]
        label = f"published: {title(row)} {cite(row, curves.sources)}"
        style = {"color": colour, "marker": marker, "fillstyle": "none" if row["network"] == "GoogLeNet" else "bottom",
                 "linestyle": (0, (4, 3)), "linewidth": 0.9, "markersize": 7}  # fmt: skip
        if row["dimensions"] is None:  # a line across all sizes
            style |= {"marker": "_", "markersize": 11, "linestyle": (0, (1, 1.5)), "linewidth": 1.3}
        for panel, name in ((curves.f1, "f1"), (curves.nmi, "nmi")):
            if row[name] is not None:
                panel.append(Series(label, {row["dimensions"]: [float(row[name])]}, style))
        if row["recall_at"]:
            curves.recall.append(Series(label, {int(k): [float(value)] for k, value in row["recall_at"].items()}, style))
    return curves


def _label(experiment):
    """The title of an experiment without its size and its number of runs."""
    method, size = experiment["method"], experiment["dimensions"] or ""
    rest = experiment["title"].removeprefix(f"{method} {size}".strip()).removesuffix(f", {len(experiment['runs'])} runs")
    return f"ours: {method}{rest}"


def _styles(experiments):
    """A style for each line of ours: colour and mark tell the method, the line its recipe."""
    styles, others, recipes = {}, iter(OTHER_STYLES * len(experiments)), {}
    known = dict(STYLES)
    for one in experiments:
        method, label = one["method"], _label(one)
        if method not in known:
            known[method] = next(others)
        if label not in styles:
            colour, marker = known[method]
            number = recipes[method] = recipes.get(method, -1) + 1
            styles[label] = {"color": colour, "marker": marker, "markersize": 5.5, "linestyle": ("-", "--", "-.", ":")[number % 4]}
    return styles


def panels_of(curves):
    """The names of the panels that say more than a table: those against the size need two sizes, or something published."""
    wide = [name for name, panel in (("F1", curves.f1), ("NMI", curves.nmi)) if len({x for line in panel for x in line.points}) > 1]
    return [*wide, "Recall@K"]


def draw_panel(axis, name, curves):
    """The lines of F1 or NMI against the size, or of Recall@K against K, both on log axes."""
    panel = {"F1": curves.f1, "NMI": curves.nmi, "Recall@K": curves.recall}[name]
    for series in panel:
        if None in series.points:  # a figure without a size
            axis.axhline(series.points[None][0], label=series.label, **{**series.style, "marker": ""})
            continue
        x = np.array(sorted(series.points))
        middle = np.array([np.mean(series.points[place]) for place in x])
        ends = np.array([[np.min(series.points[place]), np.max(series.points[place])] for place in x])
        several = any(len(values) > 1 for values in series.points.values())
        whiskers = {"yerr": np.abs(ends - middle[:, None]).T, "capsize": 3} if several else {}
        axis.errorbar(x, middle, label=series.label, **whiskers, **series.style)
    ticks = sorted({x for series in panel for x in series.points if x is not None})
    axis.set_xscale("log", base=2 if name != "Recall@K" else 10)
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.margins(x=0.08)
    ours = f" (ours: {curves.dimensions} dimensions)" if name == "Recall@K" and curves.dimensions else ""
    axis.set(title=f"{name}, %{ours}", xlabel="K" if name == "Recall@K" else "dimensions of the embedding")


def labels(curves):
    """{label, in lines that fit a panel: its Series} of all panels, the published ones last."""
    lines = {series.label: series for panel in (curves.recall, curves.nmi, curves.f1) for series in panel}
    lines = sorted(lines.values(), key=lambda series: series.label.startswith("published"))
    return {textwrap.fill(series.label, 52): series for series in lines}


def draw_legend(axis, curves, notes=True):
    """The labels of all lines in one column, published ones last, and the notes on them, in an axis of its own."""
    lines = labels(curves)
    handles = [axis.plot([], [], **series.style)[0] for series in lines.values()]
    axis.axis("off")
    legend = axis.legend(handles, lines, loc="upper left", fontsize=8.5,
                         borderaxespad=0, handlelength=3.2, labelspacing=0.7)  # fmt: skip
    if notes:
        text = [] if curves.official else ["NOT THE OFFICIAL SET: not to be compared with published figures."]
        text += [f"[{number}] {source}" for number, source in enumerate(curves.sources, 1)]
        axis.figure.canvas.draw()
        bottom = axis.transAxes.inverted().transform(legend.get_window_extent())[0, 1]
        axis.text(0, bottom - 0.04, "\n".join(textwrap.fill(line, 80) for line in text), fontsize=6, color="#444444", va="top",
                  transform=axis.transAxes)  # fmt: skip


def read_log(path):
    """{column: (n,) numbers, NaN where a row has none} of a run's log.csv; empty where there is none or nothing in it."""
    if not path.exists():
        return {}
    try:
        rows = [row for _, row in read_rows(path, *LOGGED)] if path.stat().st_size else []
        log = {name: np.array([float(row[name] or "nan") for row in rows]) for name in LOGGED} if rows else {}
        if log and not np.isfinite([log["iteration"], log["loss"]]).all():
            raise ValueError("an iteration or a loss is not finite")
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}); remove it, the other files of the run do not need it") from None
    return log


def smooth(values, window):
    """The mean of the `window` values around each, of fewer at the ends."""
    sums, counts = (np.convolve(these, np.ones(window))[window // 2 :][: len(values)] for these in (values, np.ones(len(values))))
    return sums / counts


def _iterations(axis):
    """A horizontal axis of few round numbers."""
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, integer=True))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_xlabel("iteration")


def draw_loss(axis, log):
    """The loss of every iteration, and smoothed."""
    loss = log["loss"]
    axis.plot(log["iteration"], loss, color=BLUE, alpha=0.25, linewidth=0.6, rasterized=True, label="every iteration")
    window = max(1, len(loss) // SMOOTHED)
    axis.plot(log["iteration"], smooth(loss, window), color=BLUE, linewidth=1.6, label=f"mean of {window} iterations")
    if loss.min() > 0 and loss.max() > 20 * np.median(loss):
        axis.set_yscale("log")
    _iterations(axis)
    axis.set_title("Loss")
    axis.legend(fontsize=8)


def draw_distances(axis, log):
    """Distances of the batch's pairs, where the log has them."""
    log = _shown(log)
    axis.fill_between(log["iteration"], log["positive_min"], log["positive_max"], color=BLUE, alpha=0.15, linewidth=0,
                      label="positive pairs, nearest to farthest")  # fmt: skip
    width = _width(log)
    axis.plot(log["iteration"], log["positive_mean"], color=BLUE, linewidth=width, label="positive pairs, mean")
    axis.plot(log["iteration"], log["negative_min"], color=VERMILLION, linewidth=width, linestyle=(0, (5, 1.5)),
              label="nearest negative pair")  # fmt: skip
    _iterations(axis)
    axis.set(title="Distances in the batch", ylim=(0, 1.35 * max(log["positive_max"].max(), 1e-9)))
    axis.legend(fontsize=8, loc="upper right")


def draw_active(axis, log):
    """The share of positive pairs that the loss still works on."""
    log = _shown(log)
    axis.plot(log["iteration"], 100 * log["active"], color=GREEN, linewidth=_width(log))
    _iterations(axis)
    axis.set(title="Positive pairs with a loss above zero, %", ylim=(0, 103))


def _width(log):
    """Of a line that is not smoothed: thin where it has many points."""
    return 1.4 if len(log["iteration"]) < 200 else 0.7


def _shown(log):
    """The rows of a log that have distances."""
    rows = np.isfinite(log["positive_mean"])
    return {name: values[rows] for name, values in log.items()}


def svg(draw, size=(4.4, 3.2)):
    """The bytes of an SVG with the one panel that `draw(axis)` draws."""
    with plt.rc_context(LOOK):
        figure, axis = plt.subplots(figsize=size)
        draw(axis)
        figure.tight_layout(pad=0.5)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", dpi=200, metadata={"Date": None})
        plt.close(figure)
    return stream.getvalue()


def save(path, size, grid, draws):
    """Write a picture of several panels; each of `draws` draws into its axis."""
    with plt.rc_context(LOOK):
        figure, axes = plt.subplots(*grid, figsize=size, squeeze=False, layout="constrained")
        for axis, draw in zip(axes.flat, draws):
            draw(axis)
        with written_aside(path) as aside:
            figure.savefig(aside, dpi=150)
        plt.close(figure)


def draw_curves(curves, path):
    """Write the panels of `curves` and their legend as one picture."""
    draws = [lambda axis, name=name: draw_panel(axis, name, curves) for name in panels_of(curves)]
    draws.append(lambda axis: draw_legend(axis, curves))
    rows = -(-len(draws) // 2)
    save(path, (9.5, 3.6 * rows), (rows, 2), draws)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--runs", type=Path, help="folder of a set's runs, runs/<set>: all that are finished")
    given.add_argument("--log", type=Path, help="log.csv of a run")
    parser.add_argument("--published", metavar="SET", help="show the published rows of this set")
    parser.add_argument("--dim", type=int, help="size of our embeddings in the panel of Recall@K (default the largest)")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    arguments = parser.parse_args()
    require_writable(arguments.out)
    if arguments.log:
        log = read_log(arguments.log)
        if not log:
            raise ValueError(f"{arguments.log}: is missing or empty; tools/train.py writes it")
        draws = [
            lambda axis, draw=draw: draw(axis, log)
            for draw in (draw_loss, draw_distances, *[draw_active] * bool(np.isfinite(log["active"]).any()))
        ]
        save(arguments.out, (13, 3.4), (1, 3), draws)
    else:
        name = arguments.published
        published = read_published(name) if name else []
        draw_curves(gather(finished_runs(arguments.runs, name or arguments.runs.name), published, arguments.dim), arguments.out)
    print(f"{arguments.out}: written")


if __name__ == "__main__":
    run("plots", main)
