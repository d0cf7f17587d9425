"""Our runs beside the published figures, printed and as report.md.

One run, with its baselines or with its snapshots on the way; or all finished runs of a set, the seeds of an experiment
in one row:

    .venv/bin/python tools/compare.py --metrics runs/demo/lifted_64/seed1/metrics.json --out report.md
    .venv/bin/python tools/compare.py --metrics runs/cub/lifted_64/seed1/metrics*.json --published cub --out report.md
    .venv/bin/python tools/compare.py --runs runs/cub --published cub --out runs/cub/report.md
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import json
import re
from collections import Counter
from pathlib import Path

from data_prep.files import require_writable, written_aside
from tools.published import METHODS, cite, is_paper_s_own, is_rerun, matches, own_batch, read_published, references, title, wrapped
from tools.runs import describe, finished_runs, grouped, pretrained_of, read_metrics, set_of, training_of
from tools.table import columns, difference, percent, table
from tools.verdict import verdict

NOT_BVLC = "The starting weights were not BVLC's GoogLeNet, but a file with the SHA-1 {sha1}."
TITLES = {"raw_pixels": "raw pixels, 16x16", "untrained": "the net, untrained"}


def doubts(found):
    """A paragraph that stands above the table when a set is not the official one, else nothing."""
    wrong = [set_of(metrics) for metrics in found if set_of(metrics).get("official") is False]
    if not wrong:
        return []
    which = "This is not the official set. These" if len(wrong) == len(found) else "Some rows are 'not official'. Their"
    lines = dict.fromkeys(f"- {doubt}" for data in wrong for doubt in data.get("doubts") or ())
    return ["\n".join([f"**{which} numbers are not to be compared with published ones:**", *lines])]


def images(metrics):
    return f"{metrics['n']:,} images of {metrics['classes']:,} classes, none of them seen in training; percent."


def scoring(metrics):
    """Sentences about how the figures were measured."""
    facts = metrics["clustering"]
    details = f" ({facts['library']})" if "library" in facts else ""
    clusters = f"NMI and F1 of {facts['clusters']:,} clusters by {facts['method'].replace('kmeans', 'k-means')}{details}"
    if seeds := facts.get("seeds"):
        clusters += f", means of seeds {seeds[0]} to {seeds[-1]} (of one run, ± is their sample standard deviation)"
    clusters += "."
    if facts.get("wanted", facts["clusters"]) != facts["clusters"]:
        clusters += f" {facts['wanted']:,} were wanted."
    if facts.get("converged") is False:
        clusters += " The clustering did not converge."
    lone = metrics.get("lone_queries")
    alone = [f"{lone:,} queries have no other image of their class."] if lone else []
    return ["Recall@K by Euclidean distance.", clusters, *alone]


def recipe(runs):
    """How the runs of one experiment were trained, in words; empty when that is not known."""
    known = [training_of(metrics) for metrics in runs if training_of(metrics)]
    if not known:
        return "as it was pretrained, not fine-tuned." if all(map(pretrained_of, runs)) else ""
    seeds = sorted(training["seed"] for training in known)
    batch = f", batch {known[0]['batch']}" if known[0].get("batch") else ""
    text = (f"base_lr {known[0]['base_lr']:g}, {known[0]['iterations']:,} iterations{batch}, seed{'s' * (len(seeds) > 1)} "
            f"{', '.join(map(str, seeds))} ({', '.join(sorted({training['solver'] for training in known}))}).")  # fmt: skip
    return text + (" A seed that stands there twice is no second experiment." if len(set(seeds)) < len(seeds) else "")


def cautions(metrics):
    """Sentences about the training that a reader of the published figures must know."""
    training, lines = training_of(metrics), []
    if not training:
        return lines if pretrained_of(metrics).get("bvlc_googlenet", True) else [NOT_BVLC.format(**pretrained_of(metrics))]
    if re.search("prototxt/(cub|cars196|sop)/(contrastive|triplet)_", training["solver"]):
        lines.append("The authors published no solver of their baselines: this one has the lifted loss's.")
    if "prototxt/cub/lifted" in training["solver"] and training["iterations"] == 20000:
        lines.append("Nobody published this recipe: the authors trained CUB with this learning rate for 40,000 iterations "
                     "(RECIPE=authors), the paper says 20,000. Expect less than the published figure.")  # fmt: skip
    weights = training.get("weights")
    if weights is None:
        lines.append("Trained from random weights, where the paper starts from BVLC's GoogLeNet.")
    elif not weights["bvlc_googlenet"]:
        lines.append(NOT_BVLC.format(**weights))
    return lines


def bullets(lines):
    return "\n".join(wrapped(line, "- " if len(lines) > 1 else "") for line in lines)


def said_once(groups, sentences):
    """What `sentences` says of the metrics of all groups, each sentence once, and of which rows where it does not hold for all."""
    rows, everything = {}, [f"({group['letter']})" for group in groups]
    for group in groups:
        said = Counter(sentence for metrics in group["runs"] for sentence in sentences(metrics))
        for sentence, times in said.items():
            part = "" if times == len(group["runs"]) else f", {times} of {len(group['runs'])} runs"
            rows.setdefault(sentence, []).append(f"({group['letter']}{part})")
    return bullets([line if found == everything else f"{', '.join(found)}: {line}" for line, found in rows.items()])


def one_run(paths, name):
    """The paragraphs of a report on one run: its baselines and snapshots, and the published rows of the paper's methods."""
    found = sorted((read_metrics(path) for path in paths), key=lambda metrics: training_of(metrics).get("iteration") or 0)
    last, rows, sources = found[-1], [], []
    method = describe(paths[0].parent, name, last)["method"]
    for row in read_published(name):
        batches = (None, own_batch(row["method"]), training_of(last).get("batch"))
        if row["method"] in METHODS and row["batch"] in batches and not is_rerun(row):
            rows.append((f"published: {title(row)} {cite(row, sources)}", columns(row)))
    rows += [(TITLES.get(baseline, baseline), percent([row])) for baseline, row in last["baselines"].items()]
    for metrics in found:
        iteration = training_of(metrics).get("iteration")
        here = "here" if iteration is None else f"here: after {iteration:,} iterations"
        rows.append((here if name else METHODS.get(method, "the embedding"), percent([metrics])))
    text = [*doubts([last]), images(last), table(rows), " ".join(scoring(last))]
    if not name and "1" in last["recall_at"]:
        text.append(" ".join(verdict(last)))
    if name:
        text.append("\n".join([f"Recipe: {recipe([last]) or 'not known.'}", *cautions(last)]))
    return [*text, references(sources)]


def all_runs(folder, name):
    """The paragraphs of a report on all finished runs of a set, each experiment above the published row of its kind."""
    groups = grouped(finished_runs(folder, name or folder.name))
    published, sources = read_published(name), []
    rows, notes, shown = main_table(groups, published, name, sources)
    begun = [path.parent for path in sorted(folder.glob("*/*/run.json")) if not path.with_name("metrics.json").exists()]
    notes += [f"Not finished, and not in the table: {', '.join(map(str, begun))}."] if begun else []
    text = [*doubts([metrics for group in groups for metrics in group["runs"]]),
            said_once(groups, lambda metrics: [images(metrics)]),
            table(rows),
            bullets(notes),
            bullets([f"({one['letter']}) {one['network'] or 'network not known'}, {recipe(one['runs']) or 'recipe not known.'}"
                     for one in groups]),
            said_once(groups, scoring),
            said_once(groups, cautions) if name else ""]  # fmt: skip
    ours = {group["method"] for group in groups}
    for same_method, heading in (
        (True, "Another network, size or batch than ours, or a re-run by others: not to be compared one to one"),
        (False, "Other methods: not to be compared one to one"),
    ):
        chosen = [row for row in published if row not in shown and (row["method"] in ours) == same_method]
        block = [(f"{'re-run: ' * is_rerun(row)}{title(row)} {cite(row, sources)}", columns(row)) for row in chosen]
        text += [f"**{heading}**", table(block)] if block else []
    return [*text, references(sources)]


def baselines(groups):
    """{name: metrics, those of several runs that differ} of the baselines that were scored beside the runs."""
    found = {}
    for metrics in (metrics for group in groups for metrics in group["runs"]):
        for name, row in metrics["baselines"].items():
            found.setdefault(name, {})[json.dumps(row)] = row
    return {name: list(rows.values()) for name, rows in found.items()}


def main_table(groups, published, name, sources):
    """Rows for table(): the paper's own, then each of ours with its published like. Notes on them; the published rows shown."""
    shown = [row for row in published if is_paper_s_own(row)]
    rows = [(f"paper's own: {row['method']}, size not stated, batch {row['batch']} {cite(row, sources)}", columns(row))
            for row in shown]  # fmt: skip
    without, unsure, notes = [], [], []
    for group in groups:
        rows.append((f"ours ({group['letter']}): {group['title']}", percent(group["runs"])))
        like = [row for row in published if matches(row, group)]
        data = set_of(group["runs"][0])
        official = data.get("official") and data.get("name") == name
        for row in like:
            rows.append((f"  published: {row['method']} {row['dimensions']}, {row['network']} {cite(row, sources)}", columns(row)))
            rows += [("  ours - published", difference(group["runs"], row))] if official else []
        shown += like
        without += [] if like else [f"({group['letter']})"]
        unsure += [f"({group['letter']})"] if like and not official else []
    for baseline, found in baselines(groups).items():
        rows.append((f"beside them: {TITLES.get(baseline, baseline)}", percent(found)))
    if any(len(group["runs"]) > 1 for group in groups):
        notes.append("Several runs: mean±sample standard deviation over the runs.")
    if shown and is_paper_s_own(shown[0]):
        notes.append("The paper's own tables do not state the size of the embedding: no difference is taken.")
    if name and without:
        notes.append(f"{', '.join(without)}: no published number of the same method, network, size and batch is known.")
    if unsure:
        notes.append(f"{', '.join(unsure)}: not the official set {name}, or not known to be. No difference is taken.")
    if len({set_of(metrics).get("content") for group in groups for metrics in group["runs"]}) > 1:
        notes.append("'set' and a number: `content` in set.json, another one for other images or another way to resize them.")
    return rows, notes, shown


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--metrics", type=Path, nargs="+", help="metrics.json of one run, of its snapshots too")
    given.add_argument("--runs", type=Path, help="folder of a set's runs, runs/<set>: all that are finished")
    parser.add_argument("--out", type=Path, required=True, help="report.md to write")
    parser.add_argument("--published", metavar="SET", help="show the published rows of this set")
    arguments = parser.parse_args()
    require_writable(arguments.out)
    if arguments.runs:
        heading, text = arguments.runs, all_runs(arguments.runs, arguments.published)
    else:
        heading, text = arguments.metrics[0].parent, one_run(arguments.metrics, arguments.published)
    text = "\n\n".join(paragraph for paragraph in text if paragraph) + "\n"
    with written_aside(arguments.out) as aside:
        aside.write_text(f"# {heading}\n\n{text}")
    print(f"\n{text}")


if __name__ == "__main__":
    run("compare", main)
