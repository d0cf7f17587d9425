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
    layer = {
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
    return because(layer, "the embedding is not normalised (the authors, issue 25)")


def python_loss(module, name, margin=1.0):
    layer = {
        "name": "loss",
        "type": "Python",
        "bottom": ["fc_embedding", "label"],
        "top": "loss",
        "loss_weight": because(1, "Caffe does not take a Python layer for a loss without it"),
        "python_param": {"module": module, "layer": name, "param_str": json.dumps({"margin": margin})},
    }
    return because(layer, "margin 1: paper, section 5")
