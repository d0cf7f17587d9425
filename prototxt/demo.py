"""The demo's net and solver: small, for images of 64 pixels on a CPU."""

from itertools import product

from prototxt.layers import LOSSES, PLANS, convolution, fc_embedding, image_input, pair_batch, pooling
from prototxt.text import Enum, because

CROP = 56
SIZES = (64, 128, 256, 512)


def conv(name, bottom, channels, kernel, stride=1):
    return convolution(
        name,
        bottom,
        relu=f"relu_{name}",
        num_output=channels,
        kernel_size=kernel,
        pad=kernel // 2,
        stride=stride,
        weight_filler=because({"type": "msra"}, "keeps the variance through rectified layers (He et al. 2015)"),
        bias_filler={"type": "constant", "value": 0},
    )


def trunk():
    return [
        {
            "name": "scale",
            "type": "Power",
            "bottom": "data",
            "top": "scaled",
            "power_param": because({"scale": 0.015625}, "pixels to about unit variance (1/64), which the fillers expect"),
        },
        *conv("conv1", "scaled", 32, 5, stride=2),
        pooling("pool1", "conv1", "MAX", kernel_size=3, stride=2),
        *conv("conv2", "pool1", 64, 3),
        pooling("pool2", "conv2", "MAX", kernel_size=3, stride=2),
        *conv("conv3", "pool2", 128, 3),
    ]


def embedding(size):
    filler = because({"type": "gaussian", "std": 0.002}, "first distances of about the margin, so that the loss starts small")
    return fc_embedding("conv3", size, filler)


def train_val(method, size):
    reason = "not mirrored: some emoji differ from another by direction alone"
    data = pair_batch("demo", CROP, mirror=False, reason=reason, plan=PLANS[method])
    return {"name": f"demo_{method}_{size}", "layer": [data, *trunk(), embedding(size), *LOSSES[method]()]}


def deploy(method, size):
    return {"name": f"demo_{method}_{size}_deploy", "layer": [image_input(CROP), *trunk(), embedding(size)]}


FROM_SCRATCH = "the authors' 2e-4 was made for a pretrained net; from a random start on 7,000 images more is better"
# Each method's own, chosen by Recall@1 on held-out training classes: README, "Baselines and sweeps".
BASE_LR = {"lifted": 0.001, "contrastive": 0.0003, "triplet": 0.0003}
WEIGHT_DECAY = {"lifted": 0.05, "contrastive": 0.005, "triplet": 0.005}


def solver(method, size):
    return {
        "net": f"prototxt/demo/{method}_{size}/train_val.prototxt",
        "base_lr": because(
            BASE_LR[method],
            "this and the demo's other values: chosen on held-out training classes (make demo HOLDOUT=1 scores them)",
        ),
        "lr_policy": because("step", "a tenth for the last fifth of the training: the loss falls once more"),
        "gamma": 0.1,
        "stepsize": 2400,
        "momentum": because(0.9, "the authors' solver"),
        "weight_decay": because(WEIGHT_DECAY[method], FROM_SCRATCH),
        "clip_gradients": because(20, "first trials diverged at base_lr 0.001 without it"),
        "max_iter": because(3000, "about 8 minutes on one core"),
        "display": 25,
        "snapshot": 250,
        "snapshot_prefix": f"runs/demo/{method}_{size}/caffe/snapshot",
        "random_seed": because(1, "the same start each time; tools/train.py writes its SEED here"),
        "solver_mode": because(Enum("CPU"), "the Caffe that make env builds has no other"),
    }


def messages():
    """Path (below prototxt/) -> message."""
    found = {}
    for method, size in product(LOSSES, SIZES):
        folder = f"demo/{method}_{size}"
        found[f"{folder}/train_val.prototxt"] = train_val(method, size)
        found[f"{folder}/deploy.prototxt"] = deploy(method, size)
        found[f"{folder}/solver.prototxt"] = solver(method, size)
    return found
