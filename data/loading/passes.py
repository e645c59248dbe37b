"""Passes over shards: which sample comes at a place of a span, as a pure function of (seed, pass, span, place).

A pass lays the shards end to end, shuffled, as a ring that starts at a random sample. From its start the ring is cut
into equal contiguous spans, one for each micro-batch index, so that a process reads few shards at a time, nearly in
sequence. A span is shuffled within windows of several shards. What the spans leave over is the ring's rest: other
samples in each pass.

    ring     |s7 s7 s7|s2 s2 s2 s2|s9 s9|s0 s0 s0 s0|...      shards in the pass's order, any sizes
    spans    |<-- span 0 -->|<-- span 1 -->| ... | rest
    windows  |<-- w0 -->|<-- w1 -->|                            shuffled inside

Memory: the shard list and, for each span in use, one window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.randomness import stream

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class WindowSize:
    """How far samples are shuffled: over this many shards or samples, whichever is more."""

    shards: int = 16
    """Shards of mean size."""
    samples: int = 16_384
    """Samples."""


@dataclass(frozen=True, kw_only=True)
class _Ring:
    """One pass's shards in their order."""

    number: int
    """Of the pass."""
    shards: IntArray
    ends: IntArray
    """Where each of them ends, in samples from the first one's start."""
    start: int
    """Where the ring starts."""


@dataclass(frozen=True, kw_only=True)
class _Window:
    """A part of one span, shuffled."""

    number: int
    """Of the pass."""
    start: int
    order: npt.NDArray[np.int32]


class Passes:
    """Pass after pass over the same shards; it keeps no state but what it can compute again.

    Args:
        shard_sizes: samples in each shard, at least ``num_spans * ceil(visits_per_span / repeats)`` together.
        num_spans: micro-batch indices.
        visits_per_span: visits that each of them makes in one pass.
        repeats: visits to a sample, one after the other; a pass visits 1/repeats of the samples.
        seed: of the run.
        key: what tells these passes' random numbers from others of the same run.
        window: how far samples are shuffled.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int] | IntArray,
        *,
        num_spans: int,
        visits_per_span: int,
        repeats: int,
        seed: int,
        key: tuple[int | str, ...] = (),
        window: WindowSize,
    ) -> None:
        self._sizes = np.asarray(shard_sizes, np.int64)
        self._num_samples = int(self._sizes.sum())
        self._visits, self._repeats, self._seed, self._key = visits_per_span, repeats, seed, key
        self._span = -(-visits_per_span // repeats)
        assert 1 <= num_spans * self._span <= self._num_samples
        shard_size = -(-self._num_samples // int(np.count_nonzero(self._sizes)))
        num_windows = max(1, self._span // max(1, window.samples, window.shards * shard_size))
        self._bounds = np.arange(num_windows + 1) * self._span // num_windows
        self._ring: _Ring | None = None
        self._windows: dict[int, _Window] = {}

    def rows(self, first: int, last: int, *, span: int) -> IntArray:
        """List visits ``first`` up to, without, ``last`` of a span, counted over all passes.

        The result has rows of (shard, position in it, repeat).
        """
        parts = [np.zeros((0, 3), np.int64)]
        while first < last:
            number, start = divmod(first, self._visits)
            end = min(start + last - first, self._visits)
            parts.append(self._rows_of_pass(number, visits=np.arange(start, end, dtype=np.int64), span=span))
            first += end - start
        return np.concatenate(parts)

    def _rows_of_pass(self, number: int, *, visits: IntArray, span: int) -> IntArray:
        places, repeats = np.divmod(visits, self._repeats)
        shuffled = self._shuffle(number, span=span, places=places)
        shards, positions = self._locate(number, places=span * self._span + shuffled)
        return np.stack([shards, positions, repeats], axis=1)

    def _shuffle(self, number: int, *, span: int, places: IntArray) -> IntArray:
        """Move places of a span within their windows; ``places`` are sorted."""
        parts: list[IntArray] = []
        windows = np.searchsorted(self._bounds, places, side="right") - 1
        for window_number in range(int(windows[0]), int(windows[-1]) + 1):
            window = self._window(number, span=span, window_number=window_number)
            inside = places[windows == window_number] - window.start
            parts.append(window.start + window.order[inside].astype(np.int64))
        return np.concatenate(parts)

    def _window(self, number: int, *, span: int, window_number: int) -> _Window:
        start, end = self._bounds[window_number : window_number + 2].tolist()
        window = self._windows.get(span)
        if window is None or (window.number, window.start) != (number, start):
            order = np.arange(end - start, dtype=np.int32)
            stream(self._seed, *self._key, "window", number, span, window_number).shuffle(order)
            window = self._windows[span] = _Window(number=number, start=start, order=order)
        return window

    def _locate(self, number: int, *, places: IntArray) -> tuple[IntArray, IntArray]:
        ring = self._ring_of(number)
        places = (ring.start + places) % self._num_samples
        turns = np.searchsorted(ring.ends, places, side="right")
        shards = ring.shards[turns]
        return shards, places - (ring.ends[turns] - self._sizes[shards])

    def _ring_of(self, number: int) -> _Ring:
        if self._ring is None or self._ring.number != number:
            generator = stream(self._seed, *self._key, "ring", number)
            shards = generator.permutation(len(self._sizes)).astype(np.int64)
            start = int(generator.integers(self._num_samples))
            self._ring = _Ring(number=number, shards=shards, ends=np.cumsum(self._sizes[shards]), start=start)
        return self._ring
