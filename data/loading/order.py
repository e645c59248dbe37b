"""Which samples a micro-batch holds: a pure function of (seed, step, micro_batch).

An epoch is one pass (``data/loading/passes.py``): every sample at most once, in one contiguous span of shuffled shards
for each micro-batch index. What does not fill a last global batch is left out, other samples each epoch.
``data/loading/mixing.py`` has the order of several data sets mixed by weights. Evaluation visits every sample exactly
once, in the data set's own order.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from data.loading.passes import IntArray, Passes, WindowSize
from engine.errors import UserError


class TrainingOrder(Protocol):
    """What training needs to know of an order."""

    steps_per_epoch: int
    """Steps that visit as many samples as there are, but for the rest of a global batch."""
    num_micro_batches: int
    """Micro-batches in a step."""

    def micro_batch(self, step: int, micro_batch: int) -> IntArray:
        """List the samples as rows of (shard, position in it, repeat); steps count from 0 over all epochs."""
        ...


class Order:
    """The order of training samples; it keeps no state but what it can compute again."""

    def __init__(
        self,
        shard_sizes: Sequence[int] | IntArray,
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        window_shards: int = 16,
        window_samples: int = 16_384,
        repeats: int = 1,
    ) -> None:
        """Plan epochs over shards of these sizes.

        ``repeats`` visits 1/repeats of the samples in an epoch, that many times each, in neighbouring places of one
        micro-batch (or of two steps, where a micro-batch ends between them).
        """
        num_samples = int(np.asarray(shard_sizes, np.int64).sum())
        check_sizes(num_samples, batch_size=batch_size, micro_batch_size=micro_batch_size, repeats=repeats)
        self._micro_batch_size = micro_batch_size
        self.steps_per_epoch = num_samples // batch_size
        self.num_micro_batches = batch_size // micro_batch_size
        self._passes = Passes(
            shard_sizes,
            num_spans=self.num_micro_batches,
            visits_per_span=self.steps_per_epoch * micro_batch_size,
            repeats=repeats,
            seed=seed,
            window=WindowSize(shards=window_shards, samples=window_samples),
        )

    def micro_batch(self, step: int, micro_batch: int) -> IntArray:
        """List the samples as rows of (shard, position in it, repeat); steps count from 0 over all epochs."""
        check_key(step, micro_batch, num_micro_batches=self.num_micro_batches)
        first = step * self._micro_batch_size
        return self._passes.rows(first, first + self._micro_batch_size, span=micro_batch)


def evaluation_range(num_samples: int, *, micro_batch_size: int, rank: int, world_size: int) -> range:
    """Number the micro-batches that process ``rank`` evaluates; over all processes each comes once.

    Processes may get one micro-batch more or less than others, and the last micro-batch may be smaller.
    """
    num_micro_batches = -(-num_samples // micro_batch_size)
    return range(rank * num_micro_batches // world_size, (rank + 1) * num_micro_batches // world_size)


def evaluation_micro_batch(shard_sizes: Sequence[int], *, micro_batch_size: int, number: int) -> IntArray:
    """List the samples of one micro-batch in the data set's own order, as rows of (shard, position, repeat 0)."""
    ends = np.cumsum(np.asarray(shard_sizes, np.int64))
    places = np.arange(number * micro_batch_size, min((number + 1) * micro_batch_size, int(ends[-1])), dtype=np.int64)
    shards = np.searchsorted(ends, places, side="right")
    positions = places - (ends[shards] - np.asarray(shard_sizes, np.int64)[shards])
    return np.stack([shards, positions, np.zeros_like(places)], axis=1)


def check_sizes(num_samples: int, *, batch_size: int, micro_batch_size: int, repeats: int) -> None:
    """Refuse sizes that no step can be cut from.

    Raises:
        UserError: says which, and what would do.
    """
    if repeats < 1:
        raise UserError(f"repeats must be at least 1, got {repeats}")
    if micro_batch_size < 1 or batch_size < 1 or batch_size % micro_batch_size:
        raise UserError(
            f"batch size {batch_size} must be a positive multiple of the micro-batch size {micro_batch_size}"
        )
    if num_samples < batch_size:
        raise UserError(
            f"a global batch of {batch_size} needs as many samples, the shards hold {num_samples}; "
            f"use data.batch-size {num_samples} or less, or more images"
        )


def check_key(step: int, micro_batch: int, *, num_micro_batches: int) -> None:
    """Refuse a micro-batch that no step has.

    Raises:
        IndexError: says how many there are.
    """
    if step < 0 or not 0 <= micro_batch < num_micro_batches:
        raise IndexError(f"micro-batch {micro_batch} of step {step}: there are {num_micro_batches} a step")
