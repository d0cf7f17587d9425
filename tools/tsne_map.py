"""A Barnes-Hut t-SNE map of features.npz with thumbnails, like the paper's figures 7 and 8.

    .venv/bin/python tools/tsne_map.py --set data/demo --features runs/demo/lifted_64/seed1/features.npz --out map.png

The places are computed once and kept beside the features (tsne.npz). Thumbnails that would overlap are thinned: the map
is cut into square cells, and a cell shows the one image in it that lies nearest to the cell's centre.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import json
from pathlib import Path

import faiss
import numpy as np
import openTSNE
from PIL import Image
from tqdm import tqdm

from data_prep.files import require_writable, sha256, written_aside
from tools.features import TooFew, load_features
from tools.figures import image_reader, nearest

MOST = 10000  # images on a map; more are sampled (the paper's maps have 5,924 and 8,131)
GRIDS = {64: 56, 96: 48}  # cells along each side, and pixels of a cell: the finer grid where the coarse one shows too few
ENOUGH = 1000  # images for the coarse grid
SEAM = 1  # pixels around each thumbnail, of those of its cell
PAPER = 255  # grey level of what is empty
SETTINGS = {"perplexity": 30, "initialization": "pca", "neighbours": f"exact, faiss {faiss.__version__}",
            "gradient": "Barnes-Hut", "library": f"openTSNE {openTSNE.__version__}", "most": MOST}  # fmt: skip
STEPS = (250, 500)  # with early exaggeration, and without: the library's own numbers
EVERY = 10  # steps, the progress is shown
THREADS = 1  # where anything else runs, two wait for each other: 40 s against 24 at 5,924 images, and the same places to the bit


def embed(features, seed=1):
    """Places (N, 2) of features (N, c) by Barnes-Hut t-SNE, perplexity 30 or a third of N where that is less."""
    count = len(features)
    if count < 8:
        raise TooFew(f"a map of {count} images shows nothing; it takes 8")
    x = np.asarray(features - features.mean(axis=0), np.float64)
    x = np.pad(x, ((0, 0), (0, max(0, 2 - x.shape[1]))))  # of one number there are no two principal components
    perplexity = min(SETTINGS["perplexity"], (count - 1) / 3)
    found, distance = nearest(x, np.arange(count), min(count - 1, int(3 * perplexity)))
    neighbours = openTSNE.nearest_neighbors.PrecomputedNeighbors(found, distance)
    affinities = openTSNE.affinity.PerplexityBasedNN(knn_index=neighbours, perplexity=perplexity, n_jobs=THREADS)
    spread = x.std(axis=0).max() > 0  # of a collapsed embedding there are no principal components
    start = (openTSNE.initialization.pca if spread else openTSNE.initialization.random)(x, random_state=seed)
    with tqdm(total=sum(STEPS), desc="t-SNE", unit="step", mininterval=0.5) as bar:
        tsne = openTSNE.TSNE(initialization=start, negative_gradient_method="bh", n_jobs=THREADS, random_state=seed,
                             early_exaggeration_iter=STEPS[0], n_iter=STEPS[1], callbacks=lambda *_: bar.update(EVERY) and None,
                             callbacks_every_iters=EVERY)  # fmt: skip
        return np.asarray(tsne.fit(affinities=affinities))


def places(features_path, features, seed=1):
    """(rows, points (n, 2)): the images on the map of `features` and where; kept beside the file, in tsne.npz."""
    kept = Path(features_path).with_name("tsne.npz")
    made_from = json.dumps({"features": sha256(features_path), "seed": seed, **SETTINGS}, sort_keys=True)
    try:
        with np.load(kept, allow_pickle=False) as archive:
            rows, points = archive["rows"], archive["points"]
            whole = (rows.dtype.kind == "i" and points.shape == (len(rows), 2) and np.isfinite(points).all()
                     and 0 <= rows.min() <= rows.max() < len(features))  # fmt: skip
            if str(archive["made_from"]) == made_from and whole:
                return rows, points
    except Exception:  # missing or damaged: it is made again
        pass
    rows = np.arange(len(features))
    if len(rows) > MOST:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST, replace=False))
    points = embed(features[rows], seed)
    with written_aside(kept) as aside, open(aside, "wb") as stream:
        np.savez(stream, rows=rows, points=points, made_from=made_from)
    return rows, points


def cells_for(points):
    """Cells along each side of the map of points (n, 2): more where they lie in tight groups that few cells would show."""
    coarse, fine = sorted(GRIDS)
    return coarse if len(thin(points, coarse)[0]) >= min(ENOUGH, 0.9 * len(points)) else fine


def thin(points, cells):
    """Which of points (n, 2) are shown, and in which cell of a square map, cells x cells.

    Returns (shown (s,) indices of points, cell (s, 2) column and row from the top left, crowd (s,) points in the cell).
    """
    low, high = points.min(axis=0), points.max(axis=0)
    side = (high - low).max() or 1.0
    place = (points - (low + high) / 2) / side * cells + cells / 2  # 0 to `cells`, the longer side filled
    place[:, 1] = cells - place[:, 1]  # upwards is up
    cell = np.clip(np.floor(place).astype(int), 0, cells - 1)
    away = np.square(place - (cell + 0.5)).sum(axis=1)
    order = np.lexsort([away, cell[:, 0], cell[:, 1]])
    _, first, crowd = np.unique(cell[order] @ [1, cells], return_index=True, return_counts=True)
    shown = order[first]
    return shown, cell[shown], crowd


def paint(image, rows, cell, cells):
    """The map as a PIL image; `image` maps a row of the features to its picture (h, w, 3)."""
    pixels = GRIDS[cells]
    canvas = Image.new("RGB", (cells * pixels, cells * pixels), (PAPER, PAPER, PAPER))
    side = pixels - 2 * SEAM
    for row, (column, line) in zip(rows, cell):
        thumbnail = Image.fromarray(np.ascontiguousarray(image(row))).resize((side, side), Image.Resampling.LANCZOS)
        canvas.paste(thumbnail, (column * pixels + SEAM, line * pixels + SEAM))
    return canvas


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of the set, data/<set>")
    parser.add_argument("--features", type=Path, required=True, help="features.npz of its test part")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--seed", type=int, default=1, help="of the map (default 1)")
    parser.add_argument("--cells", type=int, choices=GRIDS, help="cells along each side (default: by how tight the groups are)")
    arguments = parser.parse_args()
    require_writable(arguments.out)
    features, _, paths, _ = load_features(arguments.features)
    image = image_reader(arguments.set, paths)
    rows, points = places(arguments.features, features, arguments.seed)
    cells = arguments.cells or cells_for(points)
    shown, cell, _ = thin(points, cells)
    with written_aside(arguments.out) as aside:
        paint(image, rows[shown], cell, cells).save(aside)
    print(f"{arguments.out}: {len(shown):,} of {len(features):,} images, those nearest to the centres of {cells} x {cells} cells")


if __name__ == "__main__":
    run("tsne_map", main)
