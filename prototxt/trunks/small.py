"""A net of three convolutions that a CPU trains in minutes, for images of 64 pixels: the demo's, and the default for own images."""

from prototxt.layers import convolution, pooling
from prototxt.records import Trunk
from prototxt.text import because


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


def layers():
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


TRUNK = Trunk(
    name="small",
    title="demo net",
    about="Three convolutions, from random weights.",
    layers=layers,
    last="conv3",
    image=64,
    crop=56,
    least=16,  # below, nothing is left to pool
    mean="own",
    filler=because({"type": "gaussian", "std": 0.002}, "first distances of about the margin, so that the loss starts small"),
    passes=50,  # the demo's
    iterations=(500, 6000),
    threads=1,  # its matrices are small: two threads take 1.5 times as long
)
