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
import os
from pathlib import Path

from data_prep.archives import ARCHIVE, held, identity, overview, plain, read_members
from data_prep.batch_plan import BATCH, labels_of, plan_file, write_plan
from data_prep.download import DOWNLOADS, Unreachable, difference, fetch, stranger, unfit
from data_prep.files import locked, user_path
from data_prep.image import RESIZES, load_image
from data_prep.imagenet import imagenet_mean
from data_prep.paired_lmdb import paired_file, write_paired
from data_prep.paper_files import SETS
from data_prep.paper_lists import as_published
from data_prep.write_set import PARTS, finish, read_set, write_set

AS_IT_IS = "With COUNTS=any (--counts any) it is taken as it is, and every table made from it says so."
LISTS_ALONE = 1 << 20  # bytes: an official file that is smaller holds lists and no images
SIZE = 256  # paper, section 5: "normalized to 256 by 256"


def stem(name):
    """What a file is called whichever way it is packed."""
    return plain(name).split(".")[0]


def as_list(name, path):
    """The annotation list that the file is by its name, or None."""
    return {plain(member): member for member in member_lists(name)}.get(plain(path.name))


def related(name, archive):
    """{plain name: path} of the set's files, by their names, in the folder `archive`, or beside the file and itself."""
    folder = archive if archive.is_dir() else archive.parent
    stems = {stem(file.name) for layout in SETS[name].layouts for file in layout}
    found = {} if archive.is_dir() else {plain(archive.name): archive}
    for path in sorted(folder.iterdir(), reverse=True) if os.access(folder, os.R_OK) else []:
        ours = as_list(name, path) or (stem(path.name) in stems and ARCHIVE.search(path.name))
        if ours and path.is_file():
            found[plain(path.name)] = found.get(plain(path.name), path)
    return found


def locate(name, archive):
    """The files that hold a set: [(path, Download or None)], fetched when they are not there.

    With `archive` it is one of the official files, the others being looked for beside it and then as without; or a
    folder that holds them, or that they were unpacked to; or a file of another name with the whole set in it, or packed in
    another way. Then a file is not told by its own size and checksum, and its Download is None.
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
    near = related(name, archive)
    for layout in layouts:
        names = [plain(file.name) for file in layout]
        if names[0] in near if archive.is_dir() else plain(archive.name) in names:
            return [(near[official] if official in near else fetch(file), file) for official, file in zip(names, layout)]
    if archive.is_dir():  # its own lists are found as its images are
        return [(archive, None), *((path, None) for path in near.values() if ARCHIVE.search(path.name))]
    companions = set()
    for layout in layouts:
        packed_otherwise = stem(archive.name) in [stem(file.name) for file in layout]
        companions |= {stem(file.name) for file in layout if packed_otherwise or (file.size or LISTS_ALONE) < LISTS_ALONE}
    others = [path for path in near.values() if as_list(name, path) or stem(path.name) in companions]
    return [(archive, None), *((path, None) for path in others if path != archive)]


def verify(files, any_count):
    """What speaks against these being the official files, in words; ValueError unless `any_count` lets it pass."""
    for path, _ in files:
        if path.is_file() and (wrong := unfit(path)):
            raise ValueError(f"{path}: {wrong}")
    doubts = [f"{path}: {wrong}" for path, file in files if file and (wrong := difference(path, file))]
    if doubts and not any_count:
        raise ValueError("\n".join(doubts) + f"\nIt was damaged on the way, or is not the official file. {AS_IT_IS}")
    return doubts


def member_lists(name):
    """Names of all members that may hold the set's annotations."""
    return frozenset().union(*SETS[name].lists)


def official_files(name):
    return "The official files are " + " or ".join(", ".join(file.name for file in layout) for layout in SETS[name].layouts)


def find_lists(name, files):
    """The annotation lists in the files: [{list name: content}], one for each way to have them that is complete.

    Several are looked for only where the files are not official ones, and the set has more than one way.
    """
    groups, lists = SETS[name].lists, {}
    one = len(groups) == 1 or all(file for _, file in files)

    def complete():
        return [{member: lists[member] for member in sorted(group)} for group in groups if group <= lists.keys()]

    for path, _ in sorted(files, key=lambda found: found[0].stat().st_size):  # the lists lie in the small ones
        own = as_list(name, path)
        for member, content in [(own, path.read_bytes())] if own else read_members(path, member_lists(name)):
            lists.setdefault(member, as_published(member, content))
            if one and complete():
                return complete()
    if complete():
        return complete()
    raise ValueError(
        f"{files[0][0]}: expected the lists {' or '.join(', '.join(sorted(group)) for group in groups)} in it; "
        f"found {', '.join(sorted(lists)) or 'none'}. {official_files(name)}; an archive of another name is to be named itself.\n"
        + "\n".join(overview(path, member_lists(name)) for path, _ in files if not as_list(name, path))
    )


def choose(name, files, ways):
    """(lists, entries) of the way whose images are in the files. Raises ValueError where they have not one image of any."""
    read = [(lists, read_lists(name, files, lists)) for lists in ways]
    if len(SETS[name].lists) == 1 or all(file for _, file in files):
        return read[0]
    paths = [{entry.path for part in PARTS for entry in entries[part]} for _, entries in read]
    there = set().union(*(held(path, set().union(*paths)) for path, _ in files if not as_list(name, path)))
    best = max(range(len(read)), key=lambda way: len(paths[way] & there))
    if not paths[best] & there:
        lists = read[best][0].keys()
        others = [", ".join(sorted(group - lists)) for group in SETS[name].lists if group != lists]
        raise ValueError(
            f"{files[0][0]}: the images that {', '.join(lists)} names, such as {min(paths[best])}, are not there. Other lists "
            f"name them otherwise: put {' or '.join(others)} there. {official_files(name)}.\n{overview(files[0][0], set())}"
        )
    return read[best]


def read_images(name, files, wanted):
    """Yield (name, content) of the members of the files that `wanted` holds, each once."""
    left = set(wanted)
    for path, _ in files:
        if left and not as_list(name, path):
            for member, content in read_members(path, frozenset(left)):
                left.remove(member)
                yield member, content


def read_lists(name, files, lists):
    """Entries of each part. Raises ValueError for lists of another form, however wrong they are."""
    try:
        for member, content in lists.items():
            if wrong := stranger(content):
                raise ValueError(f"{member}: {wrong}")
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
    found = {member: hashlib.md5(content).hexdigest() for member, content in read_images(name, files, expected.keys() & wanted)}
    right = [member for member in found if found[member] == expected[member]]
    doubts = [f"{member} is not the published list" for member, value in sums.items()
              if member in lists and hashlib.sha256(lists[member]).hexdigest() != value]  # fmt: skip
    by_lists = not expected.keys() & wanted and lists.keys() <= sums.keys()
    if not by_lists and (not right or len(right) < len(found)):
        doubts.append(f"of {len(expected)} images whose MD5 is known, {len(found)} are there and {len(right)} agree")
    doubts = [f"{files[0][0]}: cannot be told to be official; {doubt}" for doubt in doubts]
    if doubts and not any_count:
        raise ValueError("\n".join(doubts) + f"\n{AS_IT_IS}")
    return doubts


def make(name, out, archive, resize, any_count, skip_unreadable):
    """Make data/<set> without its plan, as the module says; returns its record."""
    options = {"resize": resize, "counts": "any" if any_count else "published", "skip_unreadable": skip_unreadable,
               "size": SIZE, "layout": 1}  # fmt: skip
    made = read_set(out)
    source = None
    if archive and archive.exists():
        beside = [] if archive.is_dir() else sorted(set(related(name, archive).values()) - {archive})
        source = [identity(path) for path in (archive, *beside)]
    if made.get("options") == options and (archive is None or made["official"] or source == made["archive"]):
        print(f"{out}: is made already, from {', '.join(made['files'])}")
        return made
    if made.get("official") and any_count:
        raise ValueError(f"{out}: holds the official set, which COUNTS=any would replace; move it away or remove it first")
    files = locate(name, archive)
    doubts = verify(files, any_count)
    lists, entries = choose(name, files, find_lists(name, files))
    wanted = {entry.path for part in PARTS for entry in entries[part]}
    doubts += check_counts(name, entries, any_count)
    doubts += check_spots(name, files, lists, wanted, any_count)
    if len(wanted) < sum(map(len, entries.values())):
        raise ValueError(f"{files[0][0]}: its lists name an image twice")

    load = functools.partial(load_image, size=SIZE, resize=resize, upright=False)
    record = {"name": name, "size": SIZE, "options": options, "archive": source, "files": [str(path) for path, _ in files]}
    images, mean = read_images(name, files, wanted), imagenet_mean()
    written = write_set(out, entries, images, load, SIZE, record, mean=mean, skip_unreadable=skip_unreadable)
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
    parser.add_argument(
        "--archive",
        type=user_path,
        help="the set's file where you have it (others of it beside it), or a folder that holds it, packed or unpacked",
    )
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
