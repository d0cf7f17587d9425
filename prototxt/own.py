"""Nets and solvers for a set of one's own: any trunk, with any loss."""

from prototxt import nets, solvers
from prototxt.layers import pair_batch
from prototxt.text import render

HEADER = "# Made by `make train` (prototxt/own.py) for this set.\n"


def crop_of(trunk, size):
    """What the net sees of images of `size` pixels: the trunk's share of them."""
    return size * trunk.crop // trunk.image


def files(name, trunk, method, dimensions, size, mirror, plan, iterations, folder):
    """{file name: text} of train_val, deploy and solver for the set data/<name>, to be written to `folder`."""
    crop = crop_of(trunk, size)
    data = pair_batch(name, crop, mirror, nets.OWN, plan)
    title = f"{name}_{method.name}_{dimensions}"
    messages = {
        "train_val.prototxt": nets.train_val(title, data, trunk, method, dimensions),
        "deploy.prototxt": nets.deploy(title, crop, trunk, dimensions),
        "solver.prototxt": solvers.own(trunk, method, iterations, folder),
    }
    return {file: HEADER + render(message) + "\n" for file, message in messages.items()}
