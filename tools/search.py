"""Search your own images with a trained embedding, without Caffe.

    .venv/bin/python tools/search.py index photos/ --model runs/demo/lifted_64/seed1
    .venv/bin/python tools/search.py query some.jpg --model runs/demo/lifted_64/seed1 --top 10 --sheet found.png
    .venv/bin/python tools/search.py serve --model runs/demo/lifted_64/seed1

A model is a run folder that tools/model_folder.py has made into one, or a copy of its four files on another machine, where
`pip install '<this checkout>[search]'` gives the same as the command embedding-search, for Python 3.11 or newer. The index lies
in the model folder (<run>/index) unless --index names another place. Called again, `index` embeds what is new or has changed,
and drops what is gone.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import json
import math
import os
import shlex
import sys
import time
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

from data_prep.files import require_writable, user_path, written_aside
from tools.model_folder import Embedder
from tools.search_index import COMMAND, MAKE, check_model, picture, read_index, shown, update_index

TOP = 10  # neighbours shown
COLUMNS = 10  # of a sheet; more neighbours go into further rows
ROWS = 200  # of a sheet at most: matplotlib draws no picture of more than 65,535 pixels
SIDE = 200  # pixels of a picture on a sheet
LETTERS = 15  # of a name under a picture


def open_search(model, index):
    """(Embedder, Index) of `--model` and `--index`, of which one is enough. ValueError names what is missing."""
    if model is None and index is None:
        raise ValueError(f"name the model folder with --model, or the index with --index; `{MAKE}` makes an index")
    found = read_index(index or model / "index")
    homes = [model] if model else [home for home in (found.model_folder, found.home.parent) if (home / "model.json").exists()]
    if not homes:
        raise ValueError(f"{found.model_folder}: the model of this index is not there any more; name it with --model")
    embedder = Embedder(homes[0])
    check_model(found, embedder.model, embedder.folder)
    if not found.complete:
        print(f"{found.home}: is not complete ({len(found.files):,} images); call `{COMMAND} index "
              f"{shlex.quote(str(found.images))}` with the same options again", file=sys.stderr)  # fmt: skip
    return embedder, found


def search(embedder, index, paths, top):
    """For each image of `paths`: (path, its Neighbours, the id under which the index has the file itself or None).

    Raises ValueError that lists all images that cannot be decoded.
    """
    queries, wrong = [], []
    for path in paths:
        try:
            queries.append(embedder.load(path))
        except (OSError, ValueError) as error:
            wrong.append(f"{shown(path)}: {getattr(error, 'strerror', None) or error}")
    if wrong:
        raise ValueError("\n".join(wrong))
    known = {os.path.realpath(index.path_of(number)): number for number in index.files}
    for path, embedding in zip(paths, (embedder.embed([image], [shown(path)])[0] for path, image in zip(paths, queries))):
        yield path, index.nearest(embedding, top), known.get(os.path.realpath(path))


def shorten(name, letters=LETTERS):
    """A name of at most so many letters: its beginning and its end."""
    keep = letters - 1
    return name if len(name) <= letters else f"{name[: keep // 2]}…{name[len(name) - (keep - keep // 2) :]}"


def draw_sheet(index, found, path):
    """Write a picture to `path`: for each of `found` (see `search`) the query on the left, its neighbours beside it."""
    columns = min(COLUMNS, max(len(near) for _, near, _ in found))
    heights = [math.ceil(len(near) / columns) for _, near, _ in found]  # rows of each query
    if sum(heights) > ROWS:
        raise ValueError(f"{path}: would have {sum(heights)} rows, more than {ROWS}; give fewer images, or a smaller --top")
    figure = Figure(figsize=(1.25 * (columns + 1), 1.65 * sum(heights)))  # without pyplot, whose settings a notebook shares
    axes = figure.subplots(sum(heights), columns + 1, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")

    def draw(axis, image, source, title, **style):
        axis.imshow(image)
        axis.set_title(title, fontsize=7, pad=3, **style)
        name = "\n".join(shorten(shown(part)) for part in Path(source).parts[-2:])  # its folder is often its class
        axis.text(0.5, -0.03, name, fontsize=6, ha="center", va="top", transform=axis.transAxes, parse_math=False)

    row = 0
    for (query, near, itself), height in zip(found, heights):
        draw(axes[row, 0], picture(query, SIDE), query, "query", fontweight="bold")
        for place, one in enumerate(near):
            title = f"{place + 1}: {one.distance:#.4g}" + (" (itself)" if one.id == itself else "")
            draw(axes[row + place // columns, 1 + place % columns], index.picture(one.id, SIDE), index.path_of(one.id), title)
        row += height
    with warnings.catch_warnings(), written_aside(path) as aside:
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a name in a script that the font lacks shows as boxes
        figure.tight_layout(pad=0.6, w_pad=0.5, h_pad=0.8)
        figure.savefig(aside, dpi=150)


def index_command(arguments):
    began = time.monotonic()
    home = arguments.index or arguments.model / "index"
    index, counts, unreadable = update_index(home, arguments.folder, Embedder(arguments.model))
    if unreadable:
        print(f"{len(unreadable):,} images or folders cannot be read and are not in the index:")
        print("\n".join(f"    {shown(line)}" for line in unreadable[: None if arguments.all else 10]))
        if len(unreadable) > 10 and not arguments.all:
            print(f"    ... and {len(unreadable) - 10:,} more; --all lists them")
    names = Counter(unicodedata.normalize("NFC", file.path) for file in index.files.values())
    if twice := [name for name, times in names.items() if times > 1]:
        print(f"{len(twice):,} names are there twice, in Unicode forms that look the same (NFC and NFD), such as {shown(twice[0])}")
    words = ", ".join(f"{number:,} {what}" for what, number in counts.items())
    print(f"{shown(home)}: {len(index.files):,} images ({words}), {time.monotonic() - began:.1f} s")
    place = ["--index", home] if arguments.index else ["--model", arguments.model]
    print(f"a page to search them: {COMMAND} serve {shlex.join(map(str, place))}")


def query_command(arguments):
    if arguments.sheet:
        require_writable(arguments.sheet)
    embedder, index = open_search(arguments.model, arguments.index)
    found = list(search(embedder, index, arguments.images, arguments.top))
    if arguments.sheet:
        draw_sheet(index, found, arguments.sheet)
    if arguments.json:
        print(json.dumps([{"query": str(path), "nearest": [
            {"rank": rank, "distance": one.distance, "path": str(index.path_of(one.id)), "query_itself": one.id == itself}
            for rank, one in enumerate(near, 1)]} for path, near, itself in found], indent=2))  # fmt: skip
        return
    for path, near, itself in found:
        print(f"{shown(path)}: nearest of {len(index.files):,} images in {shown(index.images)}")
        for rank, one in enumerate(near, 1):
            mark = "  (the query itself)" if one.id == itself else ""
            mark += {"there": "", "changed": "  (changed since)", "gone": "  (no longer there)"}[index.state_of(one.id)]
            print(f"{rank:4}  {one.distance:10.4f}  {shown(one.path)}{mark}")
    if arguments.sheet:
        print(f"{shown(arguments.sheet)}: drawn")


def serve_command(arguments):
    from tools.search_server import serve

    serve(*open_search(arguments.model, arguments.index), arguments.host, arguments.port, arguments.top)


def sheet_path(text):
    path = user_path(text)
    if path.suffix.lower() not in (".png", ".jpg", ".webp", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"must end in .png, .jpg, .webp, .pdf or .svg, not {text}")
    return path


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="index | query | serve")
    index = commands.add_parser("index", help="embed a folder of images, or what has changed in it")
    index.add_argument("folder", type=user_path, help="images, in it or below it")
    index.add_argument("--model", type=user_path, required=True, help="model folder (tools/model_folder.py)")
    index.add_argument("--index", type=user_path, help="folder to write (default <model>/index)")
    index.add_argument("--all", action="store_true", help="list all images that cannot be read, not the first ten")
    index.set_defaults(command=index_command)
    query = commands.add_parser("query", help="the nearest images of some")
    query.add_argument(
        "images", type=user_path, nargs="+", metavar="image", help="image to search with; -- before a name with a dash"
    )
    query.add_argument("--sheet", type=sheet_path, help="also draw them: picture to write, .png")
    query.add_argument("--json", action="store_true", help="print JSON")
    query.set_defaults(command=query_command)
    serve = commands.add_parser("serve", help="a page in your browser to drop images on")
    serve.add_argument("--port", type=int, default=8000, help="default 8000; 0 takes any that is free")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)")
    serve.set_defaults(command=serve_command)
    for command in (query, serve):
        command.add_argument("--model", type=user_path, help="model folder (default: the one the index was made with)")
        command.add_argument("--index", type=user_path, help="index folder (default <model>/index)")
        command.add_argument("--top", type=positive, default=TOP, help=f"neighbours of each (default {TOP})")
    arguments = parser.parse_args()
    arguments.command(arguments)


if __name__ == "__main__":
    run("search", main)
