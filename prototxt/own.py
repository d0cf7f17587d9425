"""Nets and solvers for a set of one's own: the demo's small net, or GoogLeNet from pretrained weights."""

from prototxt import demo, googlenet, paper
from prototxt.layers import LOSSES, fc_embedding, image_input, pair_batch
from prototxt.text import Enum, because, render

HEADER = "# Made by `make train` (prototxt/own.py) for this set.\n"
SMALL, GOOGLENET = "small", "googlenet"  # the kinds of net
SMALLEST_CROP = 16  # pixels a side below which the small net has nothing left to pool


def crop_of(kind, size):
    """What the net sees of images of `size` pixels: the paper's 227 of 256, and the demo's share of other sizes."""
    return paper.CROP if kind == GOOGLENET else size * demo.CROP // 64


def messages(name, kind, method, dimensions, size, mirror, plan, iterations, folder):
    """{file name: message} of train_val, deploy and solver for the set data/<name>, to be written to `folder`."""
    crop = crop_of(kind, size)
    if kind == GOOGLENET:
        trunk = [*googlenet.trunk(), fc_embedding("pool5/7x7_s1", dimensions, weight_filler={"type": "xavier"})]
    else:
        trunk = [*demo.trunk(), demo.embedding(dimensions)]
    reason = "random crops; mirrored, unless it was asked for otherwise: a thing and its mirror image are one thing"
    data = pair_batch(name, crop, mirror, reason, plan)
    title = f"{name}_{method}_{dimensions}"
    return {
        "train_val.prototxt": {"name": title, "layer": [data, *trunk, *LOSSES[method]()]},
        "deploy.prototxt": {"name": f"{title}_deploy", "layer": [image_input(crop), *trunk]},
        "solver.prototxt": solver(kind, method, iterations, folder),
    }


def solver(kind, method, iterations, folder):
    if kind == GOOGLENET:
        values = paper.solver("sop", method, 64)
        values |= {
            "base_lr": because(1e-4, "the authors' for Online Products and Cars196"),
            "stepsize": because(max(1, iterations * 4 // 5), "a tenth for the last fifth of the training, as in the demo"),
            "gamma": 0.1,
            "lr_policy": "step",
        }
    else:
        values = demo.solver(method, 64)
        values |= {"stepsize": max(1, iterations * 4 // 5)}
    return {
        **values,
        "net": f"{folder}/train_val.prototxt",
        "max_iter": because(iterations, "chosen by the number of training images, or asked for (ITERS)"),
        "snapshot": max(50, iterations // 10),
        "snapshot_prefix": f"{folder}/snapshot",
        "solver_mode": because(Enum("CPU"), "what make env builds; `caffe train -gpu 0` overrides it"),
    }


def files(*arguments):
    """{file name: text}; arguments as in messages()."""
    return {name: HEADER + render(message) + "\n" for name, message in messages(*arguments).items()}
