"""Nets: a data layer, a trunk, the embedding and a loss. Dicts of Caffe's own fields, which text.py writes."""

from prototxt.layers import image_input, pair_batch
from prototxt.text import Enum, because

BATCH = 128  # images, of the authors' layout
PAPER = "paper, section 5: random crops of 227 and mirroring. mean.binaryproto is ImageNet's mean image, as in the authors' nets"
DEMO = "not mirrored: some emoji differ from another by direction alone"
OWN = "random crops; mirrored, unless it was asked for otherwise: a thing and its mirror image are one thing"


def train_val(name, data, trunk, method, dimensions):
    layers = [data, *trunk.layers(), trunk.embedding(dimensions), *method.loss()]
    return {"name": because(name, trunk.about), "layer": layers}


def deploy(name, crop, trunk, dimensions):
    layers = [image_input(crop), *trunk.layers(), trunk.embedding(dimensions)]
    return {"name": because(f"{name}_deploy", trunk.about), "layer": layers}


def paired_data(data_set, crop):
    """The authors' layout: each image is in the LMDB again for each appearance, and Caffe's own layer reads it."""
    transform = {"mirror": True, "crop_size": crop, "mean_file": f"data/{data_set}/mean.binaryproto"}
    source = {"source": f"data/{data_set}/train_paired.lmdb", "batch_size": BATCH, "backend": Enum("LMDB")}
    return {
        "name": "data",
        "type": "Data",
        "top": ["data", "label"],
        "transform_param": because(transform, PAPER),
        "data_param": because(
            source,
            "each 128 images of it are a row of pairs.npz, the left images of 64 pairs and then the right ones: batches of\n"
            "another size would tear the pairs apart",
        ),
    }


def paper(data_set, method, trunk, dimensions):
    """{file name: net} of one of the paper's sets, committed or not."""
    name = f"{data_set}_{method.name}_{dimensions}"
    data = pair_batch(data_set, trunk.crop, mirror=True, reason=PAPER, plan=f"{method.plan}.npz")
    found = {
        "train_val.prototxt": train_val(name, data, trunk, method, dimensions),
        "deploy.prototxt": deploy(name, trunk.crop, trunk, dimensions),
    }
    if method.plan == "pairs" and dimensions == 64:  # the authors' layout has pairs
        data = paired_data(data_set, trunk.crop)
        found["train_val_paired.prototxt"] = train_val(f"{name}_paired", data, trunk, method, dimensions)
    return found


def demo(method, trunk, dimensions):
    """{file name: net} of the demo."""
    name = f"demo_{method.name}_{dimensions}"
    data = pair_batch("demo", trunk.crop, mirror=False, reason=DEMO, plan=f"{method.plan}.npz")
    return {
        "train_val.prototxt": train_val(name, data, trunk, method, dimensions),
        "deploy.prototxt": deploy(name, trunk.crop, trunk, dimensions),
    }
