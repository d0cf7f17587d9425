"""The authors' LMDB, for stock `Data` layers: each image again for every appearance, in the order of the batch plan.

    .venv/bin/python data_prep/paired_lmdb.py --set data/cub         # -> data/cub/train_paired.lmdb

Caffe reads it from the beginning to the end and again; `batch_size` must be the plan's batch.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
from pathlib import Path

import lmdb
from tqdm import tqdm

from data_prep.batch_plan import BATCH, plan_file
from data_prep.files import locked, remove_partials, require_space, written_aside
from data_prep.write_set import COMMIT_EVERY, disk_errors
from pair_batch import ImageDatabase, read_plan


def paired_file(batch=BATCH):
    """The LMDB's name in its set's folder."""
    return "train_paired.lmdb" if batch == BATCH else f"train_paired_m{batch}.lmdb"


def write_paired(source, plan, target):
    """Copy the Datums of the LMDB `source` to `target` in the order of the plan, under keys 00000000, 00000001, ..."""
    if target.exists():
        print(f"{target}: is made already")
        return
    images = ImageDatabase(str(source))
    batches = read_plan(plan, len(images))[0]
    if plan.name != plan_file(batches.shape[1]):  # stock Caffe would tear its pairs apart
        raise ValueError(f"{plan}: holds batches of {batches.shape[1]} images, and its name says another number; remove it, and "
                         "draw it again with data_prep/batch_plan.py")  # fmt: skip
    order = batches.ravel()
    value_bytes = -(-len(images.record(0)) // 4096) * 4096 + 256  # an LMDB stores it in whole pages, and its key
    needed = order.size * value_bytes
    once = len(images) * value_bytes
    print(f"{target}: {order.size:,} images, {needed / 1e9:.3g} GB ({source.name} has {once / 1e9:.3g} GB)")
    remove_partials(target.parent)
    require_space(target.parent, needed, "The layout without repetition (LAYOUT=once) needs no more than is there.")
    with (
        disk_errors(target.parent),
        written_aside(target) as aside,
        lmdb.open(str(aside), map_size=2 * needed + (64 << 20), sync=False) as environment,  # written_aside does
        tqdm(total=order.size, desc=target.name, unit="image", mininterval=0.5) as bar,
    ):
        for start in range(0, order.size, COMMIT_EVERY):
            with environment.begin(write=True) as writing:
                for place, image in enumerate(order[start : start + COMMIT_EVERY], start):
                    writing.put(b"%08d" % place, images.record(image), append=True)
            bar.update(min(COMMIT_EVERY, order.size - start))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of the set, data/<set>")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"images a training batch (default {BATCH})")
    arguments = parser.parse_args()
    plan = arguments.set / plan_file(arguments.batch)
    if not plan.exists() or not (arguments.set / "train.lmdb").exists():
        raise ValueError(f"{plan}: not there, or train.lmdb; make data-cub (-cars196, -sop) makes the paper's sets, "
                         "data_prep/build_set.py any other")  # fmt: skip
    with locked(arguments.set, "making a set"):
        write_paired(arguments.set / "train.lmdb", plan, arguments.set / paired_file(arguments.batch))


if __name__ == "__main__":
    run("paired_lmdb", main)
