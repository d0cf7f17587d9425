"""The batch plan: the authors' counts, as properties on any class sizes."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.batch_plan import make_plan

sizes = st.lists(st.integers(1, 9), min_size=2, max_size=12)


def pairs_of(batches):
    half = batches.shape[1] // 2
    return np.concatenate([np.column_stack([row[:half], row[half:]]) for row in batches])


@settings(max_examples=80, deadline=None)
@given(sizes, st.sampled_from([2, 4, 6]), st.integers(0, 5))
def test_plan_has_the_authors_counts(sizes, batch, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    positive = sum(math.comb(n, 2) + n for n in sizes)
    per_image = math.ceil(positive / len(labels))
    total = positive + per_image * len(labels)
    batches, facts = make_plan(labels, batch, seed)
    half = batch // 2
    assert batches.shape == (total // half, batch) and batches.dtype == np.int32
    pairs = pairs_of(batches)
    same = labels[pairs[:, 0]] == labels[pairs[:, 1]]

    # Every positive pair and every self-pair exactly once.
    found = Counter(tuple(sorted(pair)) for pair in pairs[same].tolist())
    wanted = {(i, j) for i in range(len(labels)) for j in range(i, len(labels)) if labels[i] == labels[j]}
    assert found == Counter(dict.fromkeys(wanted, 1))
    assert facts["positive_pairs"] == positive == facts["possible_positive_pairs"]

    # Negatives: per_image for each image less the surplus, and each class's right sides used evenly.
    assert (~same).sum() == facts["negative_pairs"] == len(pairs) - positive == (total // half) * half - positive
    left = Counter(pairs[~same][:, 0].tolist())
    assert max(left.values()) <= per_image and per_image * len(labels) - sum(left.values()) == total % half < half
    for label, count in enumerate(sizes):
        right = Counter(pairs[~same & (labels[pairs[:, 0]] == label)][:, 1].tolist())
        others = len(labels) - count
        assert all(times <= math.ceil(per_image * count / others) for times in right.values())


def test_without_replacement_until_every_image_was_used():
    """Few classes, many images: 40 + 4. 830 positive pairs ask for 19 negatives an image: 760 of 4 others, 76 of 40."""
    labels = np.array([0] * 40 + [1] * 4)
    batches, facts = make_plan(labels, 2)
    assert facts["negatives_per_image"] == 19 and facts["repeated_classes"] == 2
    pairs = pairs_of(batches)
    right = Counter(pairs[(labels[pairs[:, 0]] == 0) & (labels[pairs[:, 1]] == 1)][:, 1].tolist())
    assert len(right) == 4 and max(right.values()) - min(right.values()) <= 1


def test_seed():
    labels = np.repeat(np.arange(10), 4)
    first, second, other = (make_plan(labels, 8, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_many_positive_pairs_are_sampled_to_the_bound():
    labels = np.repeat(np.arange(3), [3000, 50, 2])
    batches, facts = make_plan(labels, 128, max_positive_pairs=20000)
    assert facts["possible_positive_pairs"] == 3000 * 3001 // 2 + 50 * 51 // 2 + 3
    assert facts["positive_pairs"] == 20000
    pairs = pairs_of(batches)
    same = pairs[labels[pairs[:, 0]] == labels[pairs[:, 1]]]
    assert len({tuple(sorted(pair)) for pair in same.tolist()}) == 20000  # distinct
    share = np.mean(same.min(axis=1) < 1500)  # uniform over the pairs of the large class: 1 - 1/4
    assert share == pytest.approx(0.75, abs=0.02)


def test_one_class_only():
    with pytest.raises(ValueError, match="at least two classes; here is 1"):
        make_plan([3, 3, 3])


def test_too_few_images_for_a_batch():
    with pytest.raises(ValueError, match="give 13 pairs, but a batch of 128 images needs 64"):
        make_plan([0, 0, 1, 2])


def test_odd_batch():
    with pytest.raises(ValueError, match="even"):
        make_plan([0, 0, 1, 1], 5)
