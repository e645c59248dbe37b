"""The order of samples: a pure function that visits each sample once and reads shards nearly in sequence."""

import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loading.order import Order, evaluation_micro_batch, evaluation_range
from engine.config import micro_batches_of
from engine.randomness import stream


@st.composite
def plans(draw, *, most_repeats=1):
    uneven = st.one_of(st.integers(0, 60), st.integers(0, 1))
    sizes = draw(st.lists(uneven, min_size=1, max_size=12).filter(lambda sizes: sum(sizes) >= 24))
    micro_batch_size = draw(st.integers(1, 4))
    num_micro_batches = draw(st.sampled_from([1, 2, 3, 6]))
    options = {
        "batch_size": micro_batch_size * num_micro_batches,
        "micro_batch_size": micro_batch_size,
        "seed": draw(st.integers(0, 5)),
        "window_shards": draw(st.integers(1, 3)),
        "window_samples": draw(st.integers(1, 20)),
        "repeats": draw(st.integers(1, most_repeats)),
    }
    return sizes, options


def visits(order, *, epoch=0):
    first = epoch * order.steps_per_epoch
    steps = range(first, first + order.steps_per_epoch)
    return [order.micro_batch(step, number) for step in steps for number in range(order.num_micro_batches)]


@settings(deadline=None, max_examples=150)
@given(plans(), st.integers(0, 3))
def test_an_epoch_visits_each_sample_at_most_once_and_leaves_out_less_than_a_batch(plan, epoch):
    sizes, options = plan
    rows = np.concatenate(visits(Order(sizes, **options), epoch=epoch))
    assert len(np.unique(rows[:, :2], axis=0)) == len(rows)
    assert sum(sizes) - len(rows) < options["batch_size"]
    assert (rows[:, 1] >= 0).all()
    assert (rows[:, 1] < np.array(sizes)[rows[:, 0]]).all()
    assert not rows[:, 2].any()


@settings(deadline=None, max_examples=100)
@given(plans(most_repeats=4))
def test_repeats_visit_a_share_of_the_samples_that_many_times(plan):
    sizes, options = plan
    order, repeats = Order(sizes, **options), options["repeats"]
    rows = np.concatenate(visits(order))
    assert len(np.unique(rows, axis=0)) == len(rows) == order.steps_per_epoch * options["batch_size"]
    _, counts = np.unique(rows[:, :2], axis=0, return_counts=True)
    assert counts.max() <= repeats
    assert (counts < repeats).sum() <= order.num_micro_batches  # only where a span ends between two visits


@settings(deadline=None, max_examples=40)
@given(plans(most_repeats=3), st.randoms(use_true_random=False))
def test_any_micro_batch_can_be_asked_for_in_any_order(plan, random):
    sizes, options = plan
    order = Order(sizes, **options)
    keys = [(step, number) for step in range(3 * order.steps_per_epoch) for number in range(order.num_micro_batches)]
    in_order = {key: order.micro_batch(*key) for key in keys}
    random.shuffle(keys)
    for key in keys[:20]:
        np.testing.assert_array_equal(order.micro_batch(*key), in_order[key])
        np.testing.assert_array_equal(Order(sizes, **options).micro_batch(*key), in_order[key])


@settings(deadline=None, max_examples=100)
@given(plans(most_repeats=3), st.integers(0, 2))
def test_an_epoch_equals_one_laid_out_in_full(plan, epoch):
    sizes, options = plan
    order = Order(sizes, **options)
    found = [rows.tolist() for rows in visits(order, epoch=epoch)]
    assert found == laid_out(sizes, epoch=epoch, steps=order.steps_per_epoch, **options)


def laid_out(sizes, *, epoch, steps, batch_size, micro_batch_size, seed, window_shards, window_samples, repeats):
    """The same rules by plain lists of all samples; what is drawn is drawn from the same streams."""
    rng = stream(seed, "ring", epoch)
    ring = [[int(shard), place] for shard in rng.permutation(len(sizes)) for place in range(sizes[shard])]
    start = int(rng.integers(len(ring)))
    ring = ring[start:] + ring[:start]
    span = math.ceil(steps * micro_batch_size / repeats)
    shard_size = math.ceil(len(ring) / sum(size > 0 for size in sizes))
    num_windows = max(1, span // max(window_samples, window_shards * shard_size))
    spans = []
    for number in range(batch_size // micro_batch_size):
        samples, places = ring[number * span : (number + 1) * span], []
        for window in range(num_windows):
            inside = np.arange(window * span // num_windows, (window + 1) * span // num_windows)
            moved = np.arange(len(inside), dtype=np.int32)
            stream(seed, "window", epoch, number, window).shuffle(moved)
            places += inside[moved].tolist()
        spans.append([[*samples[place], repeat] for place in places for repeat in range(repeats)])
    size = micro_batch_size
    return [rows[step * size : (step + 1) * size] for step in range(steps) for rows in spans]


@settings(deadline=None, max_examples=60)
@given(plans(most_repeats=2), st.data())
def test_the_number_of_processes_changes_no_step(plan, data):
    sizes, options = plan
    size = {name: options[name] for name in ("batch_size", "micro_batch_size")}
    whole = Order(sizes, **options)
    world_size = data.draw(st.sampled_from([w for w in range(1, 7) if whole.num_micro_batches % w == 0]))
    step = data.draw(st.integers(0, 2 * whole.steps_per_epoch))
    shares = [micro_batches_of(rank, world_size=world_size, **size) for rank in range(world_size)]
    gathered = [Order(sizes, **options).micro_batch(step, number) for share in shares for number in share]
    np.testing.assert_array_equal(gathered, [whole.micro_batch(step, n) for n in range(whole.num_micro_batches)])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 50), st.integers(5, 30), st.integers(2, 40))
def test_a_span_reads_few_shards_at_a_time(seed, shard_size, num_shards):
    order = Order(
        [shard_size] * num_shards, batch_size=4, micro_batch_size=2, seed=seed, window_shards=2, window_samples=1
    )
    for number in range(order.num_micro_batches):
        shards = [order.micro_batch(step, number)[:, 0] for step in range(order.steps_per_epoch)]
        last_step: dict[int, int] = {}
        for step, found in enumerate(shards):
            last_step.update(dict.fromkeys(found.tolist(), step))
        first_step = {s: min(step for step, found in enumerate(shards) if s in found) for s in last_step}
        open_at_once = max(
            sum(first_step[s] <= step <= last_step[s] for s in last_step) for step in range(order.steps_per_epoch)
        )
        assert open_at_once <= 8  # two windows meet in a step, each less than four shards long, and ends are shared


def test_a_window_is_shuffled():
    rows = np.concatenate(visits(Order([1000], batch_size=10, micro_batch_size=10, seed=0)))
    assert abs(np.corrcoef(np.arange(1000), rows[:, 1])[0, 1]) < 0.15


def test_epochs_differ_and_leave_out_other_samples():
    order = Order([103], batch_size=10, micro_batch_size=5, seed=1)
    epochs = [np.concatenate(visits(order, epoch=epoch))[:, 1] for epoch in range(40)]
    left_out = [frozenset(range(103)) - frozenset(epoch.tolist()) for epoch in epochs]
    assert all(len(left) == 3 for left in left_out)
    assert len(set(left_out)) > 20
    assert not np.array_equal(epochs[0], epochs[1])


def test_seeds_differ():
    first, second = (Order([100], batch_size=10, micro_batch_size=10, seed=s).micro_batch(0, 0) for s in (0, 1))
    assert not np.array_equal(first, second)


def test_the_order_is_pinned():
    """A run that is resumed with a newer version must go on with the same samples."""
    order = Order([5, 9, 4], batch_size=4, micro_batch_size=2, seed=7, window_shards=1, window_samples=3, repeats=2)
    rows = [order.micro_batch(step, number).tolist() for step in (0, 5) for number in (0, 1)]
    assert rows == PINNED


def test_a_billion_samples_take_little_time_and_memory():
    tracemalloc.start()
    order = Order(np.full(100_000, 10_000), batch_size=4096, micro_batch_size=64, seed=0)
    order.micro_batch(0, 0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 40e6
    order.micro_batch(100_000, 33)
    start = time.process_time()
    for step in range(100_001, 100_101):
        order.micro_batch(step, 33)
    assert (time.process_time() - start) / 100 < 0.01


def test_more_batch_than_samples_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"global batch of 256 .* hold 100; use data.batch-size 100"):
        Order([60, 40], batch_size=256, micro_batch_size=64, seed=0)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="multiple of the micro-batch size 3"):
        Order([60], batch_size=8, micro_batch_size=3, seed=0)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        Order([60], batch_size=8, micro_batch_size=4, seed=0, repeats=0)
    with pytest.raises(IndexError, match="micro-batch 2 of step 0"):
        Order([60], batch_size=8, micro_batch_size=4, seed=0).micro_batch(0, 2)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 7))
def test_evaluation_visits_every_sample_once_on_any_number_of_processes(sizes, micro_batch_size, world_size):
    parts = [
        evaluation_micro_batch(sizes, micro_batch_size=micro_batch_size, number=number)
        for rank in range(world_size)
        for number in evaluation_range(sum(sizes), micro_batch_size=micro_batch_size, rank=rank, world_size=world_size)
    ]
    found = np.concatenate(parts)[:, :2].tolist() if parts else []
    assert found == [[shard, position] for shard, size in enumerate(sizes) for position in range(size)]
    shares = [
        len(evaluation_range(sum(sizes), micro_batch_size=micro_batch_size, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    assert max(shares) - min(shares) <= 1


PINNED = [[[0, 2, 0], [0, 2, 1]], [[2, 1, 0], [2, 1, 1]], [[2, 3, 0], [2, 3, 1]], [[0, 3, 0], [0, 3, 1]]]
