"""The table of a run: its metrics beside its baselines' or the published ones, printed and as report.md.

For the demo, and for a set of the paper with its snapshots on the way:

    python tools/compare.py --metrics runs/demo/lifted_64/seed1/metrics.json --out report.md
    python tools/compare.py --metrics runs/cub/lifted_64/seed1/metrics*.json --published cub --out report.md
"""

from data_prep.command import run

# isort: split

import argparse
import json
from pathlib import Path

from data_prep.files import written_aside

TITLES = {"raw_pixels": "raw pixels, 16x16", "untrained": "the net, untrained"}
PUBLISHED = Path(__file__).with_name("published.json")
BATCH = 128  # of the published rows that are shown


def read_metrics(path):
    """The metrics.json at `path`; ValueError names it when it is missing or lacks a metric."""
    try:
        metrics = json.loads(Path(path).read_text())
        rows = [metrics, *metrics["baselines"].values()]
        whole = all(row["recall_at"] and 0 <= row["nmi"] <= 1 and 0 <= row["f1"] <= 1 for row in rows)
        if whole and isinstance(metrics["about"], dict):
            return metrics
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; tools/evaluate.py makes it (make demo)") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{path}: is not what tools/evaluate.py writes; remove it and call the same command again")


def percent(row):
    """A row of metrics.json in percent, one digit after the point; published.json's have as many as their source."""
    return {"recall_at": {k: round(100 * value, 1) for k, value in row["recall_at"].items()},
            "nmi": round(100 * row["nmi"], 1), "f1": round(100 * row["f1"], 1)}  # fmt: skip


def published_rows(name):
    """[(title, row)] of a set's published rows, the title ending in the number of its source, and the list of sources."""
    rows, sources = [], []
    for row in json.loads(PUBLISHED.read_text()):
        if row["set"] != name or (row["method"] == "lifted" and row["batch"] not in (None, BATCH)):
            continue
        source = f"{row['source']} (read at {row['read']})"
        if source not in sources:
            sources.append(source)
        size = f"{row['dimensions']} dimensions" if row["dimensions"] else "size not stated"
        rows.append((f"published: {row['method']}, {row['network']}, {size} [{sources.index(source) + 1}]", row))
    return rows, sources


def table(rows):
    """[(title, row in percent)] as a Markdown table with a column for each K that any row has; a dash where a number is unknown."""
    ks = sorted({int(k) for _, row in rows for k in row["recall_at"]})
    cells = [["", *(f"Recall@{k}" for k in ks), "NMI", "F1"]]
    for title, row in rows:
        values = [*(row["recall_at"].get(str(k)) for k in ks), row["nmi"], row["f1"]]
        cells.append([title, *("–" if value is None else str(value) for value in values)])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]

    def line(parts):
        return "| " + " | ".join(part.ljust(widths[0]) if i == 0 else part.rjust(widths[i]) for i, part in enumerate(parts)) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def title_of(metrics):
    """What a row of ours is called where several stand beside published ones."""
    training = metrics["about"].get("training")
    return f"here: after {training['iteration']:,} iterations" if training else "here"


def doubts(metrics):
    """A paragraph that stands above the table when the set is not the official one, else nothing."""
    data = metrics["about"].get("set") or {}
    if data.get("official") is not False:
        return []
    return ["**This is not the official set. These numbers are not to be compared with published ones:**\n"
            + "\n".join(f"- {doubt}" for doubt in data["doubts"])]  # fmt: skip


def recipe(metrics):
    """Sentences about the training that a reader of the table must know."""
    training = metrics["about"].get("training")
    if not training:
        return []
    batch = f", batch {training['batch']}" if training.get("batch") else ""
    lines = [f"Recipe: base_lr {training['base_lr']:g}, {training['iterations']:,} iterations{batch}, seed {training['seed']} "
             f"({training['solver']})."]  # fmt: skip
    if "prototxt/cub/" in training["solver"] and training["iterations"] == 20000:
        lines.append("Nobody published this recipe: the authors trained CUB with this learning rate for 40,000 iterations "
                     "(RECIPE=authors), the paper says 20,000. Expect less than the published figure.")  # fmt: skip
    weights = training.get("weights")
    if weights is None:
        lines.append("Trained from random weights, where the paper starts from BVLC's GoogLeNet.")
    elif not weights["bvlc_googlenet"]:
        lines.append(f"The starting weights were not BVLC's GoogLeNet, but a file with the SHA-1 {weights['sha1']}.")
    return ["\n".join(lines)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", type=Path, required=True, nargs="+", help="metrics.json of the run, of its snapshots too")
    parser.add_argument("--out", type=Path, required=True, help="report.md to write")
    parser.add_argument("--title", default="lifted structured embedding", help="of the run's row, where nothing published is shown")
    parser.add_argument("--published", metavar="SET", help="show the published rows of this set")
    arguments = parser.parse_args()
    found = [read_metrics(path) for path in arguments.metrics]
    found.sort(key=lambda metrics: (metrics["about"].get("training") or {}).get("iteration", 0))
    last = found[-1]
    rows, sources = published_rows(arguments.published) if arguments.published else ([], [])
    rows += [(TITLES.get(name, name), percent(row)) for name, row in last["baselines"].items()]
    rows += [(title_of(metrics) if arguments.published else arguments.title, percent(metrics)) for metrics in found]
    clustering = last["clustering"]
    text = [*doubts(last),
            f"{last['n']:,} images of {last['classes']:,} classes, none of them seen in training; percent.",
            table(rows),
            f"Recall@K by Euclidean distance; NMI and F1 of {clustering['clusters']:,} clusters by {clustering['method']} "
            f"({clustering['library']}, seed {clustering['seed']})."]  # fmt: skip
    if arguments.published:
        text += recipe(last)
        text.append("\n".join(f"[{number}] {source}" for number, source in enumerate(sources, 1)))
    text = "\n\n".join(text) + "\n"
    with written_aside(arguments.out) as aside:
        aside.write_text(f"# {arguments.metrics[0].parent}\n\n{text}")
    print(f"\n{text}")


if __name__ == "__main__":
    run("compare", main)
