"""The triplet loss and its gradient against a literal loop of equation 2 and central differences."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from triplet_loss import triplet_loss


def literal(x, margin=1.0):
    """Equation 2, triplet by triplet, from the paper, in long double. Returns loss, gradient and the list of hinges."""
    x = np.asarray(x, np.longdouble)
    m = len(x)
    total, gradient, hinges = np.longdouble(0), np.zeros_like(x), []
    for a in range(m // 3):
        p, n = a + m // 3, a + 2 * (m // 3)
        hinge = sum((x[a] - x[p]) ** 2) - sum((x[a] - x[n]) ** 2) + np.longdouble(margin)
        hinges.append(hinge)
        if hinge > 0:
            total += hinge
            factor = np.longdouble(3) / (2 * m)
            gradient[a] += factor * (2 * (x[a] - x[p]) - 2 * (x[a] - x[n]))
            gradient[p] += factor * -2 * (x[a] - x[p])
            gradient[n] += factor * 2 * (x[a] - x[n])
    return np.longdouble(3) / (2 * m) * total, gradient, hinges


def labels_for(triplets):
    """Anchors and positives of class 0, 1, ..., each negative of the next class."""
    classes = np.arange(triplets)
    return np.concatenate([classes, classes, classes + 1])


def random_batch(triplets, c, dtype=np.float64, seed=0, spread=0.5):
    return (np.random.default_rng(seed).normal(size=(3 * triplets, c)) * spread).astype(dtype), labels_for(triplets)


def assert_close(x, y, tolerance, margin=1.0):
    loss, gradient = triplet_loss(x, y, margin)
    expected, expected_gradient, _ = literal(x.reshape(len(x), -1), margin)
    assert loss == pytest.approx(float(expected), rel=tolerance, abs=1e-30)
    largest = float(np.abs(expected_gradient).max())
    assert np.abs(gradient.reshape(len(x), -1) - expected_gradient.astype(np.float64)).max() <= tolerance * largest + 1e-30
    assert gradient.dtype == x.dtype and gradient.shape == x.shape and loss.dtype == x.dtype


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("triplets, c", [(1, 1), (3, 4), (40, 64)])
@pytest.mark.parametrize("spread", [0.01, 0.5, 5.0])
def test_equals_the_loop(triplets, c, spread, dtype, tolerance):
    x, y = random_batch(triplets, c, dtype, triplets, spread)
    assert_close(x, y, tolerance)


def test_some_of_those_batches_lie_on_both_sides_of_the_hinge():
    hinges = literal(random_batch(40, 64, seed=40)[0])[2]
    assert min(hinges) < 0 < max(hinges)


@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.2, 30.0])
def test_margin(margin):
    assert_close(*random_batch(20, 4), 1e-12, margin)


def test_caffe_shaped_batch():
    x, y = random_batch(4, 6, np.float32)
    assert_close(x.reshape(12, 6, 1, 1), y.astype(np.float32), 1e-6)


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_gradient_equals_central_differences(spread):
    x, y = random_batch(5, 3, seed=3, spread=spread)
    _, gradient = triplet_loss(x, y)
    assert np.abs(gradient).max() > 1e-3
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += 1e-6
        down[place] -= 1e-6
        slope = (triplet_loss(up, y)[0] - triplet_loss(down, y)[0]) / 2e-6
        assert gradient[place] == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_accurate_far_from_the_origin(shift):
    x, y = random_batch(8, 16, np.float32)
    assert_close(x + np.float32(shift), y, 1e-6)


def test_a_small_difference_of_large_distances():
    """1e6 and 1e6 + 0.25 as squares: float32 has no digit left of the quarter."""
    x = np.array([[0.0], [1000.0], [math.sqrt(1e6 + 0.25)]], np.float32)
    exact = 1000.0**2 - float(x[2, 0]) ** 2 + 1
    assert triplet_loss(x, [0, 0, 1])[0] == pytest.approx(exact / 2, rel=1e-6) and abs(exact - 0.75) < 0.1


def test_a_gradient_beyond_the_dtype_is_an_error():
    x = np.array([[0.0], [3e38], [-3e38]], np.float32)  # equal distances: the loss is a half
    with pytest.raises(OverflowError, match="the gradient is larger than float32 can hold"):
        triplet_loss(x, [0, 0, 1])


def test_duplicate_embeddings():
    """Anchor = positive, anchor = negative, all three equal: finite, and what the loop gives."""
    a, b = [1.0, 2.0], [1.5, 2.5]
    x = np.array([a, a, a, a, b, a, b, a, a])
    loss, gradient = triplet_loss(x, labels_for(3))
    assert np.isfinite(gradient).all()
    assert loss == pytest.approx(((0 - 0.5 + 1) + (0.5 - 0 + 1) + 1) / 6)
    assert_close(x, labels_for(3), 1e-12)


def test_on_the_kink_the_gradient_is_zero():
    x = np.array([[0.0], [0.0], [1.0]])  # 0 - 1 + 1
    loss, gradient = triplet_loss(x, [0, 0, 1])
    assert loss == 0 and not gradient.any()


def test_a_collapsed_batch():
    loss, gradient = triplet_loss(np.full((12, 8), 3.25, np.float32), labels_for(4))
    assert loss == pytest.approx(0.5) and not gradient.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_input_names_its_rows(value):
    x, y = random_batch(3, 4)
    x[5, 2] = x[2, 0] = value
    with pytest.raises(ValueError, match=r"not finite .* in 2 of 9 rows: 2, 5"):
        triplet_loss(x, y)


@pytest.mark.parametrize("dtype, scale", [(np.float32, 1e25), (np.float64, 1e200)])
def test_a_loss_beyond_the_dtype_is_an_error(dtype, scale):
    x, y = random_batch(3, 4, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OverflowError, match="larger than float"):
            triplet_loss(x * dtype(scale), y)
        assert np.isfinite(triplet_loss(x * dtype(1 / scale), y)[1]).all()


@pytest.mark.parametrize(
    "labels, message",
    [
        pytest.param([0, 1, 0, 2, 5, 5], "1 of 2 rows are no triplets; the first, 1, has .* of the classes 1, 2, 5", id="positive"),
        pytest.param([0, 1, 0, 1, 0, 2], "the first, 0, has .* of the classes 0, 0, 0.*--kind triplets", id="negative"),
        pytest.param([0, 0, 1, 1, 2, 2], "the first, 0, has .* classes 0, 1, 2", id="a plan of pairs"),
        pytest.param([3] * 6, "2 of 2 rows are no triplets", id="one class only"),
        pytest.param(range(6), "2 of 2 rows are no triplets", id="singletons"),
        pytest.param([0, 0, 1, 1, 2], "6 embeddings but 5 labels", id="too few labels"),
        pytest.param([0, 0, 0, 0, 1, 0.5], "class ids", id="no class id"),
    ],
)
def test_rows_that_are_no_triplets(labels, message):
    with pytest.raises(ValueError, match=message):
        triplet_loss(np.random.default_rng(0).normal(size=(6, 3)), np.array(list(labels)))


def test_other_wrong_input():
    with pytest.raises(ValueError, match="a multiple of 3 images, not 4"):
        triplet_loss(np.zeros((4, 2)), [0, 0, 1, 1])
    with pytest.raises(TypeError, match="float32 or float64"):
        triplet_loss(np.zeros((3, 2), int), [0, 0, 1])
    with pytest.raises(ValueError, match="margin"):
        triplet_loss(*random_batch(2, 2), margin=math.nan)


shapes = st.tuples(st.integers(1, 5), st.integers(1, 4))
drawn = shapes.flatmap(lambda s: arrays(np.float64, (3 * s[0], s[1]), elements=st.floats(-20, 20, allow_subnormal=False)))


@settings(max_examples=150, deadline=None)
@given(drawn)
def test_random_batches(x):
    assert_close(x, labels_for(len(x) // 3), 1e-9)
