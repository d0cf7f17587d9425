"""A folder of images (class-name/image.png) -> LMDBs, mean image and batch plan in data/<set>/.

    python data_prep/build_set.py --images photos/ --out data/shoes

Classes are split, not images: the test classes are never seen in training. Everything is written aside and renamed
when complete, set.json last; called again with the same images and options, it does nothing.
"""

from data_prep.command import run

# isort: split

import argparse
import contextlib
import csv
import hashlib
import json
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import lmdb
import numpy as np
from caffe_pb2 import BlobProto, Datum
from tqdm import tqdm

from data_prep.batch_plan import MAX_POSITIVE_PAIRS, make_plan, save_plan
from data_prep.files import locked, read_record, require_space, written_aside
from data_prep.folder import load_image, read_folder

FILES = ("train.lmdb", "test.lmdb", "train.csv", "test.csv", "mean.binaryproto", "pairs.npz")  # of a set, besides set.json
COMMIT_EVERY = 1000  # images a transaction, as convert_imageset and the authors' writer


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
    tests = max(1, round(len(names) * test_fraction))
    train, test = shuffled[: len(names) - tests], shuffled[len(names) - tests :]
    if holdout:
        held = max(1, round(len(train) * holdout))
        train, test = train[: len(train) - held], train[len(train) - held :]
    return tuple(sorted((name for group in part for name in members[group]), key=os.fsencode) for part in (train, test))


def lmdb_bytes(images, size):
    """What an LMDB of so many images takes: each fills whole pages of 4 kB, and the tree comes on top."""
    return images * (-(-(3 * size * size + 64) // 4096) * 4096 + 256)


class Written(NamedTuple):
    """What write_lmdb did."""

    places: list[int]  # in its items, of the images that are in the LMDB
    unreadable: list[str]  # a line for each of the others: file and reason
    mean: np.ndarray  # (3, size, size) float64
    digest: str  # SHA-256 of all pixels


def write_lmdb(path, items, size, title):
    """Write (file, label) `items` as Datums under keys 00000000, 00000001, ... of an LMDB at `path`; returns Written."""
    total = np.zeros((3, size, size), np.int64)
    written, unreadable, pixels = [], [], hashlib.sha256()
    with lmdb.open(str(path), map_size=2 * lmdb_bytes(len(items), size) + (64 << 20)) as environment:
        transaction = environment.begin(write=True)
        for place, image in enumerate(tqdm(_decoded(items, size), title, len(items), unit="image", mininterval=0.5)):
            if isinstance(image, Exception):
                unreadable.append(f"{items[place][0]}: {image}")
                continue
            datum = Datum(channels=3, height=size, width=size, data=image.tobytes(), label=items[place][1])
            transaction.put(b"%08d" % len(written), datum.SerializeToString(), append=True)
            total += image
            pixels.update(image)
            written.append(place)
            if len(written) % COMMIT_EVERY == 0:
                transaction.commit()
                transaction = environment.begin(write=True)
        transaction.commit()
    return Written(written, unreadable, total / max(1, len(written)), pixels.hexdigest())


def _decoded(items, size):
    """Images of `items` in their order, decoded by all cores (Pillow decodes without Python's lock), a few ahead."""

    def load(file):
        try:
            return load_image(file, size)
        except (OSError, ValueError) as error:
            return error

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        for file, _ in items:
            waiting.append(pool.submit(load, file))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def write_mean(path, mean):
    """Write a mean image (channels, height, width) as Caffe's compute_image_mean does: a BlobProto, 4-D, float32."""
    channels, height, width = mean.shape
    blob = BlobProto(num=1, channels=channels, height=height, width=width, data=mean.astype(np.float32).ravel().tolist())
    path.write_bytes(blob.SerializeToString())


def describe(classes, labels):
    """Numbers of images and classes, and the classes with one image."""
    ids, counts = np.unique(labels, return_counts=True)
    return {"images": len(labels), "classes": int(ids.size), "singletons": [classes[i] for i in ids[counts == 1]]}


def refuse_or_name(unreadable, count, skip):
    """Raise ValueError that lists all unreadable files, or print the list when they are to be skipped."""
    names = "\n".join(f"    {line}" for line in unreadable)
    if unreadable and not skip:
        raise ValueError(f"{len(unreadable)} of {count} files cannot be read as images:\n{names}\n"
                         "Mend or remove them, or pass over them with --skip-unreadable.")  # fmt: skip
    if unreadable:
        print(f"passed over {len(unreadable)} unreadable files:\n{names}")


def fingerprint_of(found, images, options):
    """Changes with the options and with any file's name, size or time of change."""
    listing = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for files in found.images.values():
        for file in files:
            status = file.stat()
            listing.update(b"%s\0%d\0%d\0" % (os.fsencode(file.relative_to(images)), status.st_size, status.st_mtime_ns))
    return listing.hexdigest()


def build(images, out, size, groups, test_fraction, holdout, seed, batch, max_positive_pairs, skip_unreadable):
    """Make data/<set> as the module says; returns what set.json holds."""
    found = read_folder(images)
    options = {"size": size, "groups": groups, "test_fraction": test_fraction, "holdout": holdout, "seed": seed,
               "batch": batch, "max_positive_pairs": max_positive_pairs, "skip_unreadable": skip_unreadable,
               "images": str(images), "layout": 2}  # fmt: skip
    fingerprint = fingerprint_of(found, images, options)
    record = out / "set.json"
    made = read_record(record)
    if made.get("fingerprint") == fingerprint and all((out / name).exists() for name in FILES):
        print(f"{out}: is made from these images and options already")
        return made
    count = sum(map(len, found.images.values()))
    print(f"{images}: {count:,} images of {len(found.images):,} classes")
    _name("empty class folders", found.empty)
    _name("entries that are no images by their name, ignored", found.ignored)
    classes = sorted(found.images, key=os.fsencode)
    label_of = {name: label for label, name in enumerate(classes)}
    parts = dict(zip(("train", "test"), split_classes(classes, groups, test_fraction, holdout, seed)))
    if len(parts["train"]) < 2:
        raise ValueError(f"{images}: training needs at least two classes besides the test classes; "
                         f"found {len(classes)} classes in all")  # fmt: skip

    labels = [label_of[name] for name in parts["train"] for _ in found.images[name]]
    batches, facts = make_plan(labels, batch, seed, max_positive_pairs)  # now, so that what is wrong shows before the work

    made = {"name": out.name, "images": str(images), "size": size, "holdout": holdout, "seed": seed, "fingerprint": fingerprint}
    out.mkdir(parents=True, exist_ok=True)
    require_space(out, lmdb_bytes(count, size), f"Images of half the size (--size {size // 2}) need a quarter.")
    items = {part: [(file, label_of[name]) for name in names for file in found.images[name]] for part, names in parts.items()}
    with contextlib.ExitStack() as stack:  # both LMDBs or neither, and what cannot be read is named for both together
        written = {part: write_lmdb(stack.enter_context(written_aside(out / f"{part}.lmdb")), items[part], size, f"{part}.lmdb")
                   for part in parts}  # fmt: skip
        refuse_or_name([line for part in parts for line in written[part].unreadable], count, skip_unreadable)
        if empty := [part for part in parts if not written[part].places]:
            raise ValueError(f"{images}: no image is left to {empty[0]}")
        record.unlink(missing_ok=True)  # from here on an earlier set is replaced: nothing may take it for complete

    for part in parts:
        rows = [(*items[part][place], items[part][place][0].relative_to(images)) for place in written[part].places]
        with written_aside(out / f"{part}.csv") as aside, open(aside, "w", newline="", errors="surrogateescape") as stream:
            writer = csv.writer(stream)
            writer.writerow(["path", "class", "label"])
            writer.writerows([path, classes[label], label] for _, label, path in rows)
        made[part] = describe(classes, [label for _, label, _ in rows])
        _name(f"{part} classes with one image (they are negatives and distractors)", made[part]["singletons"])
    with written_aside(out / "mean.binaryproto") as aside:
        write_mean(aside, written["train"].mean)
    if written["train"].unreadable:
        labels = [items["train"][place][1] for place in written["train"].places]
        batches, facts = make_plan(labels, batch, seed, max_positive_pairs)
    with written_aside(out / "pairs.npz") as aside:
        save_plan(aside, batches, len(labels), batch, seed, facts)
    made["plan"] = {"batches": len(batches), "batch": batch, **facts}
    _say_plan(made["plan"], max_positive_pairs)
    lists = b"".join((out / name).read_bytes() for name in FILES if "lmdb" not in name)
    made["content"] = hashlib.sha256(lists + written["train"].digest.encode() + written["test"].digest.encode()).hexdigest()
    with written_aside(record) as aside:
        aside.write_text(json.dumps(made, indent=2) + "\n")
    for part in parts:
        print(f"{out}/{part}.lmdb: {made[part]['images']:,} images of {made[part]['classes']:,} classes, {size}x{size}")
    return made


def _name(title, names):
    """Print how many there are and the first of them."""
    if names:
        more = f", ... ({len(names) - 5:,} more)" if len(names) > 5 else ""
        print(f"{len(names):,} {title}: {', '.join(str(name) for name in names[:5])}{more}")


def _say_plan(plan, limit):
    print(f"batch plan: {plan['batches']:,} batches of {plan['batch']} images, from {plan['positive_pairs']:,} positive pairs "
          f"(each image with itself among them) and {plan['negative_pairs']:,} negative ones")  # fmt: skip
    if plan["possible_positive_pairs"] > plan["positive_pairs"]:
        print(f"    {plan['possible_positive_pairs']:,} positive pairs are possible: {limit:,} of them were drawn "
              "(--max-positive-pairs)")  # fmt: skip
    if plan["repeated_classes"]:
        print(f"    {plan['repeated_classes']:,} classes ask for more negatives than there are images of other classes: "
              "every one is used before any is repeated")  # fmt: skip


def read_groups(path):
    """class -> group from a CSV file with the columns class and group."""
    with open(path, newline="", errors="surrogateescape") as stream:
        rows = csv.DictReader(stream)
        if not {"class", "group"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path}: expected the columns class and group, found {rows.fieldnames}")
        return {row["class"]: row["group"] for row in rows}


def fraction(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, not {text}")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder with a folder of images for each class")
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
    parser.add_argument("--skip-unreadable", action="store_true", help="pass over files that cannot be decoded")
    arguments = vars(parser.parse_args())
    if arguments["size"] < 1:
        parser.error("--size must be positive")
    if arguments["groups"]:
        arguments["groups"] = read_groups(arguments["groups"])
    with locked(arguments["out"], "making a set"):
        build(**{**arguments, "groups": arguments["groups"] or {}})


if __name__ == "__main__":
    run("build_set", main)
