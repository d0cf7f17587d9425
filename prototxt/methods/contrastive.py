"""The contrastive loss: equation 1 of Song et al., CVPR 2016, by Caffe's own layer on the halves of a batch of pairs."""

from prototxt.records import Method
from prototxt.text import Enum, because


def loss(margin=1.0):
    """Caffe's own layers: the batch's halves are the two sides of its pairs, and equal class ids make a pair similar."""

    def layer(name, kind, bottom, top, **parameters):
        return {"name": name, "type": kind, "bottom": bottom, "top": top, **parameters}

    halves = {"slice_param": {"axis": 0}}
    return [
        because(
            layer("embedding_halves", "Slice", "fc_embedding", ["embedding_left", "embedding_right"], **halves),
            "a batch holds the left images of its pairs, then the right ones",
        ),
        layer("label_halves", "Slice", "label", ["label_left", "label_right"], **halves),
        because(
            layer(
                "label_difference",
                "Eltwise",
                ["label_left", "label_right"],
                "label_difference",
                eltwise_param={"operation": Enum("SUM"), "coeff": [1, -1]},
            ),
            "from here to `similar`: 1 where the two class ids are equal, 0 where they are not",
        ),
        layer("label_distance", "AbsVal", "label_difference", "label_distance"),
        layer("different", "Threshold", "label_distance", "different", threshold_param={"threshold": 0.5}),
        layer("similar", "Power", "different", "similar", power_param={"scale": -1, "shift": 1}),
        because(
            layer(
                "loss",
                "ContrastiveLoss",
                ["embedding_left", "embedding_right", "similar"],
                "loss",
                contrastive_loss_param={"margin": margin},
            ),
            "margin 1: paper, section 5",
        ),
    ]


METHOD = Method(
    name="contrastive",
    title="contrastive embedding",
    style=("#009e73", "s"),
    plan="pairs",
    loss=loss,
    released_solver=False,
    place=2,
    small={"base_lr": 0.0003, "weight_decay": 0.005},
)
