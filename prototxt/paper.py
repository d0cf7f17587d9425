"""The paper's nets and solvers: GoogLeNet and an embedding of 64 to 512 numbers, on the paper's three sets."""

from itertools import product

from prototxt.googlenet import trunk
from prototxt.layers import LOSSES, PLANS, fc_embedding, image_input, pair_batch
from prototxt.text import Enum, because

SETS = ("cub", "cars196", "sop")  # CUB-200-2011, Cars196, Stanford Online Products
SIZES = (64, 128, 256, 512)
CROP = 227
BATCH = 128

TRUNK = """\
BVLC GoogLeNet (models/bvlc_googlenet of Caffe) without its two auxiliary classifiers and loss3/classifier, and one new
layer, fc_embedding. The rest has BVLC's names, shapes, fillers, learning rates and dropout, so that
bvlc_googlenet.caffemodel, which the paper starts from, loads into every layer but fc_embedding."""

DATA = "paper, section 5: random crops of 227 and mirroring. mean.binaryproto is ImageNet's mean image, as in the authors' nets"


def net(name, data, size, *loss):
    embedding = fc_embedding("pool5/7x7_s1", size, weight_filler={"type": "xavier"})
    embedding = because(embedding, "fillers: the authors' nets. The embedding is not normalised (the authors, issue 25)")
    return {"name": because(name, TRUNK), "layer": [data, *trunk(), embedding, *loss]}


def losses(method):
    *stages, loss = LOSSES[method](margin=1.0)
    return [*stages, because(loss, "margin 1: paper, section 5")]


def train_val(data_set, method, size):
    data = pair_batch(data_set, CROP, mirror=True, reason=DATA, plan=PLANS[method])
    return net(f"{data_set}_{method}_{size}", data, size, *losses(method))


def train_val_paired(data_set, method, size):
    """The authors' layout: each image is in the LMDB again for each appearance, and Caffe's own layer reads it."""
    data = {
        "name": "data",
        "type": "Data",
        "top": ["data", "label"],
        "transform_param": because({"mirror": True, "crop_size": CROP, "mean_file": f"data/{data_set}/mean.binaryproto"}, DATA),
        "data_param": because(
            {"source": f"data/{data_set}/train_paired.lmdb", "batch_size": BATCH, "backend": Enum("LMDB")},
            "each 128 images of it are a row of pairs.npz, the left images of 64 pairs and then the right ones: batches of\n"
            "another size would tear the pairs apart",
        ),
    }
    return net(f"{data_set}_{method}_{size}_paired", data, size, *losses(method))


def deploy(data_set, method, size):
    return net(f"{data_set}_{method}_{size}_deploy", image_input(CROP), size)


RELEASED = "the authors' released solver"  # of Online Products, the only set that they released one for

BASELINE = "this and what follows: the lifted loss's solver for this set; no solver of the baselines was ever published"
BASE_LR = {
    "cub": because(
        1e-6,
        "the authors, issue 11 of their repository: 1e-6 for CUB, there with 40,000 iterations. Nobody published this pair\n"
        "of base_lr and max_iter: the authors' rate, stopped where the paper stops. solver_authors.prototxt has their pair",
    ),
    "cars196": because(1e-4, "the authors, issue 11 of their repository"),
    "sop": because(1e-4, RELEASED),
}


def solver(data_set, method, size):
    return {
        "net": f"prototxt/{data_set}/{method}_{size}/train_val.prototxt",
        "base_lr": BASE_LR[data_set] if method == "lifted" else because(BASE_LR[data_set].value, BASELINE),
        "lr_policy": because("step", RELEASED + ", made for Online Products; its first step would come after the end"),
        "gamma": 0.96,
        "stepsize": 32000,
        "momentum": because(0.9, RELEASED),
        "weight_decay": because(0.0002, RELEASED + ", and BVLC GoogLeNet's"),
        "max_iter": because(20000, 'paper, section 5: "maximum training iteration to 20,000 for all the experiments"'),
        "display": because(5, RELEASED),
        "snapshot": because(10000, RELEASED),
        "snapshot_prefix": f"runs/{data_set}/{method}_{size}/caffe/snapshot",
        "random_seed": because(1, "the same start each time; tools/train.py writes its SEED here"),
        "solver_mode": because(Enum("CPU"), "what make env builds; `caffe train -gpu 0` overrides it"),
    }


def solver_authors(method, size):
    """CUB as the authors say that they trained it; for the other sets solver() is that."""
    return {
        **solver("cub", method, size),
        "base_lr": because(
            1e-6,
            "the authors, issue 11 of their repository: 1e-6 and 40,000 iterations for CUB"
            + (f". {BASELINE}" if method != "lifted" else ""),
        ),
        "lr_policy": because("step", RELEASED + ", made for Online Products; with 40,000 iterations it steps once"),
        "max_iter": because(40000, "the authors, issue 11 of their repository; the paper says 20,000"),
        "snapshot_prefix": f"runs/cub/{method}_{size}/caffe/snapshot_authors",
    }


def solver_paired(data_set, method, size):
    return {
        **solver(data_set, method, size),
        "net": f"prototxt/{data_set}/{method}_{size}/train_val_paired.prototxt",
        "snapshot_prefix": f"runs/{data_set}/{method}_{size}/caffe/snapshot_paired",
    }


def messages():
    """Path (below prototxt/) -> message, of every set, method and size."""
    found = {}
    for data_set, method, size in product(SETS, LOSSES, SIZES):
        folder = f"{data_set}/{method}_{size}"
        found[f"{folder}/train_val.prototxt"] = train_val(data_set, method, size)
        found[f"{folder}/deploy.prototxt"] = deploy(data_set, method, size)
        found[f"{folder}/solver.prototxt"] = solver(data_set, method, size)
        if data_set == "cub":
            found[f"{folder}/solver_authors.prototxt"] = solver_authors(method, size)
        if size == 64 and method != "triplet":  # the authors' layout has pairs
            found[f"{folder}/train_val_paired.prototxt"] = train_val_paired(data_set, method, size)
            found[f"{folder}/solver_paired.prototxt"] = solver_paired(data_set, method, size)
    return found
