"""Miniatures of the paper's data sets: drawn JPEGs in archives of the official layouts, with the official lists' formats."""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

CUB_CLASSES = {1: "001.Black_footed_Albatross", 2: "002.Laysan_Albatross", 3: "003.Sooty_Albatross", 101: "101.White_Pelican",
               102: "102.Western_Wood_Pewee", 200: "200.Common_Yellowthroat"}  # fmt: skip
CARS_CLASSES = [f"Make Model {number} {'C/V ' if number == 3 else ''}2012" for number in range(1, 197)]
CARS_IN_USE = (1, 3, 98, 99, 150, 196)
EACH = 6  # images of a class


def jpeg(random, colour, side=(40, 60), mode="RGB"):
    """The bytes of a JPEG: a coloured thing on white, of some size."""
    height, width = (int(random.integers(*side)) for _ in range(2))
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[height // 4 : -height // 4, width // 5 : -width // 5] = np.clip(colour + random.integers(-20, 20, 3), 0, 255)
    image = Image.fromarray(pixels).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=92)
    return stream.getvalue()


def pictures(classes, seed=0):
    """[(class, number of the image in it, JPEG)], one of them greyscale."""
    random = np.random.default_rng(seed)
    found = []
    for label in classes:
        colour = random.integers(20, 235, 3)
        found += [(label, number, jpeg(random, colour, mode="L" if (label, number) == (classes[0], 2) else "RGB"))
                  for number in range(EACH)]  # fmt: skip
    return found


def add(archive, name, content, **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def cub_members(seed=0):
    """{path below CUB_200_2011/: content}; images.txt is not in the order of the paths, as the official one is not."""
    found = pictures(list(CUB_CLASSES), seed)
    rows = []
    for place, (label, number, content) in enumerate(found):
        folder = CUB_CLASSES[label]
        rows.append((label, f"{folder}/{folder[4:].title()}_{(number * 5) % 7:04}_{place}.jpg", content))
    members = {f"images/{path}": content for _, path, content in rows}
    members["images.txt"] = "".join(f"{place} {path}\n" for place, (_, path, _) in enumerate(rows, 1)).encode()
    members["image_class_labels.txt"] = "".join(f"{place} {label}\n" for place, (label, _, _) in enumerate(rows, 1)).encode()
    members["classes.txt"] = "".join(f"{label} {name}\n" for label, name in CUB_CLASSES.items()).encode()
    return members


def write_tar(path, members, prefix=""):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            add(archive, prefix + name, content)
    return path


def cub(folder, members=None):
    """CUB_200_2011.tgz, images first, as in the official one."""
    members = dict(sorted((members or cub_members()).items()))
    members["images/001.Black_footed_Albatross/._hidden.jpg"] = b"what a file system left behind"
    return write_tar(folder / "CUB_200_2011.tgz", members, "CUB_200_2011/")


def matlab(path, **variables):
    """A .mat file of version 5; lists of dicts become 1 x n struct arrays, lists of strings cell arrays."""
    written = {}
    for name, values in variables.items():
        if isinstance(values[0], dict):
            array = np.empty((1, len(values)), dtype=[(field, object) for field in values[0]])
            for place, value in enumerate(values):
                for field, item in value.items():  # numbers in the smallest type that holds them, as the official files
                    kind = np.uint8 if isinstance(item, str) or item < 256 else np.uint16
                    array[0, place][field] = item if isinstance(item, str) else np.array([[item]], kind)
        else:
            array = np.empty((1, len(values)), dtype=object)
            array[0, :] = values
        written[name] = array
    scipy.io.savemat(path, written)
    return path


def _box(place):
    return {"bbox_x1": 1, "bbox_y1": 2, "bbox_x2": 300 + place, "bbox_y2": 200}


def cars(folder):
    """Layout A: car_ims.tgz and cars_annos.mat. Returns the archive's path."""
    found = pictures(CARS_IN_USE)
    names = [f"car_ims/{place:06}.jpg" for place in range(1, len(found) + 1)]
    rows = [{"relative_im_path": name, **_box(place), "class": label, "test": place % 2}
            for place, (name, (label, _, _)) in enumerate(zip(names, found))]  # fmt: skip
    matlab(folder / "cars_annos.mat", annotations=rows, class_names=CARS_CLASSES)
    return write_tar(folder / "car_ims.tgz", {name: content for name, (_, _, content) in zip(names, found)})


def cars_zip(folder):
    """Layout A in one file, CARS196.zip."""
    source = cars(folder)
    with zipfile.ZipFile(folder / "CARS196.zip", "w") as archive, tarfile.open(source) as images:
        archive.write(folder / "cars_annos.mat", "CARS196/cars_annos.mat")
        for member in images:
            archive.writestr(f"CARS196/{member.name}", images.extractfile(member).read())
    source.unlink()
    (folder / "cars_annos.mat").unlink()
    return folder / "CARS196.zip"


def cars_in_two(folder):
    """Layout B: the official classification split's two folders, whose numbers both begin at 1. Returns cars_train.tgz."""
    found = list(enumerate(pictures(CARS_IN_USE)))
    devkit = {"devkit/cars_meta.mat": matlab(folder / "cars_meta.mat", class_names=CARS_CLASSES).read_bytes()}
    for half, name in enumerate(("cars_train", "cars_test")):
        mine = found[half::2][::-1]  # in another order than in cars_annos.mat, as the official ones are
        rows = [
            {**_box(place), "class": label, "fname": f"{number:05}.jpg"} for number, (place, (label, _, _)) in enumerate(mine, 1)
        ]
        bare = [{field: row[field] for field in row if field != "class"} for row in rows]
        labelled = matlab(folder / f"{name}_annos{'_withlabels' if half else ''}.mat", annotations=rows)
        devkit[f"devkit/{name}_annos.mat"] = (
            matlab(folder / f"{name}_annos.mat", annotations=bare) if half else labelled
        ).read_bytes()
        write_tar(folder / f"{name}.tgz", {f"{name}/{number:05}.jpg": image for number, (_, (_, _, image)) in enumerate(mine, 1)})
    write_tar(folder / "car_devkit.tgz", devkit)
    for name in devkit:
        (folder / Path(name).name).unlink()
    return folder / "cars_train.tgz"


def cars_kaggle(folder, labels="cars_test_annos_withlabels (1).mat"):
    """Layout B unpacked, as it circulates: cars_annos.mat beside it, a folder more, the test's labels or not. Returns `folder`."""
    cars(folder)
    cars_in_two(folder)
    for name in ("cars_train", "cars_test", "car_devkit"):
        shutil.unpack_archive(folder / f"{name}.tgz", folder / name)
    for packed in folder.glob("*.tgz"):
        packed.unlink()
    (folder / "cars_test_annos_withlabels.mat").rename(folder / (labels or "unused"))
    (folder / "unused").unlink(missing_ok=True)
    return folder


def sop(folder):
    """Stanford_Online_Products.zip: lists with a header, test ids going on where the training ids end."""
    train, test = pictures((1, 2, 3), 1), pictures((11319, 11320, 11321), 2)
    with zipfile.ZipFile(folder / "Stanford_Online_Products.zip", "w") as archive:
        image_id = 0
        for part, found in (("train", train), ("test", test)):
            lines = ["image_id class_id super_class_id path"]
            for label, number, content in found:
                image_id += 1
                path = f"bicycle_final/{111000000000 + label}_{number}.JPG"
                lines.append(f"{image_id} {label} 1 {path}")
                archive.writestr(f"Stanford_Online_Products/{path}", content)
            archive.writestr(f"Stanford_Online_Products/Ebay_{part}.txt", "\n".join(lines) + "\n")
    return folder / "Stanford_Online_Products.zip"
