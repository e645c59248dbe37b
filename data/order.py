"""Which samples a micro-batch holds: a pure function of (seed, step, micro_batch).

An epoch's shards are shuffled and laid end to end as a ring that starts at a random sample. From its start the ring is
cut into one contiguous span per micro-batch index, so that a process reads few shards at a time, nearly in sequence. A
span is shuffled within windows of several shards. What does not fill a last global batch is the ring's rest: other
samples each epoch.

    ring     |s7 s7 s7|s2 s2 s2 s2|s9 s9|s0 s0 s0 s0|...      shards in the epoch's order, any sizes
    spans    |<-- micro-batch 0 -->|<-- micro-batch 1 -->| ... | rest
    windows  |<-- w0 -->|<-- w1 -->|                            shuffled inside

Memory: the shard list and, per micro-batch index that is asked for, one window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.randomness import stream

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Ring:
    """One epoch's shards in their order."""

    epoch: int
    shards: IntArray
    ends: IntArray
    """Where each of them ends, in samples from the first one's start."""
    start: int
    """Where the ring starts."""


@dataclass(frozen=True, kw_only=True)
class _Window:
    """A part of one span, shuffled."""

    epoch: int
    start: int
    order: npt.NDArray[np.int32]


class Order:
    """The order of training samples; it keeps no state but what it can compute again."""

    def __init__(
        self,
        shard_sizes: Sequence[int],
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
        self._sizes = np.asarray(shard_sizes, np.int64)
        num_samples = int(self._sizes.sum())
        _check_sizes(num_samples, batch_size=batch_size, micro_batch_size=micro_batch_size, repeats=repeats)
        self._micro_batch_size, self._seed, self._repeats = micro_batch_size, seed, repeats
        self._num_samples = num_samples
        self.steps_per_epoch = num_samples // batch_size
        self.num_micro_batches = batch_size // micro_batch_size
        self._span = -(-self.steps_per_epoch * micro_batch_size // repeats)
        shard_size = -(-num_samples // np.count_nonzero(self._sizes))
        num_windows = max(1, self._span // max(1, window_samples, window_shards * shard_size))
        self._bounds = np.arange(num_windows + 1) * self._span // num_windows
        self._ring: _Ring | None = None
        self._windows: dict[int, _Window] = {}

    def micro_batch(self, step: int, micro_batch: int) -> IntArray:
        """Return the samples as rows of (shard, position in it, repeat); steps count from 0 over all epochs."""
        if step < 0 or not 0 <= micro_batch < self.num_micro_batches:
            raise IndexError(f"micro-batch {micro_batch} of step {step}: there are {self.num_micro_batches} a step")
        epoch, step = divmod(step, self.steps_per_epoch)
        visits = np.arange(step * self._micro_batch_size, (step + 1) * self._micro_batch_size, dtype=np.int64)
        places, repeats = np.divmod(visits, self._repeats)
        shuffled = self._shuffle(epoch, micro_batch=micro_batch, places=places)
        shards, positions = self._locate(epoch, places=micro_batch * self._span + shuffled)
        return np.stack([shards, positions, repeats], axis=1)

    def _shuffle(self, epoch: int, *, micro_batch: int, places: IntArray) -> IntArray:
        """Move places of a span within their windows; ``places`` are sorted."""
        parts: list[IntArray] = []
        numbers = np.searchsorted(self._bounds, places, side="right") - 1
        for number in np.unique(numbers).tolist():
            start = int(self._bounds[number])
            window = self._window(epoch, micro_batch=micro_batch, number=number)
            parts.append(start + window.order[places[numbers == number] - start].astype(np.int64))
        return np.concatenate(parts)

    def _window(self, epoch: int, *, micro_batch: int, number: int) -> _Window:
        start, end = self._bounds[number : number + 2].tolist()
        held = self._windows.get(micro_batch)
        if held is None or (held.epoch, held.start) != (epoch, start):
            order = np.arange(end - start, dtype=np.int32)
            stream(self._seed, "window", epoch, micro_batch, number).shuffle(order)
            held = self._windows[micro_batch] = _Window(epoch=epoch, start=start, order=order)
        return held

    def _locate(self, epoch: int, *, places: IntArray) -> tuple[IntArray, IntArray]:
        ring = self._ring_of(epoch)
        places = (ring.start + places) % self._num_samples
        turns = np.searchsorted(ring.ends, places, side="right")
        shards = ring.shards[turns]
        return shards, places - (ring.ends[turns] - self._sizes[shards])

    def _ring_of(self, epoch: int) -> _Ring:
        if self._ring is None or self._ring.epoch != epoch:
            generator = stream(self._seed, "ring", epoch)
            shards = generator.permutation(len(self._sizes)).astype(np.int64)
            start = int(generator.integers(self._num_samples))
            self._ring = _Ring(epoch=epoch, shards=shards, ends=np.cumsum(self._sizes[shards]), start=start)
        return self._ring


def evaluation_range(num_samples: int, *, micro_batch_size: int, rank: int, world_size: int) -> range:
    """Return the numbers of the micro-batches that process ``rank`` evaluates; over all processes each comes once.

    Processes may get one micro-batch more or less than others, and the last micro-batch may be smaller.
    """
    num_micro_batches = -(-num_samples // micro_batch_size)
    return range(rank * num_micro_batches // world_size, (rank + 1) * num_micro_batches // world_size)


def evaluation_micro_batch(shard_sizes: Sequence[int], *, micro_batch_size: int, number: int) -> IntArray:
    """Return the samples of one micro-batch in the data set's own order, as rows of (shard, position, repeat 0)."""
    ends = np.cumsum(np.asarray(shard_sizes, np.int64))
    places = np.arange(number * micro_batch_size, min((number + 1) * micro_batch_size, int(ends[-1])), dtype=np.int64)
    shards = np.searchsorted(ends, places, side="right")
    positions = places - (ends[shards] - np.asarray(shard_sizes, np.int64)[shards])
    return np.stack([shards, positions, np.zeros_like(places)], axis=1)


def evaluation_spans(
    shard_sizes: Sequence[int], *, micro_batch_size: int, rank: int, world_size: int
) -> Iterator[IntArray]:
    """Yield the micro-batches that process ``rank`` evaluates; over all processes every sample comes exactly once."""
    for number in evaluation_range(
        sum(shard_sizes), micro_batch_size=micro_batch_size, rank=rank, world_size=world_size
    ):
        yield evaluation_micro_batch(shard_sizes, micro_batch_size=micro_batch_size, number=number)


def _check_sizes(num_samples: int, *, batch_size: int, micro_batch_size: int, repeats: int) -> None:
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if micro_batch_size < 1 or batch_size < 1 or batch_size % micro_batch_size:
        raise ValueError(
            f"batch size {batch_size} must be a positive multiple of the micro-batch size {micro_batch_size}"
        )
    if num_samples < batch_size:
        raise ValueError(
            f"a global batch of {batch_size} needs as many samples, the shards hold {num_samples}; "
            f"use data.batch-size {num_samples} or less, or more images"
        )
