"""The annotation lists of the paper's data sets -> entries, by part.

Each reader takes {list name: content} and returns {"train": [Entry], "test": [Entry]} in the lists' order. The first
half of the class ids trains. Raises ValueError naming the list and what is wrong with it.
"""

import io

import scipy.io

from data_prep.write_set import PARTS, Entry


def _rows(name, content, columns):
    """The lines of a list as tuples; ValueError names the line that has another number of columns."""
    rows = []
    for number, line in enumerate(content.decode("utf-8-sig", "surrogateescape").splitlines(), 1):
        if not line:
            continue
        row = line.split(" ") if columns > 2 else line.split(" ", 1)
        if len(row) != columns:
            raise ValueError(f"{name}, line {number}: expected {columns} columns, found {line[:80]!r}")
        rows.append(row)
    return rows


def _number(name, text):
    if not text.isdecimal():
        raise ValueError(f"{name}: expected a whole number, found {text[:80]!r}")
    return int(text)


def _halves(entries, last_train_class):
    """Entries by part: class ids up to `last_train_class` train."""
    return {"train": [entry for entry in entries if entry.label <= last_train_class],
            "test": [entry for entry in entries if entry.label > last_train_class]}  # fmt: skip


def read_cub(lists):
    """CUB-200-2011: images.txt and image_class_labels.txt joined by image id, in their order."""
    label_of = {image: _number("image_class_labels.txt", label)
                for image, label in _rows("image_class_labels.txt", lists["image_class_labels.txt"], 2)}  # fmt: skip
    name_of = {_number("classes.txt", label): name for label, name in _rows("classes.txt", lists["classes.txt"], 2)}
    entries = []
    for image, path in _rows("images.txt", lists["images.txt"], 2):
        label = label_of.get(image)
        if label is None or label not in name_of:
            raise ValueError(
                f"images.txt: image {image} has no class in image_class_labels.txt, or its class no name in classes.txt"
            )
        entries.append(Entry(f"images/{path}", name_of[label], label))
    return _halves(entries, 100)


def _matlab(name, variable, content):
    """The array `variable` of a Matlab file, a dict for each struct in it."""
    try:
        found = scipy.io.loadmat(io.BytesIO(content), simplify_cells=True)[variable]
        return [found] if isinstance(found, (dict, str)) else list(found)
    except Exception as error:  # damaged Matlab files come out of scipy in many ways
        raise ValueError(f"{name}: cannot be read as Matlab's {variable} ({type(error).__name__}: {error})") from None


BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def _by_box(lists):
    """[{fname, class}] of the test folder where its labels are missing: cars_annos.mat has them, under other names.

    An image is known by its box. A few boxes are of two classes: these images are left out, which the counts then tell.
    """
    classes = {}
    for row in _matlab("cars_annos.mat", "annotations", lists["cars_annos.mat"]):
        if row["test"]:
            classes.setdefault(tuple(int(row[side]) for side in BOX), set()).add(int(row["class"]))
    rows = _matlab("cars_test_annos.mat", "annotations", lists["cars_test_annos.mat"])
    found = [(row["fname"], classes.get(tuple(int(row[side]) for side in BOX), set())) for row in rows]
    kept = [{"fname": name, "class": next(iter(its))} for name, its in found if len(its) == 1]
    if left := len(found) - len(kept):
        print(
            f"{left:,} images of cars_test have no box of their own in cars_annos.mat, so no class: they are left out. "
            "cars_test_annos_withlabels.mat has it"
        )
    return kept


def read_cars196(lists):
    """Cars196, as one folder (cars_annos.mat) or as two (cars_train, cars_test): all give the same halves."""
    if "cars_test_annos.mat" in lists:
        meta, found = lists["cars_annos.mat"], []
        train = _matlab("cars_train_annos.mat", "annotations", lists["cars_train_annos.mat"])
        for folder, rows in (("cars_train", train), ("cars_test", _by_box(lists))):
            found += [(f"{folder}/{row['fname']}", int(row["class"])) for row in rows]
    elif "cars_annos.mat" in lists:
        meta = lists["cars_annos.mat"]
        found = [(row["relative_im_path"], int(row["class"])) for row in _matlab("cars_annos.mat", "annotations", meta)]
    else:
        found, meta = [], lists["cars_meta.mat"]
        for folder, name in (("cars_train", "cars_train_annos.mat"), ("cars_test", "cars_test_annos_withlabels.mat")):
            found += [(f"{folder}/{row['fname']}", int(row["class"])) for row in _matlab(name, "annotations", lists[name])]
    class_names = _matlab("class_names", "class_names", meta)
    if wrong := [label for _, label in found if not 1 <= label <= len(class_names)]:
        raise ValueError(f"an annotation has the class {wrong[0]}, and there are names of {len(class_names)} classes")
    return _halves([Entry(path, str(class_names[label - 1]), label) for path, label in found], 98)


def read_sop(lists):
    """Stanford Online Products: Ebay_train.txt and Ebay_test.txt; a class is an item that was for sale."""
    entries = {}
    for part in PARTS:
        name = f"Ebay_{part}.txt"
        header, *rows = _rows(name, lists[name], 4) or [[]]
        if header != ["image_id", "class_id", "super_class_id", "path"]:
            raise ValueError(f"{name}, line 1: expected image_id class_id super_class_id path, found {' '.join(header)[:80]!r}")
        entries[part] = [Entry(path, path.rsplit("_", 1)[0], _number(name, label)) for _, label, _, path in rows]
    return entries
