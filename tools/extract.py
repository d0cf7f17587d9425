"""Features of every image of a set, each once, in the LMDB's order -> features.npz.

    .venv/bin/python tools/extract.py --set data/demo --part test --net prototxt/demo/lifted_64/deploy.prototxt \\
                                      --weights runs/demo/lifted_64/seed1/model.caffemodel --out features.npz
    .venv/bin/python tools/extract.py --set data/demo --part test --pixels 16 --out pixels.npz        # the images themselves

Centre crop, not mirrored, the set's mean subtracted: Caffe's TEST phase.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import os
import re
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "2")

import numpy as np
from tqdm import tqdm

from data_prep.batch_plan import read_list
from data_prep.files import require_writable, sha256
from data_prep.imagenet import known_weights
from data_prep.write_set import read_set
from pair_batch import ImageDatabase, centre_crop, read_mean, transform
from tools.blas import choose_kernels
from tools.device import use_device
from tools.features import read_about, save_features
from tools.runs import read_run

BATCH = 100  # images at a time,
BLOB_BYTES = 400 << 20  # or fewer, where the net's blobs would take more than this


def extract_pixels(images, size):
    """(N, 3 size^2) float32: each image averaged down to size x size pixels, as they are. And the labels (N,)."""
    channels, height, width = images.image_shape
    if height % size or width % size:
        raise ValueError(f"{images.path}: images of {height}x{width} cannot be averaged to {size}x{size}")
    features = np.empty((len(images), channels * size * size), np.float32)
    labels = np.empty(len(images), np.int64)
    for row in tqdm(range(len(images)), "raw pixels", unit="image", mininterval=0.5):
        image, labels[row] = images.read(row)
        cells = image.reshape(channels, size, height // size, size, width // size)
        features[row] = cells.mean(axis=(2, 4)).ravel()
    return features, labels


def extract_embeddings(images, deploy, weights, mean, blob, gpu=None):
    """(N, c) float32: what `blob` holds after a forward pass of each image. And the labels (N,)."""
    choose_kernels()
    import caffe

    from tools.caffe_files import NetParameter, constructed, load_modules, load_weights, read_text

    load_modules(read_text(deploy, NetParameter()), deploy)
    use_device(gpu)
    net = constructed(lambda: caffe.Net(str(deploy), caffe.TEST), deploy)
    if lacking := [name for name in ("data", blob) if name not in net.blobs]:
        last = ", ".join(list(net.blobs)[-5:])
        raise ValueError(f"{deploy}: has no blob {lacking[0]!r} (--blob); its last ones are {last}")
    layers = list(net.layer_dict)
    last = [name for name in layers if blob in net.top_names[name]][-1]
    load_weights(net, weights, new=layers[layers.index(last) + 1 :])  # what comes after the blob does not matter
    crop = net.blobs["data"].data.shape[-1]
    channels, height, width = images.image_shape
    if mean.shape != images.image_shape or crop > min(height, width):
        raise ValueError(f"{deploy}: takes crops of {crop}, but {images.path} has images of {images.image_shape} "
                         f"and a mean of {mean.shape}")  # fmt: skip
    top, left = centre_crop((height - crop, width - crop))
    labels = np.empty(len(images), np.int64)
    features = None
    size = max(1, min(BATCH, BLOB_BYTES // sum(4 * blob.count for blob in net.blobs.values())))
    with tqdm(total=len(images), desc="features", unit="image", mininterval=0.5) as bar:
        for start in range(0, len(images), size):
            rows = range(start, min(start + size, len(images)))
            net.blobs["data"].reshape(len(rows), channels, crop, crop)
            for slot, row in enumerate(rows):
                image, labels[row] = images.read(row)
                transform(image, mean, crop, top, left, False, net.blobs["data"].data[slot])
            net.forward(end=last)
            batch = net.blobs[blob].data.reshape(len(rows), -1)
            if features is None:
                features = np.empty((len(images), batch.shape[1]), np.float32)
            features[rows.start : rows.stop] = batch
            bar.update(len(rows))
    return features, labels


def describe(data_set, part, deploy, weights, blob, pixels):
    """What the features are made from, for `about` in features.npz and for the tables made from them."""
    made = read_set(data_set)
    training = read_run(Path(weights).parent).get("settings") if weights else None
    for folder, content in ((training or {}).get("data") or {}).items():
        if os.path.realpath(folder) == os.path.realpath(data_set) and content != made.get("content"):
            raise ValueError(f"{weights}: was trained on other images, or another split, than {data_set} holds now; test images "
                             "may have been seen in training. Make the set as it was, or train again (RUN=name)")  # fmt: skip
    facts = {name: made.get(name) for name in ("name", "content", "official", "doubts")}
    about = {"set": {**facts, "part": part}}
    if pixels:
        return {**about, "pixels": pixels}
    if not Path(weights).is_file():
        raise ValueError(f"{weights}: no such file; tools/train.py makes it")
    iteration = re.fullmatch(r"snapshot_iter_(\d+)", Path(weights).stem)
    if training:
        training["iteration"] = int(iteration[1]) if iteration else training.get("iterations")
    about |= {"net": str(deploy), "blob": blob, "weights": sha256(weights), "training": training}
    return about if training or blob == "fc_embedding" else {**about, "pretrained": known_weights(weights)}


def extract(data_set, part, out, deploy=None, weights=None, blob="fc_embedding", pixels=None, gpu=None):
    """Write features.npz to `out`, unless it is there and made from the same set, net and weights."""
    about = describe(data_set, part, deploy, weights, blob, pixels)
    if out.exists() and read_about(out) == about:
        return
    require_writable(out)
    paths, listed = read_list(data_set / f"{part}.csv")
    images = ImageDatabase(str(data_set / f"{part}.lmdb"))
    if len(paths) != len(images):
        raise ValueError(f"{images.path}: holds {len(images)} images, but {part}.csv lists {len(paths)}; "
                         "make the set again")  # fmt: skip
    if pixels:
        features, labels = extract_pixels(images, pixels)
    else:
        mean = read_mean(str(data_set / "mean.binaryproto"))
        features, labels = extract_embeddings(images, deploy, weights, mean, blob, gpu)
    if wrong := np.flatnonzero(labels != listed).tolist():
        raise ValueError(f"{data_set / part}.csv: is not the list of {images.path}: image {wrong[0]}, {paths[wrong[0]]!r}, is of "
                         f"class {listed[wrong[0]]} there, and of {labels[wrong[0]]} in the LMDB; make the set again")  # fmt: skip
    if read_set(data_set).get("content") != about["set"]["content"]:
        raise ValueError(f"{data_set}: was made again while its features were extracted; call the same command again")
    save_features(out, features, labels, paths, about)
    print(f"{out}: {features.shape[0]:,} images, {features.shape[1]} dimensions")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of the set, data/<set>")
    parser.add_argument("--part", choices=("train", "test"), default="test")
    parser.add_argument("--out", type=Path, required=True, help="features.npz to write")
    parser.add_argument("--net", type=Path, help="deploy.prototxt")
    parser.add_argument("--weights", type=Path, help=".caffemodel")
    parser.add_argument("--blob", default="fc_embedding", help="the features (default fc_embedding)")
    parser.add_argument("--pixels", type=int, help="no net: the images averaged to this many pixels a side")
    parser.add_argument("--gpu", type=int, metavar="N", help="compute on this GPU, counted from 0 (default the CPU)")
    arguments = parser.parse_args()
    if bool(arguments.pixels) == bool(arguments.net and arguments.weights):
        parser.error("give either --net and --weights, or --pixels")
    extract(arguments.set, arguments.part, arguments.out, arguments.net, arguments.weights, arguments.blob, arguments.pixels,
            arguments.gpu)  # fmt: skip


if __name__ == "__main__":
    run("extract", main)
