"""The paper's data sets -> data/<set>/: LMDBs of 256x256 images, mean image and batch plan.

    .venv/bin/python data_prep/paper_sets.py --set cub                                 # downloads what is not there
    .venv/bin/python data_prep/paper_sets.py --set cars196 --archive ~/car_ims.tgz     # cars_annos.mat lies beside it

Images are read by the set's own lists, straight from the archives. The first half of the class ids trains, the rest
tests; labels are the set's own class ids. What is there already is not made again.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import functools
import hashlib
import zipfile
from pathlib import Path

from data_prep.archives import COPY, PACKED, PREFIXES, by_name, count_members, identity, no_archive, read_members, some_members
from data_prep.batch_plan import BATCH, labels_of, plan_file, write_plan
from data_prep.download import DOWNLOADS, Unreachable, difference, fetch
from data_prep.files import locked, user_path
from data_prep.image import RESIZES, load_image
from data_prep.imagenet import imagenet_mean
from data_prep.paired_lmdb import paired_file, write_paired
from data_prep.paper_files import SETS
from data_prep.write_set import PARTS, finish, read_set, write_set

AS_IT_IS = "With COUNTS=any (--counts any) it is taken as it is, and every table made from it says so."
SIZE = 256  # paper, section 5: "normalized to 256 by 256"


def locate(name, archive):
    """The files that hold a set: [(path, Download or None)], fetched when they are not there.

    With `archive` it is one of the official files, the others being looked for beside it and then as without; or a
    folder that holds them, or archives of other names, or what they were unpacked to; or a file with the whole set in it.
    """
    layouts = SETS[name].layouts
    if archive is None:
        here = [layout for layout in layouts if all((DOWNLOADS / file.name).exists() for file in layout)]
        failures = []
        for layout in here or layouts:
            try:
                return [(fetch(file), file) for file in layout]
            except Unreachable as error:
                others = "".join(f"\n    beside it: {file.describe()}" for file in layout[1:])
                failures.append(f"{error}{others}")
        raise Unreachable(
            "\nor\n".join(failures) + f"\nor name the place: make data-{name} ARCHIVE=<the file, or a folder that holds it>"
        )
    if not archive.exists():
        raise ValueError(f"{archive}: no such file or folder (ARCHIVE)")
    for layout in layouts:
        folder = archive if archive.is_dir() else archive.parent
        if (folder / layout[0].name).exists() if archive.is_dir() else archive.name in [file.name for file in layout]:
            found = []
            for file in layout:
                beside = folder / file.name
                found.append((beside if beside.exists() else fetch(file), file))
            return found
    if not archive.is_dir():
        return [(archive, None)]
    packed = sorted(path for path in archive.iterdir() if path.is_file() and path.name.lower().endswith(PACKED))
    return [(path, None) for path in (*packed, archive)]


def verify(files, any_count):
    """What speaks against these being the official files, in words; ValueError unless `any_count` lets it pass."""
    if told := [f"{path}: {what}" for path, file in files if file and (what := no_archive(path))]:
        raise ValueError("\n".join(told))
    doubts = [f"{path}: {wrong}" for path, file in files if file and (wrong := difference(path, file))]
    if doubts and not any_count:
        raise ValueError("\n".join(doubts) + f"\nIt was damaged on the way, or is not the official file. {AS_IT_IS}")
    return doubts


def member_lists(name):
    """Names of all members that may hold the set's annotations."""
    return frozenset().union(*SETS[name].lists)


def find_lists(name, files):
    """{list name: content} of the annotation lists in the files: of the ways to have them the one whose images are there.

    A .tar is read up to the first complete way: to look further would be to unpack all of it.
    """
    groups, lists = SETS[name].lists, {}
    for path, _ in sorted(files, key=lambda found: found[0].stat().st_size):  # the lists lie in the small ones
        own = _list_of(name, path)
        for member, content in [(own, path.read_bytes())] if own else read_members(path, member_lists(name)):
            lists.setdefault(member, content)
            if any(group <= lists.keys() for group in groups) and not path.is_dir() and not zipfile.is_zipfile(path):
                break
    complete = [{member: lists[member] for member in group} for group in groups if group <= lists.keys()]
    if complete:
        return max(complete, key=lambda found: _images_there(name, files, found)) if len(complete) > 1 else complete[0]
    seen = [f"{path} ({', '.join(some_members(path)) or 'nothing'}, ...)" for path, _ in files]
    wanted, official = (
        [", ".join(names) for names in group]
        for group in (map(sorted, groups), ([file.name for file in layout] for layout in SETS[name].layouts))
    )
    raise ValueError(
        f"expected the lists {' or '.join(wanted)}; found {', '.join(sorted(lists)) or 'none'} in {'; '.join(seen)}, at most "
        f"{PREFIXES} folders deep. The official files are {' or '.join(official)}"
    )


def _list_of(name, path):
    """The list that the file at `path` is, or None."""
    return by_name(member_lists(name)).get(COPY.sub("", path.name).casefold())


def _images_there(name, files, lists):
    """How many of the images that these lists name are in the files, as far as that can be seen without unpacking them."""
    wanted = {entry.path for entries in read_lists(name, files, lists).values() for entry in entries}
    return sum(count_members(path, wanted) or 0 for path, _ in files if not _list_of(name, path))


def read_lists(name, files, lists):
    """Entries of each part. Raises ValueError for lists of another form, however wrong they are."""
    try:
        entries = SETS[name].read(lists)
        if wrong := [
            entry for part in PARTS for entry in entries[part] if not 0 < entry.label < 2**24
        ]:  # Caffe's labels are floats
            raise ValueError(f"image {wrong[0].path} has the class {wrong[0].label}; class ids begin at 1")
        return entries
    except ValueError as error:
        raise ValueError(f"{files[0][0]}: {error}") from None
    except Exception as error:
        raise ValueError(f"{files[0][0]}: the lists {', '.join(sorted(lists))} are not the official ones "
                         f"({type(error).__name__}: {error})") from None  # fmt: skip


def check_counts(name, entries, any_count):
    """What differs from the published numbers, in words; ValueError unless `any_count` lets it pass."""
    expected = SETS[name]
    doubts = []
    for part in PARTS:
        found = {"images": len(entries[part]), "classes": len({entry.label for entry in entries[part]})}
        for what, number in (("images", expected.images[part]), ("classes", expected.classes[part])):
            if found[what] != number:
                doubts.append(f"{part}: {found[what]:,} {what}, published {number:,}")
    if doubts and not any_count:
        raise ValueError(f"{name} is not as published:\n    " + "\n    ".join(doubts) +
                         f"\n{AS_IT_IS}")  # fmt: skip
    return doubts


def check_spots(name, files, lists, wanted, any_count):
    """What differs from the published lists and from a few images, in words, where a file has no checksum of its own."""
    expected, sums = SETS[name].spots, SETS[name].sums
    if all(file and file.checksum for _, file in files):
        return []
    found = {member: hashlib.md5(content).hexdigest() for path, _ in files if not _list_of(name, path)
             for member, content in read_members(path, set(expected))}  # fmt: skip
    right = [member for member in found if found[member] == expected[member]]
    doubts = [f"{member} is not the published list" for member, value in sums.items()
              if member in lists and hashlib.sha256(lists[member]).hexdigest() != value]  # fmt: skip
    # The lists of the two-folder layout are known by their sums, of its images none is.
    known = lists.keys() <= sums.keys() and not any(member in wanted for member in expected)
    if (not right and not known) or len(right) < len(found):
        doubts.append(f"of {len(expected)} images whose MD5 is known, {len(found)} are there and {len(right)} agree")
    doubts = [f"{files[0][0]}: cannot be told to be official; {doubt}" for doubt in doubts]
    if doubts and not any_count:
        raise ValueError("\n".join(doubts) + f"\n{AS_IT_IS}")
    return doubts


def beside(name, archive):
    """The archive, and the set's other official files that may lie beside it."""
    names = sorted({file.name for layout in SETS[name].layouts for file in layout} - {archive.name})
    return [archive] if archive.is_dir() else [archive, *(archive.with_name(other) for other in names)]


def make(name, out, archive, resize, any_count, skip_unreadable):
    """Make data/<set> without its plan, as the module says; returns its record."""
    options = {"resize": resize, "counts": "any" if any_count else "published", "skip_unreadable": skip_unreadable,
               "size": SIZE, "layout": 1}  # fmt: skip
    made = read_set(out)
    source = [identity(path) for path in beside(name, archive) if path.exists()] if archive else None
    if made.get("options") == options and (archive is None or made["official"] or source == made["archive"]):
        print(f"{out}: is made already, from {', '.join(made['files'])}")
        return made
    if made.get("official") and any_count:
        raise ValueError(f"{out}: holds the official set, which COUNTS=any would replace; move it away or remove it first")
    files = locate(name, archive)
    doubts = verify(files, any_count)
    lists = find_lists(name, files)
    entries = read_lists(name, files, lists)
    doubts += check_counts(name, entries, any_count)
    wanted = {entry.path for part in PARTS for entry in entries[part]}
    doubts += check_spots(name, files, lists, wanted, any_count)
    if len(wanted) < sum(map(len, entries.values())):
        raise ValueError(f"{files[0][0]}: its lists name an image twice")

    images = (found for path, _ in files if not _list_of(name, path) for found in read_members(path, wanted))
    load = functools.partial(load_image, size=SIZE, resize=resize, upright=False)
    record = {"name": name, "size": SIZE, "options": options, "archive": source, "files": [str(path) for path, _ in files]}
    written = write_set(out, entries, images, load, SIZE, record, mean=imagenet_mean(), skip_unreadable=skip_unreadable)
    if skipped := len(wanted) - sum(map(len, written.values())):
        doubts.append(f"{skipped:,} unreadable images were passed over")
    record |= {"official": not doubts, "doubts": doubts}
    finish(out, record)
    if doubts:
        print("This is not the official set:\n    " + "\n    ".join(doubts))
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, required=True, dest="name")
    parser.add_argument("--out", type=Path, help="folder to make (default data/<set>)")
    parser.add_argument("--archive", type=user_path, help="the set's file where you have it, or a folder that holds it")
    parser.add_argument("--resize", choices=RESIZES, help="default: plain, but crop15 for sop")
    parser.add_argument("--counts", choices=("published", "any"), default="published",
                        help="any: go on where the files, images or classes are not the published ones")  # fmt: skip
    parser.add_argument("--skip-unreadable", action="store_true", help="pass over images that cannot be decoded")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"images a training batch (default {BATCH})")
    parser.add_argument("--layout", choices=("once", "paired"), default="once",
                        help="paired: also the authors' LMDB, each image again for every appearance")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.batch < 2 or arguments.batch % 2:
        parser.error(f"--batch must be even, at least 2 (BATCH={arguments.batch})")
    out = arguments.out or Path("data") / arguments.name
    with locked(out, "making a set"):
        make(arguments.name, out, arguments.archive, arguments.resize or SETS[arguments.name].resize, arguments.counts == "any",
             arguments.skip_unreadable)  # fmt: skip
        plan = out / plan_file(arguments.batch)
        if not plan.exists():
            write_plan(plan, labels_of(out / "train.csv"), arguments.batch)
        if arguments.layout == "paired":
            write_paired(out / "train.lmdb", plan, out / paired_file(arguments.batch))


if __name__ == "__main__":
    run("paper_sets", main)
