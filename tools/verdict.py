"""What a metrics.json says to the person whose images they are: did the training help, and what to try where it did not."""

BESIDE = {"untrained": "the same net untrained", "raw_pixels": "raw pixels"}
WORTH = 1.0  # points of Recall@1: less is nothing that a person would notice,
AT_LEAST = 5  # and so are fewer images than this
TO_TRY = (
    "More images of each class help most (under a new NAME=). Or train longer (ITERS=, with a RUN= of its own); or, where a thing "
    "and its mirror image are two things (letters, text, logos), do not mirror (MIRRORED=no, with a RUN= of its own)."
)


def verdict(metrics):
    """Sentences on Recall@1 of a metrics.json, beside its baselines `untrained` and `raw_pixels`, as far as they are there."""
    count = metrics["n"]
    right = round(count * metrics["recall_at"]["1"])
    text = f"An image of the right class comes first for {right:,} of {count:,} images of classes that training never saw"
    beside = {BESIDE[name]: round(count * row["recall_at"]["1"]) for name, row in metrics["baselines"].items() if name in BESIDE}
    if not beside:
        return [f"{text}."]
    text += f"; {' and '.join(f'{theirs:,} with {name}' for name, theirs in beside.items())}."
    enough = max(AT_LEAST, WORTH / 100 * count)
    behind = [name for name, theirs in beside.items() if right - theirs < enough]
    if not behind:
        return [text, "The training helped."]
    if behind == [BESIDE["raw_pixels"]] and len(beside) > 1:
        return [text, f"The training helped, but raw pixels do as well or better, or too few images tell. {TO_TRY}"]
    return [text, f"The training did not help, or too few images tell. {TO_TRY}"]
