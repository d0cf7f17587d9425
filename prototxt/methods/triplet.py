"""The triplet loss: equation 2 of Song et al., CVPR 2016, 40 triplets a batch, no mining."""

from prototxt.layers import python_loss
from prototxt.records import Method


def loss():
    return [python_loss("triplet_loss_layer", "TripletLossLayer")]


METHOD = Method(
    name="triplet",
    title="triplet embedding",
    style=("#d55e00", "^"),
    plan="triplets",
    loss=loss,
    released_solver=False,
    place=3,
    small={"base_lr": 0.0003, "weight_decay": 0.005},
)
