"""Max pooling, which `make env` builds anew (tools/max_pooling.hpp), against BVLC's loops written out: equal to the bit."""

import numpy as np
import pytest

SIZES = [  # (height, width), kernel, stride, pad
    ((7, 7), (3, 3), (1, 1), (1, 1)),  # GoogLeNet's inceptions
    ((14, 15), (3, 3), (2, 2), (0, 0)),  # and between them; a last window that is cut off
    ((30, 33), (3, 3), (2, 2), (0, 0)),
    ((9, 5), (2, 3), (3, 1), (1, 2)),  # unequal sides
    ((8, 11), (2, 2), (3, 4), (0, 1)),  # pixels that no window has
    ((5, 6), (5, 6), (1, 1), (0, 0)),  # the whole image
    ((1, 1), (1, 1), (1, 1), (0, 0)),
    ((3, 2), (3, 2), (2, 1), (2, 1)),  # windows that are mostly border
]


def literal(image, shape, kernel, stride, pad):
    """(values, index of each among the pixels) of max pooling; -FLT_MAX and -1 where no pixel is greater than that."""
    values, indices = np.full(shape, -np.finfo(np.float32).max, image.dtype), np.full(shape, -1)
    for y, x in np.ndindex(shape):
        for h in range(y * stride[0] - pad[0], y * stride[0] - pad[0] + kernel[0]):
            for w in range(x * stride[1] - pad[1], x * stride[1] - pad[1] + kernel[1]):
                if 0 <= h < image.shape[0] and 0 <= w < image.shape[1] and image[h, w] > values[y, x]:
                    values[y, x], indices[y, x] = image[h, w], h * image.shape[1] + w
    return values, indices


def images(count, size):
    """Few different values, so that windows hold equal ones; and all that is not an ordinary number."""
    random = np.random.default_rng(0)
    found = random.integers(-2, 3, (count, 2, *size)).astype(np.float32)
    for value in (np.nan, np.inf, -np.inf, -np.finfo(np.float32).max, -0.0):
        found[random.random(found.shape) < 0.04] = value
    found[-1, -1] = -np.inf
    return found


def pooling(caffe, tmp_path, size, kernel, stride, pad, mask):
    text = f"""
        force_backward: true
        layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 3 dim: 2 dim: {size[0]} dim: {size[1]} }} }} }}
        layer {{ name: "pool" type: "Pooling" bottom: "data" top: "pool" {'top: "mask"' if mask else ""} pooling_param {{
            kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} stride_w: {stride[1]} pad_h: {pad[0]} pad_w: {pad[1]}
        }} }}"""
    (tmp_path / "net.prototxt").write_text(text)
    return caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("size, kernel, stride, pad", SIZES)
def test_max_pooling_is_that_of_the_loops(caffe, tmp_path, size, kernel, stride, pad, mask):
    net = pooling(caffe, tmp_path, size, kernel, stride, pad, mask)
    pool = net.blobs["pool"]
    for again in range(2):  # nothing of the images before is left
        data = np.roll(images(3, size), again, axis=0)
        net.blobs["data"].data[...] = data
        net.forward()
        gradient = np.zeros_like(data)
        # Whole numbers: added in any order.
        pool.diff[...] = np.random.default_rng(1).integers(-9, 10, pool.data.shape)
        for n, c in np.ndindex(3, 2):
            values, indices = literal(data[n, c], pool.data.shape[2:], kernel, stride, pad)
            assert pool.data[n, c].tobytes() == values.tobytes()
            assert not mask or (net.blobs["mask"].data[n, c] == indices).all()
            pool.diff[n, c][indices < 0] = 0  # Caffe adds these to what lies before the image
            for index, value in zip(indices.ravel(), pool.diff[n, c].ravel()):
                gradient[n, c].ravel()[max(index, 0)] += value
        net._backward(1, 1)
        assert (net.blobs["data"].diff == gradient).all()
