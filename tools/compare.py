"""The table of a run: its metrics beside its baselines', printed and as report.md.

python tools/compare.py --metrics runs/demo/lifted_64/seed1/metrics.json --out report.md
"""

from data_prep.command import run

# isort: split

import argparse
import json
from pathlib import Path

from data_prep.files import written_aside

TITLES = {"raw_pixels": "raw pixels, 16x16", "untrained": "the net, untrained"}


def read_metrics(path):
    """The metrics.json at `path`; ValueError names it when it is missing or lacks a metric."""
    try:
        metrics = json.loads(Path(path).read_text())
        rows = [metrics, *metrics["baselines"].values()]
        if all(row["recall_at"] and 0 <= row["nmi"] <= 1 and 0 <= row["f1"] <= 1 for row in rows):
            return metrics
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; tools/evaluate.py makes it (make demo)") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{path}: is not what tools/evaluate.py writes; remove it and call the same command again")


def table(metrics, title):
    """The rows as a Markdown table, percent."""
    ks = list(metrics["recall_at"])
    rows = [(TITLES.get(name, name), row) for name, row in metrics["baselines"].items()] + [(title, metrics)]
    cells = [["", *(f"Recall@{k}" for k in ks), "NMI", "F1"]]
    for name, row in rows:
        values = [*(row["recall_at"][k] for k in ks), row["nmi"], row["f1"]]
        cells.append([name, *(f"{100 * value:.1f}" for value in values)])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]

    def line(parts):
        return "| " + " | ".join(part.ljust(widths[0]) if i == 0 else part.rjust(widths[i]) for i, part in enumerate(parts)) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.json of the run")
    parser.add_argument("--out", type=Path, required=True, help="report.md to write")
    parser.add_argument("--title", default="lifted structured embedding", help="of the run's row")
    arguments = parser.parse_args()
    metrics = read_metrics(arguments.metrics)
    clustering = metrics["clustering"]
    text = (f"{metrics['n']:,} images of {metrics['classes']:,} classes, none of them seen in training; percent.\n\n"
            f"{table(metrics, arguments.title)}\n\n"
            f"Recall@K by Euclidean distance; NMI and F1 of {clustering['clusters']:,} clusters by {clustering['method']} "
            f"({clustering['library']}, seed {clustering['seed']}).\n")  # fmt: skip
    with written_aside(arguments.out) as aside:
        aside.write_text(f"# {arguments.metrics.parent}\n\n{text}")
    print(f"\n{text}")


if __name__ == "__main__":
    run("compare", main)
