"""The real loader over uneven shards: any processes, any workers, any restarts see each sample as often as promised."""

from collections import Counter

import numpy as np
import pytest

from data.config import DataConfig
from data.loading.loader import training_batches
from data.loading.mixing import training_order
from data.shards.shard_set import open_shards
from engine.config import micro_batches_of

BATCH = {"batch_size": 12, "micro_batch_size": 2}
KEPT = (*range(9), 10, *range(18, 24), *range(36, 60))


class Ids:
    """Of the samples, and nothing else."""

    def __call__(self, samples, *, step, micro_batch):
        return {"ids": np.array([sample.id for sample in samples]), "key": (step, micro_batch)}


@pytest.fixture
def uneven(write):
    """40 samples of two folders in shards of 0 to 9."""
    folders = [write(count, name=name, per_shard=9).folder for count, name in ((45, "one"), (15, "two"))]
    shards = open_shards(*folders).subset(KEPT)
    assert shards.sizes == (9, 1, 6, 0, 9, 9, 6)
    return shards


def load(shards, *, steps, world_size, workers, weights=(), repeats=1):
    """Collect what all processes load, by (step, micro_batch)."""
    config = DataConfig(shards=("one", "two"), weights=weights, window_shards=1, window_samples=4, **BATCH)
    found = {}
    for rank in range(world_size):
        batches = training_batches(
            shards,
            training_order(config, shards, seed=3, repeats=repeats),
            Ids(),
            micro_batches=micro_batches_of(rank, world_size=world_size, **BATCH),
            first_step=steps.start,
            last_step=steps.stop,
            workers=workers,
        )
        for batch in batches:
            assert batch["key"] not in found
            found[batch["key"]] = batch["ids"].tolist()
    return found


@pytest.mark.parametrize(
    "options", [{}, {"repeats": 2}, {"repeats": 5}, {"weights": (3, 1)}, {"weights": (3, 1), "repeats": 2}], ids=str
)
@pytest.mark.parametrize("parts", [[(1, 2), (6, 0)], [(2, 1), (3, 2)]], ids=str)
def test_processes_workers_and_restarts_change_nothing(uneven, parts, options):
    whole = load(uneven, steps=range(9), world_size=1, workers=0, **options)
    assert list(whole) == [(step, number) for step in range(9) for number in range(6)]
    pieces = {}
    for (world_size, workers), steps in zip(parts, (range(5), range(5, 9)), strict=True):
        pieces |= load(uneven, steps=steps, world_size=world_size, workers=workers, **options)
    assert pieces == whole


@pytest.mark.parametrize(("repeats", "different"), [(1, 36), (2, 18), (5, 12)])  # 6 micro-batches, 6 visits each
def test_an_epoch_sees_each_sample_as_often_as_promised(uneven, repeats, different):
    left_out: list[frozenset[int]] = []
    for epoch in range(3):
        steps = range(3 * epoch, 3 * epoch + 3)
        found = load(uneven, steps=steps, world_size=3, workers=1, repeats=repeats)
        counts = Counter(number for ids in found.values() for number in ids)
        assert counts.total() == 36
        assert len(counts) == different
        assert max(counts.values()) == repeats
        left_out.append(frozenset(KEPT) - frozenset(counts))
        assert len(left_out[-1]) == len(KEPT) - different  # nothing else was seen
    assert len(set(left_out)) == 3
