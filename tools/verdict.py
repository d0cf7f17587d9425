"""What a metrics.json says to the person whose images they are: did the training help, and what to try where it did not."""

WORTH = 1.0  # points of Recall@1: less is nothing that a person would notice
BESIDE = {"untrained": "the same net untrained", "raw_pixels": "raw pixels"}
TO_TRY = (
    "More images of each class help most. Then: train longer (ITERS=), or, where a thing and its mirror image are two things "
    "(letters, text, logos), MIRRORED=no."
)


def verdict(metrics):
    """Sentences on Recall@1 of a metrics.json, beside its baselines `untrained` and `raw_pixels`, as far as they are there."""
    ours = 100 * metrics["recall_at"]["1"]
    text = f"An image of the right class comes first for {ours:.1f} % of {metrics['n']:,} images of classes that training never saw"
    gains = {
        BESIDE[name]: ours - 100 * metrics["baselines"][name]["recall_at"]["1"] for name in BESIDE if name in metrics["baselines"]
    }
    if not gains:
        return [f"{text}."]
    parts = [f"{abs(gain):.1f} points {'above' if gain >= 0 else 'below'} {name}" for name, gain in gains.items()]
    if min(gains.values()) >= WORTH:
        return [f"{text}: {' and '.join(parts)}. The training helped."]
    return [f"{text}: {' and '.join(parts)}.", f"The training did not help. {TO_TRY}"]
