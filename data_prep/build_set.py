"""A folder of images (class-name/image.png), or a list of them -> LMDBs, mean image and batch plan in data/<set>/.

    .venv/bin/python data_prep/build_set.py --images photos/ --out data/shoes
    .venv/bin/python data_prep/build_set.py --images photos/list.csv --out data/shoes     # columns path and class

Classes are split, not images: the test classes are never seen in training. Everything is written aside and renamed
when complete, set.json last; called again with the same images and options, it does nothing.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from data_prep.batch_plan import MAX_POSITIVE_PAIRS, make_plan, plan_file, write_plan
from data_prep.files import locked, read_rows
from data_prep.folder import read_images, same_text, without_shared
from data_prep.image import HEIC, load_image
from data_prep.imagenet import imagenet_mean
from data_prep.write_set import PARTS, Entry, finish, read_set, say_some, write_set


def split_classes(classes, groups, test_fraction, holdout, seed):
    """Split class names into (train, test): groups of classes are shuffled by `seed`, the last of them test.

    With `holdout` > 0 the test classes are left alone, and that share of the training groups takes their place: what
    is chosen on it has not seen the test.
    """
    members = {}
    for name in classes:
        members.setdefault(groups.get(name, name), []).append(name)
    names = sorted(members, key=os.fsencode)
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    tests = max(1, min(round(len(names) * test_fraction), len(names) - 2))  # two are needed to train
    train, test = shuffled[: len(names) - tests], shuffled[len(names) - tests :]
    if holdout:
        held = max(1, round(len(train) * holdout))
        train, test = train[: len(train) - held], train[len(train) - held :]
    return tuple(sorted((name for group in part for name in members[group]), key=os.fsencode) for part in (train, test))


def fingerprint_of(found, options):
    """Changes with the options and with any file's name, size or time of change."""
    listing = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for label, files in found.images.items():
        listing.update(os.fsencode(label) + b"\0")
        for name in files:
            status = (found.root / name).stat()
            listing.update(b"%s\0%d\0%d\0" % (os.fsencode(name), status.st_size, status.st_mtime_ns))
    return listing.hexdigest()


def build(images, out, size, groups, test_fraction, holdout, seed, batch, max_positive_pairs, skip_unreadable, mean="own",
          replace=None, duplicates="keep"):  # fmt: skip
    """Make data/<set> as the module says, without a batch plan where `batch` is None; returns what set.json holds.

    `groups`: path of a CSV file class,group, or None. `replace`: where there is a set already, of other images or options,
    ValueError with these words instead of replacing it. `duplicates`: "drop" leaves out the images that are in several classes,
    byte for byte, since no embedding can tell them apart; "keep" says how many there are.
    """
    found = read_images(images)
    groups = read_groups(groups, found) if groups else {}
    options = {"size": size, "groups": groups, "test_fraction": test_fraction, "holdout": holdout, "seed": seed,
               "batch": batch, "max_positive_pairs": max_positive_pairs, "skip_unreadable": skip_unreadable,
               "images": str(images), "mean": mean, "layout": 4}  # fmt: skip
    if duplicates == "drop":
        options["duplicates"] = "drop"
    fingerprint = fingerprint_of(found, options)
    made = read_set(out)
    if made.get("fingerprint") == fingerprint and (batch is None or (out / plan_file(batch)).exists()):
        print(f"{out}: is made from these images and options already")
        return made
    if made and replace:
        then, now = sum(made[part]["images"] for part in PARTS), sum(map(len, found.images.values()))
        what = f"{then:,} images then, {now:,} now" if then != now else "another size or split, or changed files"
        raise ValueError(f"{out}: holds a set of other images or options ({what}). {replace}")
    print(f"{images}: {sum(map(len, found.images.values())):,} images of {len(found.images):,} classes")
    say_some("empty class folders", found.empty)
    photos = [path for path in found.ignored if path.suffix.lower() in (".heic", ".heif")]
    say_some("files skipped (not images by their extension)", [path for path in found.ignored if path not in photos])
    if photos:
        print(f"{len(photos):,} .heic photos are skipped, {photos[0]} for one: {HEIC}")
    found = without_shared(found, duplicates == "drop")
    classes = sorted(found.images, key=os.fsencode)
    label_of = {name: label for label, name in enumerate(classes)}
    parts = dict(zip(PARTS, split_classes(classes, groups, test_fraction, holdout, seed)))
    if len(parts["train"]) < 2:
        raise ValueError(f"{images}: training needs at least two classes besides the test classes; "
                         f"found {len(classes)} classes in all")  # fmt: skip
    entries = {part: [Entry(file, name, label_of[name]) for name in names for file in found.images[name]]
               for part, names in parts.items()}  # fmt: skip
    if batch is not None:  # what is wrong shows before the work
        make_plan([entry.label for entry in entries["train"]], batch, seed, max_positive_pairs)

    record = {"name": out.name, "images": str(found.root), "size": size, "holdout": holdout, "seed": seed, "batch": batch,
              "fingerprint": fingerprint}  # fmt: skip
    files = ((entry.path, found.root / entry.path) for part in PARTS for entry in entries[part])
    load = functools.partial(load_image, size=size)
    written = write_set(out, entries, files, load, size, record, imagenet_mean() if mean == "imagenet" else None, skip_unreadable,
                        advice=f"Images of half the size (--size {size // 2}) need a quarter.")  # fmt: skip
    if batch is not None:
        write_plan(out / plan_file(batch), [entry.label for entry in written["train"]], batch, seed, max_positive_pairs)
    finish(out, record)
    return record


def read_groups(path, found):
    """class -> group from a CSV file with the columns class and group; ValueError names a class that the Folder `found` lacks."""
    groups, names = {}, {}
    classes = {same_text(name): name for name in [*found.empty, *found.images]}
    for line, row in read_rows(path, "class", "group"):
        if not row["class"] or not row["group"]:
            raise ValueError(f"{path}: line {line} has no class or no group")
        name = classes.get(same_text(row["class"]), row["class"])
        if name in groups:
            raise ValueError(f"{path}: the class {name} is there twice, the second time in line {line}")
        if name not in found.images and name not in found.empty:
            raise ValueError(f"{path}: line {line} names the class {name}, which {found.root} does not have")
        groups[name] = names.setdefault(same_text(row["group"]), row["group"])
    return groups


def fraction(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, not {text}")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True,
                        help="folder with a folder of images for each class, or a CSV file path,class")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to make, data/<set>")
    parser.add_argument("--size", type=int, default=256, help="height and width of the stored images, pixels (default 256)")
    parser.add_argument("--groups", type=Path, help="CSV file class,group: classes of one group stay on one side of the split")
    parser.add_argument("--test-fraction", type=fraction, default=0.5, help="share of the groups that test (default 0.5)")
    parser.add_argument("--holdout", type=fraction, default=0.0,
                        help="this share of the training groups takes the place of the test (default 0)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of the split and the batch plan (default 1)")
    parser.add_argument("--batch", type=int, default=128, help="images a training batch (default 128)")
    parser.add_argument("--max-positive-pairs", type=int, default=MAX_POSITIVE_PAIRS,
                        help=f"draw this many where there are more (default {MAX_POSITIVE_PAIRS:,})")  # fmt: skip
    parser.add_argument("--mean", choices=("own", "imagenet"), default="own",
                        help="mean image: of the training images (own), or ImageNet's, for nets pretrained on it")  # fmt: skip
    parser.add_argument(
        "--duplicates",
        choices=("keep", "drop"),
        default="keep",
        help="drop: leave out images that are in several classes, byte for byte (default keep)",
    )
    parser.add_argument("--skip-unreadable", action="store_true", help="pass over files that cannot be decoded")
    arguments = vars(parser.parse_args())
    if arguments["size"] < 1:
        parser.error("--size must be positive")
    if arguments["mean"] == "imagenet" and arguments["size"] != 256:
        parser.error("ImageNet's mean image is for --size 256")
    read_images(arguments["images"])  # what is mistyped shows before a folder is made
    with locked(arguments["out"], "making a set"):
        build(**arguments)


if __name__ == "__main__":
    run("build_set", main)
