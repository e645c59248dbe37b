"""Mixing by weights: exact shares at any time, and each source's samples at most once in each of its passes."""

import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig
from data.loading.mixing import MixedOrder, Shares, training_order, whole_weights
from data.loading.order import Order
from data.shards.shard_set import open_shards
from engine.randomness import stream


@st.composite
def mixtures(draw):
    num_micro_batches, micro_batch_size = draw(st.sampled_from([1, 2, 3])), draw(st.integers(1, 5))
    sizes = st.lists(st.one_of(st.integers(0, 25), st.integers(0, 1)), min_size=1, max_size=6)
    sources = draw(st.lists(sizes.filter(lambda sizes: sum(sizes) >= 3), min_size=1, max_size=4))
    batch_size = min(num_micro_batches * micro_batch_size, sum(map(sum, sources)))
    micro_batch_size = batch_size // num_micro_batches
    options = {
        "weights": draw(st.lists(st.integers(1, 9), min_size=len(sources), max_size=len(sources))),
        "batch_size": num_micro_batches * micro_batch_size,
        "micro_batch_size": micro_batch_size,
        "seed": draw(st.integers(0, 5)),
        "window_shards": draw(st.integers(1, 3)),
        "window_samples": draw(st.integers(1, 20)),
        "repeats": draw(st.integers(1, 3)),
    }
    return sources, options


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=7))
def test_shares_are_exact_to_less_than_one_sample_after_any_number(weights):
    shares, total = Shares(weights), sum(weights)
    before = np.zeros(len(weights), np.int64)
    for n in range(2 * total + 2):
        given_now = shares.counts(n)
        assert given_now.sum() == n
        assert all(abs(Fraction(w * n, total) - int(g)) < 1 for w, g in zip(weights, given_now, strict=True))
        assert (given_now >= before).all()
        before = given_now


@settings(deadline=None, max_examples=50)
@given(mixtures())
def test_micro_batches_equal_passes_laid_out_in_full_and_dealt_by_shares(mixture):
    sources, options = mixture
    order, size, seed = MixedOrder(sources, **options), options["micro_batch_size"], options["seed"]
    shares = Shares(options["weights"])
    steps = 3 * order.steps_per_epoch + 3
    most = shares.counts(steps * size).tolist()
    for number in range(order.num_micro_batches):
        streams = [laid_out(sources, s, number=number, count=most[s], **options) for s in range(len(sources))]
        for step in range(steps):
            bounds = zip(shares.counts(step * size), shares.counts((step + 1) * size), strict=True)
            rows = [row for lane, (first, last) in zip(streams, bounds, strict=True) for row in lane[first:last]]
            expected = np.array(rows)[stream(seed, "mix", step, number).permutation(size)]
            np.testing.assert_array_equal(order.micro_batch(step, number), expected)


def laid_out(sources, source, *, number, count, batch_size, micro_batch_size, repeats, **options):
    """The first ``count`` visits that a micro-batch index makes to a source, by plain lists of whole passes."""
    num_spans, visits = batch_size // micro_batch_size, []
    for epoch in itertools.count():
        if len(visits) >= count:
            return visits[:count]
        spans = whole_pass(sources[source], source, epoch=epoch, num_spans=num_spans, repeats=repeats, **options)
        places = [(shard, place) for span in spans for shard, place, repeat in span if repeat == 0]
        assert len(set(places)) == len(places)
        assert repeats > 1 or sum(sources[source]) - len(places) < num_spans
        first_shard = sum(map(len, sources[:source]))
        visits += [[first_shard + shard, place, repeat] for shard, place, repeat in spans[number]]
    raise AssertionError


def whole_pass(sizes, source, *, epoch, num_spans, seed, window_shards, window_samples, repeats, weights):
    rng = stream(seed, "source", source, "ring", epoch)
    ring = [(int(shard), place) for shard in rng.permutation(len(sizes)) for place in range(sizes[shard])]
    start = int(rng.integers(len(ring)))
    ring, num_visits = ring[start:] + ring[:start], len(ring) // num_spans
    span = math.ceil(num_visits / repeats)
    shard_size = math.ceil(len(ring) / sum(size > 0 for size in sizes))
    num_windows = max(1, span // max(window_samples, window_shards * shard_size))
    spans = []
    for number in range(num_spans):
        places = []
        for window in range(num_windows):
            inside = np.arange(window * span // num_windows, (window + 1) * span // num_windows)
            moved = np.arange(len(inside), dtype=np.int32)
            stream(seed, "source", source, "window", epoch, number, window).shuffle(moved)
            places += inside[moved].tolist()
        visits = [(*ring[number * span + place], repeat) for place in places for repeat in range(repeats)]
        spans.append(visits[:num_visits])
    return spans


@settings(deadline=None, max_examples=25)
@given(mixtures(), st.randoms(use_true_random=False))
def test_any_micro_batch_can_be_asked_for_in_any_order(mixture, random):
    sources, options = mixture
    order = MixedOrder(sources, **options)
    keys = [
        (step, number) for step in range(2 * order.steps_per_epoch + 5) for number in range(order.num_micro_batches)
    ]
    in_order = {key: order.micro_batch(*key) for key in keys}
    random.shuffle(keys)
    for key in keys[:20]:
        np.testing.assert_array_equal(order.micro_batch(*key), in_order[key])
        np.testing.assert_array_equal(MixedOrder(sources, **options).micro_batch(*key), in_order[key])


def test_sources_are_shuffled_within_a_micro_batch_and_keep_their_share():
    sources, options = [[40, 3, 0, 57], [60, 140]], {"batch_size": 100, "micro_batch_size": 50, "seed": 3}
    order = MixedOrder(sources, weights=(0.7, 0.3), **options)
    rows = [order.micro_batch(step, number) for step in range(20) for number in range(2)]
    assert {int((found[:, 0] < 4).sum()) for found in rows} == {35}
    assert len({tuple((found[:, 0] < 4).tolist()) for found in rows}) == len(rows)


def test_a_small_source_with_a_large_weight_is_passed_more_often():
    order = MixedOrder([[10], [1000]], weights=(1, 1), batch_size=20, micro_batch_size=10, seed=0)
    rows = np.concatenate([order.micro_batch(step, number) for step in range(10) for number in range(2)])
    _, counts = np.unique(rows[rows[:, 0] == 0], axis=0, return_counts=True)
    assert counts.tolist() == [10] * 10
    assert len(np.unique(rows[rows[:, 0] == 1], axis=0)) == 100


def test_the_mixed_order_is_pinned():
    """A run that is resumed with a newer version must go on with the same samples."""
    order = MixedOrder([[5, 9], [4]], weights=(2, 1), batch_size=6, micro_batch_size=3, seed=7, window_samples=3)
    assert [order.micro_batch(step, number).tolist() for step in (0, 5) for number in (0, 1)] == PINNED


def test_a_late_step_of_large_sources_takes_little_time():
    sources = [np.full(50_000, 10_000).tolist(), np.full(20_000, 7_000).tolist(), [1000] * 10]
    start = time.process_time()
    MixedOrder(sources, weights=(0.6, 0.35, 0.05), batch_size=4096, micro_batch_size=64, seed=0).micro_batch(10**6, 33)
    assert time.process_time() - start < 1


def test_folders_without_weights_are_one_data_set_and_with_them_are_mixed(write):
    first, second = write(12, name="first"), write(7, name="second")
    both, options = open_shards(first.folder, second.folder), {"batch_size": 6, "micro_batch_size": 3}
    folders = tuple(str(shards.folder) for shards in (first, second))
    orders = [training_order(DataConfig(shards=folders, weights=w, **options), both, seed=1) for w in ((), (2, 1))]
    expected = [
        Order(both.sizes, seed=1, **options),
        MixedOrder([[5, 5, 2], [5, 2]], weights=(2, 1), seed=1, **options),
    ]
    for order, other in zip(orders, expected, strict=True):
        assert type(order) is type(other)
        np.testing.assert_array_equal(order.micro_batch(7, 1), other.micro_batch(7, 1))


def test_weights_are_read_as_they_are_written():
    assert whole_weights((0.7, 0.3)) == [7, 3]
    assert whole_weights((1, 1, 2.5)) == [2, 2, 5]
    assert whole_weights((1e-3, 0.999)) == [1, 999]


def test_weights_that_make_no_sense_are_refused_with_what_would_do():
    with pytest.raises(ValueError, match=r"one weight for each folder of data.shards: 2, got 3"):
        DataConfig(shards=("a", "b"), weights=(1, 1, 1))
    for weights in ((1.0, 0.0), (1.0, -2.0), (1.0, float("nan"))):
        with pytest.raises(ValueError, match=r"data.weights must be positive, got \(1.0"):
            DataConfig(shards=("a", "b"), weights=weights)
    with pytest.raises(ValueError, match=r"finer than 10000 .* round them, for example to 0.632 0.368"):
        whole_weights((0.6324555, 0.3675445))


def test_a_source_with_fewer_samples_than_micro_batches_is_refused_by_its_number():
    with pytest.raises(ValueError, match=r"source 2 of data.shards holds 3 samples, fewer than the 4 micro-batches"):
        MixedOrder([[90], [1, 2]], weights=(1, 1), batch_size=8, micro_batch_size=2, seed=0)


PINNED = [
    [[0, 1, 0], [0, 2, 0], [2, 0, 0]],
    [[1, 0, 0], [2, 3, 0], [1, 6, 0]],
    [[2, 0, 0], [1, 2, 0], [0, 4, 0]],
    [[1, 4, 0], [2, 2, 0], [1, 8, 0]],
]
