"""The annotation lists of the paper's data sets -> entries, by part.

Each reader takes {list name: content} and returns {"train": [Entry], "test": [Entry]} in the lists' order. The first
half of the class ids trains. Raises ValueError naming the list and what is wrong with it.
"""

import codecs
import io

import scipy.io

from data_prep.write_set import PARTS, Entry

# Of the boxes in Cars196's test images, seven are those of two images of different classes: cars_annos.mat, which has no
# names of theirs, cannot tell these apart. Their classes are those of the public list with labels.
SHARED_BOXES = {
    "00288.jpg": 189,
    "01236.jpg": 14,
    "01389.jpg": 84,
    "01723.jpg": 43,
    "02854.jpg": 44,
    "03331.jpg": 16,
    "03745.jpg": 71,
    "04340.jpg": 31,
    "05063.jpg": 83,
    "05844.jpg": 19,
    "06136.jpg": 186,
    "06530.jpg": 36,
    "06765.jpg": 64,
    "07491.jpg": 17,
}
BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def as_published(name, content):
    """A text list without what editors and other systems add: a byte order mark, UTF-16, line ends of Windows."""
    if not name.endswith(".txt"):
        return content
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", "replace").encode(errors="replace")
    return content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")


def _rows(name, content, columns):
    """The lines of a list as tuples; ValueError names the line that has another number of columns."""
    rows = []
    for number, line in enumerate(content.decode("utf-8", "surrogateescape").splitlines(), 1):
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


def read_cars196(lists):
    """Cars196, as one folder (cars_annos.mat alone) or as two (cars_train, cars_test): both give the same halves.

    Where the list of the second folder has no classes, cars_annos.mat has them.
    """
    whole, meta = lists.get("cars_annos.mat"), lists.get("cars_meta.mat", lists.get("cars_annos.mat"))
    if "cars_train_annos.mat" not in lists:
        found = [(row["relative_im_path"], int(row["class"])) for row in _matlab("cars_annos.mat", "annotations", whole)]
    else:
        test = next(name for name in ("cars_test_annos_withlabels.mat", "cars_test_annos.mat") if name in lists)
        rows = {name: _matlab(name, "annotations", lists[name]) for name in ("cars_train_annos.mat", test)}
        if test == "cars_test_annos.mat":
            rows[test] = _with_classes(rows[test], _matlab("cars_annos.mat", "annotations", whole))
        found = [(f"{folder}/{row['fname']}", int(row["class"]))
                 for folder, name in zip(("cars_train", "cars_test"), rows) for row in rows[name]]  # fmt: skip
    class_names = _matlab("class_names", "class_names", meta)
    if wrong := [label for _, label in found if not 1 <= label <= len(class_names)]:
        raise ValueError(f"an annotation has the class {wrong[0]}, and there are names of {len(class_names)} classes")
    return _halves([Entry(path, str(class_names[label - 1]), label) for path, label in found], 98)


def _with_classes(rows, annotations):
    """The rows of cars_test_annos.mat with the class that an annotation of the same box has among the test's."""
    classes = {}
    for row in annotations:
        if row["test"]:
            classes.setdefault(tuple(row[side] for side in BOX), set()).add(int(row["class"]))
    labelled = []
    for row in rows:
        possible = classes.get(tuple(row[side] for side in BOX), set())
        label = min(possible) if len(possible) == 1 else SHARED_BOXES.get(row["fname"])
        if label not in possible:
            told = " or ".join(map(str, sorted(possible))) or "no class"
            raise ValueError(
                f"cars_test_annos.mat: {row['fname']} has a box for which cars_annos.mat says {told}; "
                "put cars_test_annos_withlabels.mat there, which has the classes"
            )
        labelled.append({**row, "class": label})
    return labelled


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
