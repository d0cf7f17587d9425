"""The published figures of tools/published.json: which of them stand beside a run of ours, and what they are called.

A row there has null where its source does not state the network, the dimensions or the images a batch, and where it
gives no NMI or F1. `read` says how the figure was read: "first hand" in the work itself, "second hand" where another
one quotes it, "independent re-run" where somebody else trained the method. Nothing in it is from memory.
"""

import json
import textwrap
from decimal import Decimal
from pathlib import Path

from data_prep.batch_plan import OWN_BATCH
from prototxt.records import methods

PUBLISHED = Path(__file__).with_name("published.json")
PAPER = "Song et al., Deep Metric Learning via Lifted Structured Feature Embedding"
# The methods that are trained here, and what an embedding is called by them.
METHODS = {name: method.title for name, method in methods().items()}
BATCHES = {name: OWN_BATCH[method.plan] for name, method in methods().items()}
SAME = ("method", "network", "dimensions", "batch")  # what a published row and ours must both have, to be compared
WIDTH = 140  # of a line in a terminal


def read_published(name):
    """The published rows of the set `name`; figures are Decimals, with the digits that their source prints."""
    return [row for row in json.loads(PUBLISHED.read_text(), parse_float=Decimal) if row["set"] == name]


def own_batch(method):
    """Images a batch where nothing else is said (paper, section 5)."""
    return BATCHES.get(method, OWN_BATCH["pairs"])


def is_rerun(row):
    return row["read"] == "independent re-run"


def is_paper_s_own(row):
    """Whether it is a row of the paper's tables 1 and 2, which do not state the size."""
    return row["source"].startswith(PAPER) and row["read"] == "first hand"


def matches(row, ours):
    """Whether `row` is of the method, network, dimensions and batch of `ours`, a dict with the same keys, and all are stated."""
    return not is_rerun(row) and all(row[key] == ours[key] is not None for key in SAME)


def title(row):
    """What a published row is called: method, network, dimensions, and the batch where it is not the method's own."""
    network = row["network"] or "network not stated"
    size = f"{row['dimensions']} dimensions" if row["dimensions"] else "size not stated"
    net = f"{network}, {size}" if row["network"] or row["dimensions"] else "network and size not stated"
    batch = f", batch {row['batch']}" if row["batch"] not in (None, own_batch(row["method"])) else ""
    return f"{row['method']}, {net}{batch}"


def cite(row, sources):
    """[number] of a row's source in the list `sources`, which it joins when it is new there."""
    note = f". {row['note'][0].upper()}{row['note'][1:]}" if row.get("note") else ""
    source = f"{row['source']} ({row['read']}){note}"
    if source not in sources:
        sources.append(source)
    return f"[{sources.index(source) + 1}]"


def references(sources):
    return "\n".join(wrapped(f"[{number}] {source}", "- ") for number, source in enumerate(sources, 1))


def wrapped(text, start=""):
    """`text` in lines that fit a terminal, the first one behind `start` and the others indented as far."""
    return textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip
