"""The one definition of the nets and solvers: writes every committed prototxt.

    python prototxt/generate.py            # or: make prototxt

A test regenerates the files and fails on one that differs. Change this file, never a generated one.
"""

import json
from pathlib import Path

from prototxt.text import Enum, because, render

HERE = Path(__file__).resolve().parent
HEADER = "# Made by prototxt/generate.py; change that file and call `make prototxt`.\n"

# Weights are decayed, biases not, and biases learn twice as fast: BVLC GoogLeNet, which the authors started from.
WEIGHT = {"lr_mult": 1, "decay_mult": 1}
BIAS = {"lr_mult": 2, "decay_mult": 0}


def pair_batch(lmdb, plan, mean_file, crop, mirror):
    """The training data: batches of image pairs from an image-once LMDB."""
    parameters = {"lmdb": lmdb, "plan": plan, "mean_file": mean_file, "crop": crop, "mirror": mirror, "seed": 1}
    return {
        "name": "pair_batch",
        "type": "Python",
        "top": ["data", "label"],
        "param": because({"lr_mult": 0, "decay_mult": 0}, "the layer's batch counter, which is not trained"),
        "python_param": {
            "module": "pair_batch_data_layer",
            "layer": "PairBatchData",
            "param_str": json.dumps(parameters, sort_keys=True),
        },
    }


def lifted_structured_loss(margin=1.0):
    return {
        "name": "loss",
        "type": "Python",
        "bottom": ["fc_embedding", "label"],
        "top": "loss",
        "loss_weight": because(1, "Caffe does not take a Python layer for a loss without it"),
        "python_param": {
            "module": "lifted_structured_loss_layer",
            "layer": "LiftedStructuredLossLayer",
            "param_str": json.dumps({"margin": margin}),
        },
    }


def fc_embedding(bottom, size, weight_filler):
    """The last layer, ten times as fast as the others."""
    return {
        "name": "fc_embedding",
        "type": "InnerProduct",
        "bottom": bottom,
        "top": "fc_embedding",
        "param": [
            because({"lr_mult": 10, "decay_mult": 1}, "paper, section 5: 10 times larger learning rate on the last layer"),
            {"lr_mult": 20, "decay_mult": 0},
        ],
        "inner_product_param": {
            "num_output": size,
            "weight_filler": weight_filler,
            "bias_filler": {"type": "constant", "value": 0},
        },
    }


# --- the demo's net: small, for images of 64 pixels on a CPU ---------------------------------------------------------

DEMO_CROP = 56


def convolution(name, bottom, channels, kernel, stride=1):
    return [
        {
            "name": name,
            "type": "Convolution",
            "bottom": bottom,
            "top": name,
            "param": [WEIGHT, BIAS],
            "convolution_param": {
                "num_output": channels,
                "kernel_size": kernel,
                "pad": kernel // 2,
                "stride": stride,
                "weight_filler": because({"type": "msra"}, "keeps the variance through rectified layers (He et al. 2015)"),
                "bias_filler": {"type": "constant", "value": 0},
            },
        },
        {"name": f"relu_{name}", "type": "ReLU", "bottom": name, "top": name},
    ]


def pooling(name, bottom):
    return {
        "name": name,
        "type": "Pooling",
        "bottom": bottom,
        "top": name,
        "pooling_param": {"pool": Enum("MAX"), "kernel_size": 3, "stride": 2},
    }


def demo_trunk():
    return [
        {
            "name": "scale",
            "type": "Power",
            "bottom": "data",
            "top": "scaled",
            "power_param": because({"scale": 0.015625}, "pixels to about unit variance (1/64), which the fillers expect"),
        },
        *convolution("conv1", "scaled", 32, 5, stride=2),
        pooling("pool1", "conv1"),
        *convolution("conv2", "pool1", 64, 3),
        pooling("pool2", "conv2"),
        *convolution("conv3", "pool2", 128, 3),
    ]


def demo_embedding(size):
    filler = because({"type": "gaussian", "std": 0.002}, "first distances of about the margin, so that the loss starts small")
    return fc_embedding("conv3", size, filler)


def demo_net(size):
    data = pair_batch("data/demo/train.lmdb", "data/demo/pairs.npz", "data/demo/mean.binaryproto", DEMO_CROP, mirror=False)
    data["python_param"] = because(data["python_param"], "not mirrored: some emoji differ from another by direction alone")
    return {"name": f"demo_lifted_{size}", "layer": [data, *demo_trunk(), demo_embedding(size), lifted_structured_loss()]}


def demo_deploy(size):
    return {"name": f"demo_lifted_{size}_deploy", "layer": [image_input(DEMO_CROP), *demo_trunk(), demo_embedding(size)]}


def image_input(crop):
    return {
        "name": "data",
        "type": "Input",
        "top": "data",
        "input_param": {"shape": {"dim": [1, 3, crop, crop]}},
    }


def demo_solver(size):
    return {
        "net": f"prototxt/demo/lifted_{size}/train_val.prototxt",
        "base_lr": because(
            0.001, "this and the demo's other values: chosen on held-out training classes (make demo HOLDOUT=1 scores them)"
        ),
        "lr_policy": because("step", "a tenth for the last fifth of the training: the loss falls once more"),
        "gamma": 0.1,
        "stepsize": 2400,
        "momentum": because(0.9, "the authors' solver"),
        "weight_decay": because(
            0.05, "the authors' 2e-4 was made for a pretrained net; from a random start on 7,000 images more is better"
        ),
        "clip_gradients": because(20, "first trials diverged at base_lr 0.001 without it"),
        "max_iter": because(3000, "about 8 minutes on one core"),
        "display": 25,
        "snapshot": 250,
        "snapshot_prefix": f"runs/demo/lifted_{size}/caffe/snapshot",
        "random_seed": because(1, "the same start each time; tools/train.py writes its SEED here"),
        "solver_mode": because(Enum("CPU"), "the Caffe that make env builds has no other"),
    }


def files():
    """Path (below prototxt/) -> text of every generated file."""
    texts = {}
    for size in (64,):
        folder = f"demo/lifted_{size}"
        texts[f"{folder}/train_val.prototxt"] = demo_net(size)
        texts[f"{folder}/deploy.prototxt"] = demo_deploy(size)
        texts[f"{folder}/solver.prototxt"] = demo_solver(size)
    return {path: HEADER + render(message) + "\n" for path, message in texts.items()}


def main():
    for path, text in files().items():
        target = HERE / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
            print(f"prototxt/{path}")


if __name__ == "__main__":
    main()
