"""Figures of metrics.json and published.json as the rows of a Markdown table that reads well in a terminal too."""

from statistics import mean, stdev

LAST = ("NMI", "F1", "MAP@R")  # columns, after those of Recall@K


def columns(row):
    """{column: figure} of a row of metrics.json or published.json, without what it lacks."""
    figures = {f"Recall@{k}": value for k, value in row["recall_at"].items()}
    figures |= dict(zip(LAST, (row["nmi"], row["f1"], row.get("map_at_r"))))
    return {name: value for name, value in figures.items() if value is not None}


def of_seeds(metrics):
    """{column: [percent of each seed of the clustering]} of a metrics.json, as far as it was clustered several times."""
    found = metrics.get("clustering", {}).get("of_seeds") or {}
    return {name: [100 * value for value in found[key]] for name, key in (("NMI", "nmi"), ("F1", "f1")) if key in found}


def gathered(metrics):
    """{column: [percent of each]} of a list of metrics.json, for the columns that all of them have."""
    found = [columns(one) for one in metrics]
    return {name: [100 * one[name] for one in found] for name in found[0] if all(name in one for one in found)}


def percent(metrics):
    """{column: text} of a list of metrics.json: percent, or their mean±sample standard deviation.

    Of one alone, NMI and F1 have that of the seeds of its clustering.
    """
    found = gathered(metrics) | (of_seeds(metrics[0]) if len(metrics) == 1 else {})
    return {name: f"{mean(values):.1f}" + (f"±{stdev(values):.1f}" if len(values) > 1 else "") for name, values in found.items()}


def difference(metrics, row):
    """{column: text} of the mean of a list of metrics.json, less a published row, in percentage points."""
    ours, published = gathered(metrics), columns(row)
    return {name: f"{round(mean(ours[name]) - float(published[name]), 1) + 0.0:+.1f}" for name in ours if name in published}


def table(rows):
    """[(title, {column: figure or text})] as a Markdown table with the columns that any row has; a dash where a row lacks one."""
    names = {name for _, row in rows for name in row}
    names = sorted(names, key=lambda name: (1, LAST.index(name)) if name in LAST else (0, int(name.partition("@")[2])))
    cells = [["", *names], *([title, *(str(row.get(name, "–")) for name in names)] for title, row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]

    def line(parts):
        return "| " + " | ".join(part.ljust(widths[0]) if i == 0 else part.rjust(widths[i]) for i, part in enumerate(parts)) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])
