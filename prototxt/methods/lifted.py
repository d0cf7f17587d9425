"""The lifted structured loss: equation 4 and Algorithm 1 of Song et al., CVPR 2016."""

from prototxt.layers import python_loss
from prototxt.records import Method


def loss():
    return [python_loss("lifted_structured_loss_layer", "LiftedStructuredLossLayer")]


METHOD = Method(
    name="lifted",
    title="lifted structured embedding",
    style=("#0072b2", "o"),
    plan="pairs",
    loss=loss,
    place=1,
    small={"base_lr": 0.001, "weight_decay": 0.05},
)
