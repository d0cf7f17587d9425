"""The loss and its gradient against a literal double loop, central differences, and the authors' own layer."""

import math
import warnings
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lifted_structured_loss import lifted_structured_loss, pair_statistics

GOLDEN = np.load(Path(__file__).parent / "golden" / "authors_lifted.npz")


def literal(x, y, margin=1.0):
    """Equation 4 and Algorithm 1, pair by pair, from the paper. Returns loss, gradient and the list of J_ij."""
    x = np.asarray(x, np.longdouble)
    m = len(x)
    D = [[np.sqrt(np.sum((x[i] - x[j]) ** 2)) for j in range(m)] for i in range(m)]
    positives = [(i, j) for i in range(m) for j in range(i + 1, m) if y[i] == y[j]]
    gradient = np.zeros_like(x)

    def push(i, j, amount):  # dD_ij / dx, where D_ij > 0
        if D[i][j] > 0:
            gradient[i] += amount * (x[i] - x[j]) / D[i][j]
            gradient[j] -= amount * (x[i] - x[j]) / D[i][j]

    total, all_j = np.longdouble(0), []
    for i, j in positives:
        terms = [(i, k, margin - D[i][k]) for k in range(m) if y[k] != y[i]]
        terms += [(j, k, margin - D[j][k]) for k in range(m) if y[k] != y[j]]
        if not terms:
            return np.longdouble(0), gradient, []
        top = max(t for _, _, t in terms)
        total_exp = sum(np.exp(t - top) for _, _, t in terms)
        J = np.log(total_exp) + top + D[i][j]
        all_j.append((i, j, J))
        total += max(np.longdouble(0), J) ** 2
        if J > 0:
            push(i, j, J / len(positives))  # equation 5
            for a, k, t in terms:  # equations 6 and 7
                push(a, k, -J / len(positives) * np.exp(t - top) / total_exp)
    if not positives:
        return np.longdouble(0), gradient, []
    return total / (2 * len(positives)), gradient, all_j


def assert_close(x, y, loss_tolerance, gradient_tolerance, margin=1.0):
    loss, gradient = lifted_structured_loss(x, y, margin)
    expected, expected_gradient, _ = literal(x.reshape(len(x), -1), y, margin)
    assert loss == pytest.approx(float(expected), rel=loss_tolerance, abs=1e-30)
    largest = float(np.abs(expected_gradient).max())
    difference = np.abs(gradient.reshape(len(x), -1) - expected_gradient.astype(np.float64)).max()
    assert difference <= gradient_tolerance * largest + 1e-30
    assert gradient.dtype == x.dtype and gradient.shape == x.shape and loss.dtype == x.dtype


def random_batch(m, c, per_class, dtype=np.float32, seed=0, spread=0.3):
    random = np.random.default_rng(seed)
    return (random.normal(size=(m, c)) * spread).astype(dtype), np.arange(m) // per_class


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("m, c, per_class", [(2, 3, 1), (4, 2, 2), (12, 5, 2), (24, 16, 4), (9, 4, 3)])
@pytest.mark.parametrize("spread", [0.05, 0.3, 3.0])  # J far above, around and below the hinge
def test_equals_the_double_loop(m, c, per_class, spread, dtype, tolerance):
    x, y = random_batch(m, c, per_class, dtype, seed=m + c, spread=spread)
    assert_close(x, y, tolerance, tolerance)


def test_some_of_those_batches_lie_on_both_sides_of_the_hinge():
    # One tight class far from everything (its pair is inactive) and one that overlaps another (active).
    x = np.array([[0.0, 0.0], [0.1, 0.0], [9.0, 0.0], [9.0, 1.0], [9.0, 0.5]])
    y = np.array([0, 0, 1, 1, 2])
    signs = {J > 0 for _, _, J in literal(x, y)[2]}
    assert signs == {True, False}
    assert_close(x, y, 1e-12, 1e-12)


@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.2, 3.0])
def test_margin(margin):
    x, y = random_batch(10, 4, 2, np.float64, spread=1.0)
    assert_close(x, y, 1e-12, 1e-12, margin)


def test_caffe_shaped_batch():
    x, y = random_batch(8, 4, 2)
    assert_close(x.reshape(8, 4, 1, 1), y.astype(np.float32), 1e-6, 1e-6)


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_gradient_equals_central_differences(spread):
    x, y = random_batch(10, 3, 2, np.float64, seed=3, spread=spread)
    _, gradient = lifted_structured_loss(x, y)
    step = 1e-6
    for i in range(x.shape[0]):
        for d in range(x.shape[1]):
            up, down = x.copy(), x.copy()
            up[i, d] += step
            down[i, d] -= step
            slope = (lifted_structured_loss(up, y)[0] - lifted_structured_loss(down, y)[0]) / (2 * step)
            assert gradient[i, d] == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", ["paper_m128_d64", "small_m6_d2"])
def test_equals_the_authors_layer(name):
    loss, gradient = lifted_structured_loss(GOLDEN[f"{name}_x"], GOLDEN[f"{name}_y"])
    assert loss == pytest.approx(float(GOLDEN[f"{name}_loss"]), rel=1e-6)
    expected = GOLDEN[f"{name}_grad"]
    assert np.abs(gradient - expected).max() <= 2e-6 * np.abs(expected).max()


def test_duplicate_embeddings():
    """Where the authors' layer gives a NaN gradient, ours is the double loop's; their loss is off by its rounding."""
    x, y = GOLDEN["duplicate_embeddings_m8_d4_x"], GOLDEN["duplicate_embeddings_m8_d4_y"]
    assert np.isnan(GOLDEN["duplicate_embeddings_m8_d4_grad"]).any()
    assert_close(x, y, 1e-6, 1e-6)
    loss, gradient = lifted_structured_loss(x, y)
    assert np.isfinite(gradient).all()
    assert loss == pytest.approx(float(GOLDEN["duplicate_embeddings_m8_d4_loss"]), rel=1e-5)


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-4, 1e-2])
@pytest.mark.parametrize("shift", [0.0, 100.0, 1e4])
def test_accurate_where_the_squared_norm_expansion_is_not(apart, shift):
    """float32 on pairs (nearly) equal, and on a batch far from the origin: 1e-5 in the loss, 1e-4 in the gradient."""
    random = np.random.default_rng(5)
    centres = random.normal(size=(16, 32)) * 0.3
    x = np.repeat(centres, 2, axis=0)
    x[1::2] += random.normal(size=centres.shape) * apart / math.sqrt(32)
    x = (x + shift).astype(np.float32)
    y = np.arange(32) // 2
    assert_close(x, y, 1e-5, 1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e4, 1e18])
def test_any_scale_without_overflow(scale):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, y = random_batch(12, 6, 2, spread=1.0)
        assert_close(x * np.float32(scale), y, 1e-5, 1e-4)
        lifted_structured_loss(x.astype(np.float64) * 1e150, y)
        lifted_structured_loss(x.astype(np.float64) * 1e-300, y)


@pytest.mark.parametrize("tiny", [1e-161, 1e-300])
def test_a_distance_whose_square_underflows(tiny):
    assert_close(np.array([[tiny], [0.0], [1.0]]), np.array([0, 1, 1]), 1e-12, 1e-12)


def test_a_loss_beyond_the_dtype_is_an_error():
    x, y = random_batch(8, 4, 2, spread=1.0)
    with pytest.raises(OverflowError, match="the loss is larger than float32 can hold"):
        lifted_structured_loss(x * np.float32(1e30), y)
    with pytest.raises(OverflowError, match="1e300"):
        lifted_structured_loss(x.astype(np.float64) * 1e305, y)


def test_a_collapsed_batch():
    x, y = np.full((64, 8), 3.25, np.float32), np.arange(64) // 2
    loss, gradient = lifted_structured_loss(x, y)
    assert loss == pytest.approx(0.5 * (math.log(2 * 62) + 1) ** 2, rel=1e-6)  # every D is 0
    assert not gradient.any()


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([0, 1, 2, 3], id="no positives, singletons only"),
        pytest.param([5, 5, 5, 5], id="no negatives, one class only"),
        pytest.param([7], id="one image"),
    ],
)
def test_empty_batches_are_zero(labels):
    x = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)
    loss, gradient = lifted_structured_loss(x, labels)
    assert loss == 0 and not gradient.any() and gradient.shape == x.shape


def test_ties_between_negatives():
    x = np.array([[0.0, 0], [1, 0], [0, 1], [0, -1], [1, 1], [1, -1]])
    assert_close(x, np.array([0, 0, 1, 2, 3, 4]), 1e-12, 1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_input_names_its_rows(value):
    x, y = random_batch(8, 4, 2)
    x[5, 2] = x[2, 0] = value
    with pytest.raises(ValueError, match=r"not finite .* in 2 of 8 rows: 2, 5"):
        lifted_structured_loss(x, y)


@pytest.mark.parametrize(
    "x, y, error, message",
    [
        (np.zeros((4, 2), int), [0, 0, 1, 1], TypeError, "float32 or float64"),
        (np.zeros(4), [0, 0, 1, 1], ValueError, "shape"),
        (np.zeros((4, 2, 3, 1)), [0, 0, 1, 1], ValueError, "shape"),
        (np.zeros((0, 2)), [], ValueError, "shape"),
        (np.zeros((4, 2)), [0, 0, 1], ValueError, "4 embeddings but 3 labels"),
        (np.zeros((4, 2)), [0, 0, 1, 0.5], ValueError, "class ids"),
        (np.zeros((4, 2)), [0, 0, 1, np.nan], ValueError, "class ids"),
    ],
)
def test_wrong_input(x, y, error, message):
    with pytest.raises(error, match=message):
        lifted_structured_loss(x, y)


def test_wrong_margin():
    with pytest.raises(ValueError, match="margin"):
        lifted_structured_loss(*random_batch(4, 2, 2), margin=math.nan)


batches = st.integers(2, 10).flatmap(
    lambda m: st.tuples(
        st.integers(1, 4).flatmap(lambda c: arrays(np.float64, (m, c), elements=st.floats(-20, 20, allow_subnormal=False))),
        arrays(np.int64, m, elements=st.integers(0, 3)),
    )
)


@settings(max_examples=150, deadline=None)
@given(batches)
def test_random_batches(batch):
    x, y = batch
    assert_close(x, y, 1e-9, 1e-7)


@settings(max_examples=100, deadline=None)
@given(batches)
def test_never_below_the_hard_loss_of_equation_3(batch):
    """log-sum-exp bounds the maximum of equation 3 from above: for each pair, and for the batch."""
    x, y = batch
    hard = []
    D = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    for i, j in combinations(range(len(x)), 2):
        negatives = [k for k in range(len(x)) if y[k] != y[i]]
        if y[i] == y[j] and negatives:
            hard.append(max(0.0, D[i][j] + max(1.0 - D[a][k] for a in (i, j) for k in negatives)))
            # A batch of this pair and its negatives, each of those a class of its own: the loss of one pair.
            pair = lifted_structured_loss(x[[i, j, *negatives]], [-1, -1, *range(len(negatives))])[0]
            assert pair >= hard[-1] ** 2 / 2 - 1e-9
    if hard:
        assert lifted_structured_loss(x, y)[0] >= sum(h * h for h in hard) / (2 * len(hard)) - 1e-9


@settings(max_examples=50, deadline=None)
@given(batches, st.randoms(use_true_random=False))
def test_order_of_the_batch_does_not_matter(batch, random):
    x, y = batch
    order = list(range(len(x)))
    random.shuffle(order)
    loss, gradient = lifted_structured_loss(x, y)
    other, other_gradient = lifted_structured_loss(x[order], y[order])
    assert other == pytest.approx(loss, rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(other_gradient, gradient[order], rtol=1e-6, atol=1e-9)


def test_pair_statistics():
    x = np.array([[0.0, 0], [3, 4], [0, 1], [0, 3]], np.float32)
    statistics = pair_statistics(x, [0, 0, 1, 1])
    assert statistics == pytest.approx({"positive_min": 2, "positive_mean": 3.5, "positive_max": 5, "negative_min": 1, "active": 1})
    assert pair_statistics(x, [0, 1, 2, 3]) == pytest.approx({**dict.fromkeys(statistics), "negative_min": 1})
