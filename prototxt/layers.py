"""Layers that more than one net uses: dicts of Caffe's own fields, which text.py writes."""

import json

from prototxt.text import Enum, because

# Weights are decayed, biases not, and biases learn twice as fast: BVLC GoogLeNet, which the authors started from.
WEIGHT = {"lr_mult": 1, "decay_mult": 1}
BIAS = {"lr_mult": 2, "decay_mult": 0}


def pair_batch(data_set, crop, mirror, reason, plan):
    """The training data: batches of image pairs, or triplets, from an image-once LMDB."""
    parameters = {
        "lmdb": f"data/{data_set}/train.lmdb",
        "plan": f"data/{data_set}/{plan}",
        "mean_file": f"data/{data_set}/mean.binaryproto",
        "crop": crop,
        "mirror": mirror,
        "seed": 1,
    }
    python_param = {
        "module": "pair_batch_data_layer",
        "layer": "PairBatchData",
        "param_str": json.dumps(parameters, sort_keys=True),
    }
    return {
        "name": "pair_batch",
        "type": "Python",
        "top": ["data", "label"],
        "param": because({"lr_mult": 0, "decay_mult": 0}, "the layer's batch counter, which is not trained"),
        "python_param": because(python_param, reason),
    }


def image_input(crop):
    """What a deploy net has in the place of its data."""
    return {
        "name": "data",
        "type": "Input",
        "top": "data",
        "input_param": {"shape": {"dim": [1, 3, crop, crop]}},
    }


def convolution(name, bottom, relu, **convolution_param):
    """A convolution and its rectifier, which is called `relu` and works in place."""
    return [
        {
            "name": name,
            "type": "Convolution",
            "bottom": bottom,
            "top": name,
            "param": [WEIGHT, BIAS],
            "convolution_param": convolution_param,
        },
        {"name": relu, "type": "ReLU", "bottom": name, "top": name},
    ]


def pooling(name, bottom, pool, **pooling_param):
    return {
        "name": name,
        "type": "Pooling",
        "bottom": bottom,
        "top": name,
        "pooling_param": {"pool": Enum(pool), **pooling_param},
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


def python_loss(module, layer, margin):
    return {
        "name": "loss",
        "type": "Python",
        "bottom": ["fc_embedding", "label"],
        "top": "loss",
        "loss_weight": because(1, "Caffe does not take a Python layer for a loss without it"),
        "python_param": {"module": module, "layer": layer, "param_str": json.dumps({"margin": margin})},
    }


def lifted_structured_loss(margin=1.0):
    return [python_loss("lifted_structured_loss_layer", "LiftedStructuredLossLayer", margin)]


def triplet_loss(margin=1.0):
    return [python_loss("triplet_loss_layer", "TripletLossLayer", margin)]


def contrastive_loss(margin=1.0):
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
            layer("label_difference", "Eltwise", ["label_left", "label_right"], "label_difference",
                  eltwise_param={"operation": Enum("SUM"), "coeff": [1, -1]}),
            "from here to `similar`: 1 where the two class ids are equal, 0 where they are not",
        ),
        layer("label_distance", "AbsVal", "label_difference", "label_distance"),
        layer("different", "Threshold", "label_distance", "different", threshold_param={"threshold": 0.5}),
        layer("similar", "Power", "different", "similar", power_param={"scale": -1, "shift": 1}),
        layer("loss", "ContrastiveLoss", ["embedding_left", "embedding_right", "similar"], "loss",
              contrastive_loss_param={"margin": margin}),
    ]  # fmt: skip


LOSSES = {"lifted": lifted_structured_loss, "contrastive": contrastive_loss, "triplet": triplet_loss}
PLANS = {"lifted": "pairs.npz", "contrastive": "pairs.npz", "triplet": "triplets.npz"}
