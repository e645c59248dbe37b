"""Shards that are sorted by class are told from shuffled ones by a threshold that holds for any size."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.commands.class_order import class_mix


def shared_pairs(shards, labels):
    return sum(math.comb(count, 2) for count in Counter(zip(shards, labels, strict=True)).values())


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=2, max_size=4).filter(lambda sizes: 4 <= sum(sizes) <= 7),
    data=st.data(),
)
def test_deviations_are_those_of_all_permutations(sizes, data):
    labels = data.draw(st.lists(st.integers(0, 2), min_size=sum(sizes), max_size=sum(sizes)))
    shards = np.repeat(np.arange(len(sizes)), sizes).tolist()
    counts = [shared_pairs(shards, order) for order in itertools.permutations(labels)]
    observed, deviation = shared_pairs(shards, labels), np.std(counts)
    mix = class_mix(np.array(labels), sizes=tuple(sizes))
    if deviation > 1e-9 and observed:
        assert mix is not None
        assert mix.deviations == pytest.approx((observed - np.mean(counts)) / deviation, abs=1e-6)
    else:
        assert mix is None


def test_effective_numbers_of_classes_are_what_they_say():
    mix = class_mix(np.repeat(np.arange(20), 50), sizes=(100,) * 10)
    assert mix.in_shard == pytest.approx(2, rel=0.05)
    assert mix.overall == pytest.approx(20, rel=0.05)
    assert mix.is_sorted
    assert "as if it held 2.0 classes" in mix.warning


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("shards", [2, 12, 100])
def test_sorted_shards_are_found_and_shuffled_ones_are_not(classes, shards):
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, classes, 5000))
    sizes = (5000 // shards,) * shards
    labels = labels[: sum(sizes)]
    assert class_mix(labels, sizes=sizes).is_sorted
    assert not any(class_mix(rng.permutation(labels), sizes=sizes).is_sorted for _ in range(20))


def test_two_halves_of_other_classes_are_found_though_each_shard_holds_hundreds():
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.integers(0, 500, 20_000), rng.integers(500, 1000, 20_000)])
    assert class_mix(labels, sizes=(2000,) * 20).is_sorted


def test_random_orders_of_small_and_skewed_sets_raise_no_alarm():
    rng = np.random.default_rng(1)
    for _ in range(500):
        sizes = tuple(rng.integers(1, 30, rng.integers(2, 12)).tolist())
        classes = int(rng.integers(2, 20))
        share = rng.dirichlet(np.full(classes, rng.choice([0.1, 1, 10])))
        mix = class_mix(rng.choice(classes, size=sum(sizes), p=share), sizes=sizes)
        assert mix is None or not mix.is_sorted


def test_unlabelled_samples_are_not_counted():
    labels = np.repeat(np.arange(4), 100)
    holes = np.concatenate([np.insert(part, 0, -1) for part in np.split(labels, 4)])
    assert class_mix(holes, sizes=(101,) * 4) == class_mix(labels, sizes=(100,) * 4)
    assert class_mix(np.full(9, -1), sizes=(4, 5)) is None
    assert class_mix(np.zeros(9, np.int64), sizes=(4, 5)) is None
    assert class_mix(np.arange(9), sizes=(9,)) is None
