"""The batch plan: the authors' counts, as properties on any class sizes."""

import math
import shutil
from collections import Counter

import numpy as np
import pytest
from conftest import tool
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.batch_plan import ensure_plan, kind_of, labels_of, make_plan, make_triplet_plan, plan_file
from data_prep.paired_lmdb import write_paired

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


# --- triplets ----------------------------------------------------------------------------------------------------------


def triplets_of(batches):
    third = batches.shape[1] // 3
    return np.concatenate([row.reshape(3, third).T for row in batches])


@settings(max_examples=80, deadline=None)
@given(sizes.filter(lambda found: max(found) > 1), st.sampled_from([3, 6, 12]), st.integers(0, 5))
def test_every_positive_pair_once_and_negatives_of_other_classes(sizes, batch, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)) * 7 + 3
    batches, facts = make_triplet_plan(labels, batch, seed)
    anchor, positive, negative = triplets_of(batches).T
    assert (labels[anchor] == labels[positive]).all() and (anchor != positive).all()
    assert (labels[anchor] != labels[negative]).all()
    found = Counter(frozenset(pair) for pair in zip(anchor.tolist(), positive.tolist()))
    n = range(len(labels))
    assert set(found) == {frozenset((i, j)) for i in n for j in n if i < j and labels[i] == labels[j]}
    pairs = sum(math.comb(n, 2) for n in sizes)
    assert facts["positive_pairs"] == pairs == facts["possible_positive_pairs"]
    assert batches.shape == (math.ceil(pairs / (batch // 3)), batch) and batches.dtype == np.int32
    assert facts["repeated"] == batches.shape[0] * (batch // 3) - pairs == sum(found.values()) - len(found)
    if facts["repeated"] <= pairs:
        assert max(found.values()) <= 2


def test_triplets_are_drawn_uniformly():
    """Sides of a pair by a fair coin, negatives evenly from all other classes: within 5 standard deviations."""
    labels = np.repeat(np.arange(5), [300, 40, 40, 10, 2])
    anchor, positive, negative = triplets_of(make_triplet_plan(labels, 3)[0]).T
    assert abs(np.mean(anchor < positive) - 0.5) < 5 * 0.5 / math.sqrt(len(anchor))
    of_large = negative[labels[anchor] == 0]  # 44,850 of them on 92 images
    counts = np.bincount(of_large, minlength=392)[300:]
    expected = len(of_large) / 92
    assert (np.abs(counts - expected) < 5 * math.sqrt(expected)).all() and counts.sum() == len(of_large)
    order = triplets_of(make_triplet_plan(labels, 3)[0])[:, 0]
    assert abs(np.corrcoef(labels[order], np.arange(len(order)))[0, 1]) < 0.05  # shuffled


def test_triplets_of_the_paper_s_sets():
    """Class sizes as even as the published counts allow: the number of batches is the number of positive pairs / 40."""
    sizes = np.full(100, 58) + (np.arange(100) < 64)  # 5,864 images of 100 classes
    batches, facts = make_triplet_plan(np.repeat(np.arange(100), sizes))
    pairs = int((sizes * (sizes - 1) // 2).sum())
    assert facts["positive_pairs"] == pairs and batches.shape == (-(-pairs // 40), 120)


def test_triplets_by_seed():
    labels = np.repeat(np.arange(10), 4)
    first, second, other = (make_triplet_plan(labels, 12, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "labels, batch, message",
    [
        ([3, 3, 3], 120, "of 1 classes"),
        ([0, 1, 2], 120, "3 images of 3 classes"),
        ([0, 0, 1], 128, "multiple of 3 images, not 128"),
    ],
)
def test_triplets_that_cannot_be_drawn(labels, batch, message):
    with pytest.raises(ValueError, match=message):
        make_triplet_plan(labels, batch)


def test_many_positive_pairs_of_triplets_are_sampled_to_the_bound():
    anchor, positive, _ = triplets_of(make_triplet_plan(np.repeat([0, 1], [1500, 9]), 30, max_positive_pairs=5000)[0]).T
    assert len({frozenset(pair) for pair in zip(anchor.tolist(), positive.tolist())}) == 5000


@pytest.mark.parametrize("seed", range(3))
def test_the_pairs_are_shuffled(seed):
    """The generator makes positive pairs first, class by class; a batch then holds both kinds, of many classes."""
    labels = np.repeat(np.arange(20), 10)
    batches, facts = make_plan(labels, 64, seed)
    positive = labels[batches[:, :32]] == labels[batches[:, 32:]]  # (n, 32)
    share = facts["positive_pairs"] / (facts["positive_pairs"] + facts["negative_pairs"])
    assert np.abs(positive.mean(axis=1) - share).max() < 0.4 and positive.mean(axis=1).std() < 0.15
    assert min(np.unique(labels[row]).size for row in batches) > 12


@pytest.mark.parametrize("seed", range(3))
def test_the_negatives_are_drawn_from_all_other_images(seed):
    """As often as chance has it: not the first ones, nor the nearest in the list."""
    labels = np.repeat(np.arange(30), 8)
    batches, _ = make_plan(labels, 32, seed)
    left, right = batches[:, :16].ravel(), batches[:, 16:].ravel()
    drawn = right[labels[left] != labels[right]]
    expected = len(drawn) / len(labels)
    times = np.bincount(drawn, minlength=len(labels))
    assert np.square(times - expected).mean() < 2 * expected and (times > 0).mean() > 0.9
    of_first = right[(labels[left] == 0) & (labels[right] != 0)]
    assert np.unique(labels[of_first]).size > 15
    labels = np.repeat([0, 1], 20)  # each of 20 images asks for 11 negatives, and the 20 others are used 11 times in turn
    pairs = pairs_of(make_plan(labels, 2, seed)[0])
    of_first = {tuple(pair) for pair in pairs.tolist() if pair[0] < 20 <= pair[1]}
    assert len(of_first) > 140  # of 400; 172 are expected, and 20 were the others always in one order


def test_a_plan_that_is_there_and_another_that_is_asked_for(small_set, tmp_path):
    shutil.copytree(small_set, tmp_path / "set")
    path = tmp_path / "set/pairs_m16.npz"
    before = path.read_bytes()
    ensure_plan(tmp_path / "set", "pairs", 16)
    ensure_plan(tmp_path / "set", "pairs", 16, seed=1)
    for asked, named in (({"seed": 7}, "seed 1, not 7"), ({"max_positive_pairs": 5}, "not at most 5")):
        with pytest.raises(ValueError, match=named):
            ensure_plan(tmp_path / "set", "pairs", 16, **asked)
    path.rename(tmp_path / "set/pairs.npz")
    with pytest.raises(ValueError, match="of 16 images, not of 128"):
        ensure_plan(tmp_path / "set", "pairs")
    with pytest.raises(ValueError, match="pairs.npz: .* 16 images"):  # stock Caffe would tear its pairs apart
        write_paired(tmp_path / "set/train.lmdb", tmp_path / "set/pairs.npz", tmp_path / "set/train_paired.lmdb")
    assert (tmp_path / "set/pairs.npz").read_bytes() == before
    ensure_plan(tmp_path / "set", "pairs", 8, seed=0)
    np.testing.assert_array_equal(
        np.load(tmp_path / "set/pairs_m8.npz")["batches"], make_plan(labels_of(small_set / "train.csv"), 8, 0)[0]
    )
    np.savez(tmp_path / "set/pairs_m4.npz", batches=np.zeros((2, 4), int), images=30)  # made by a person
    ensure_plan(tmp_path / "set", "pairs", 4)
    (tmp_path / "set/pairs_m6.npz").write_bytes(before[:500])
    for batch, asked, words in ((4, {"max_positive_pairs": 5}, "pairs_m4.npz"), (6, {}, "pairs_m6.npz: cannot be read")):
        with pytest.raises(ValueError, match=words):
            ensure_plan(tmp_path / "set", "pairs", batch, **asked)


def test_names_of_plans():
    assert [plan_file(), plan_file(128), plan_file(48)] == ["pairs.npz", "pairs.npz", "pairs_m48.npz"]
    assert [plan_file(kind="triplets"), plan_file(120, "triplets"), plan_file(60, "triplets")] == [
        "triplets.npz", "triplets.npz", "triplets_m60.npz"]  # fmt: skip
    assert kind_of("data/cub/triplets_m60.npz") == "triplets" and kind_of("data/cub/pairs.npz") == "pairs"


def test_command(small_set, tmp_path):
    for name in ("train.csv", "set.json"):
        (tmp_path / name).write_bytes((small_set / name).read_bytes())
    ended = tool("data_prep/batch_plan.py", "--set", tmp_path, "--kind", "triplets", "--batch", 9)
    assert ended.returncode == 0 and "triplets_m9.npz: 20 batches of 9 images, from 60 positive pairs, 0 of them" in ended.stdout
    with np.load(tmp_path / "triplets_m9.npz") as plan:
        assert plan["images"] == len(labels_of(small_set / "train.csv")) == 30
    for seed, name in ((1, "triplets_m9.npz"), (2, "triplets_m12.npz")):
        tool("data_prep/batch_plan.py", "--set", tmp_path, "--kind", "triplets", "--batch", name[10:-4], "--seed", seed)
        with np.load(tmp_path / name) as plan:
            expected, _ = make_triplet_plan(labels_of(tmp_path / "train.csv"), int(plan["batch"]), seed)
            np.testing.assert_array_equal(plan["batches"], expected)
    ended = tool("data_prep/batch_plan.py", "--set", tmp_path / "nowhere")
    assert ended.returncode == 1 and "train.csv: not there; make data-<set>" in ended.stderr
    assert not (tmp_path / "nowhere").exists()
