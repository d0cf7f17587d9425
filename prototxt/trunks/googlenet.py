"""BVLC GoogLeNet from the blob `data` to its last pooling: layer for layer models/bvlc_googlenet/train_val.prototxt.

Left out are the two auxiliary classifiers (loss1/..., loss2/...) and the classifier (loss3/...). Everything else has
BVLC's name, shape, fillers and multipliers, so that bvlc_googlenet.caffemodel, which Caffe loads by layer name, fits.
"""

from prototxt.layers import convolution, pooling
from prototxt.records import Trunk
from prototxt.text import because

# Outputs of the convolutions of each inception module (Szegedy et al. 2015, table 1).
INCEPTION = {
    # 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def conv(block, name, bottom, channels, **shape):
    return convolution(
        f"{block}/{name}",
        bottom,
        relu=f"{block}/relu_{name.removesuffix('_s2')}",
        num_output=channels,
        **shape,
        weight_filler={"type": "xavier"},
        bias_filler={"type": "constant", "value": 0.2},
    )


def normalisation(name, bottom):
    """Local response normalisation, across channels."""
    return {
        "name": name,
        "type": "LRN",
        "bottom": bottom,
        "top": name,
        "lrn_param": {"local_size": 5, "alpha": 0.0001, "beta": 0.75},
    }


def inception(module, bottom):
    """One inception module: four branches from `bottom`, joined in inception_<module>/output."""
    block = f"inception_{module}"
    conv1, reduce3, conv3, reduce5, conv5, projection = INCEPTION[module]
    return [
        *conv(block, "1x1", bottom, conv1, kernel_size=1),
        *conv(block, "3x3_reduce", bottom, reduce3, kernel_size=1),
        *conv(block, "3x3", f"{block}/3x3_reduce", conv3, pad=1, kernel_size=3),
        *conv(block, "5x5_reduce", bottom, reduce5, kernel_size=1),
        *conv(block, "5x5", f"{block}/5x5_reduce", conv5, pad=2, kernel_size=5),
        pooling(f"{block}/pool", bottom, "MAX", kernel_size=3, stride=1, pad=1),
        *conv(block, "pool_proj", f"{block}/pool", projection, kernel_size=1),
        {
            "name": f"{block}/output",
            "type": "Concat",
            "bottom": [f"{block}/1x1", f"{block}/3x3", f"{block}/5x5", f"{block}/pool_proj"],
            "top": f"{block}/output",
        },
    ]


def layers():
    """The layers from `data`, (n, 3, 227, 227), to `pool5/7x7_s1`, (n, 1024, 1, 1)."""
    return [
        *conv("conv1", "7x7_s2", "data", 64, pad=3, kernel_size=7, stride=2),
        pooling("pool1/3x3_s2", "conv1/7x7_s2", "MAX", kernel_size=3, stride=2),
        normalisation("pool1/norm1", "pool1/3x3_s2"),
        *conv("conv2", "3x3_reduce", "pool1/norm1", 64, kernel_size=1),
        *conv("conv2", "3x3", "conv2/3x3_reduce", 192, pad=1, kernel_size=3),
        normalisation("conv2/norm2", "conv2/3x3"),
        pooling("pool2/3x3_s2", "conv2/norm2", "MAX", kernel_size=3, stride=2),
        *inception("3a", "pool2/3x3_s2"),
        *inception("3b", "inception_3a/output"),
        pooling("pool3/3x3_s2", "inception_3b/output", "MAX", kernel_size=3, stride=2),
        *inception("4a", "pool3/3x3_s2"),
        *inception("4b", "inception_4a/output"),
        *inception("4c", "inception_4b/output"),
        *inception("4d", "inception_4c/output"),
        *inception("4e", "inception_4d/output"),
        pooling("pool4/3x3_s2", "inception_4e/output", "MAX", kernel_size=3, stride=2),
        *inception("5a", "pool4/3x3_s2"),
        *inception("5b", "inception_5a/output"),
        pooling("pool5/7x7_s1", "inception_5b/output", "AVE", kernel_size=7, stride=1),
        {
            "name": "pool5/drop_7x7_s1",
            "type": "Dropout",
            "bottom": "pool5/7x7_s1",
            "top": "pool5/7x7_s1",
            "dropout_param": {"dropout_ratio": 0.4},
        },
    ]


TRUNK = Trunk(
    name="googlenet",
    title="GoogLeNet",
    about="""\
BVLC GoogLeNet (models/bvlc_googlenet of Caffe) without its two auxiliary classifiers and loss3/classifier, and one new
layer, fc_embedding. The rest has BVLC's names, shapes, fillers, learning rates and dropout, so that
bvlc_googlenet.caffemodel, which the paper starts from, loads into every layer but fc_embedding.""",
    layers=layers,
    last="pool5/7x7_s1",
    image=256,
    crop=227,
    least=None,
    mean="imagenet",
    filler=because({"type": "xavier"}, "the authors' nets"),
    passes=40,  # about the paper's on Online Products
    iterations=(1000, 20000),
)
