"""Several data sets mixed by weights: which samples a micro-batch holds, a pure function of (seed, step, micro_batch).

Every source has passes of its own (``data/loading/passes.py``), cut into one span per micro-batch index; and every
micro-batch index deals its places out to the sources by one fixed sequence, in which each source's share is exact. So
resuming needs the step only, and what follows is guaranteed, whatever the processes, workers and restarts:

* **Shares**: after any number n of samples of a micro-batch index, counted from step 0, a source of weight w (of a sum
  of 1) has given w * n of them to less than one sample. All micro-batch indices deal alike: after any step, the whole
  run's shares are exact to less than one sample per micro-batch index.
* **At most once**: a pass visits a sample of its source at most once (``repeats: r``: 1/r of the samples, at most r
  times each). It leaves out fewer samples than there are micro-batch indices, others in each pass.
* **Passes**: all micro-batch indices begin a source's next pass at the same of their samples, as soon as the pass
  before is over, in the middle of an epoch and of a micro-batch. Sources end their passes at different steps; a small
  one with a large weight is seen more often. Where two passes meet, a micro-batch may hold a sample of both.
* **Epoch**: as many steps as visit the number of samples of all sources together: it measures the run's length, and no
  source begins or ends with it.

Within a micro-batch the sources' samples are shuffled. Without weights there is no mixing: the folders are then one
data set, in one order (``data/loading/order.py``), and sources come by their sizes.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial

import numpy as np

from data.config import DataConfig
from data.loading.order import Order, TrainingOrder, check_key, check_sizes
from data.loading.passes import IntArray, Passes, WindowSize
from data.shards.shard_set import ShardSet
from engine.errors import UserError
from engine.randomness import stream

MOST_PARTS = 10_000
"""Finest share: weights must be whole multiples of 1 / MOST_PARTS of their sum or coarser."""


def training_order(config: DataConfig, shards: ShardSet, *, seed: int, repeats: int = 1) -> TrainingOrder:
    """Make the order in which a run visits the samples of ``shards``: mixed by weights where there are some."""
    sizes = shards.sizes
    sources = [sizes[part.start : part.stop] for part in shards.parts]
    order = partial(MixedOrder, sources, weights=config.weights) if config.weights else partial(Order, sizes)
    return order(
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        seed=seed,
        window_shards=config.window_shards,
        window_samples=config.window_samples,
        repeats=repeats,
    )


class MixedOrder:
    """The order of training samples from several sources; it keeps no state but what it can compute again.

    Args:
        sources: the shard sizes of each source; shards are numbered through all of them.
        weights: one for each source, positive; only their ratios count.
        batch_size: samples of a step.
        micro_batch_size: samples of a micro-batch.
        seed: of the run.
        window_shards: see `WindowSize`.
        window_samples: see `WindowSize`.
        repeats: visits to a sample, one after the other among those of its source.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[int]],
        *,
        weights: Sequence[float],
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        window_shards: int = 16,
        window_samples: int = 16_384,
        repeats: int = 1,
    ) -> None:
        counts = [sum(sizes) for sizes in sources]
        check_sizes(sum(counts), batch_size=batch_size, micro_batch_size=micro_batch_size, repeats=repeats)
        self._micro_batch_size, self._seed = micro_batch_size, seed
        self.steps_per_epoch = sum(counts) // batch_size
        self.num_micro_batches = batch_size // micro_batch_size
        self._shares = Shares(weights)
        self._first_shards = np.cumsum([0, *(len(sizes) for sizes in sources[:-1])]).tolist()
        window = WindowSize(shards=window_shards, samples=window_samples)
        self._passes = [
            Passes(
                sizes,
                num_spans=self.num_micro_batches,
                visits_per_span=self._visits_per_span(number, count),
                repeats=repeats,
                seed=seed,
                key=("source", number),
                window=window,
            )
            for number, (sizes, count) in enumerate(zip(sources, counts, strict=True))
        ]

    def micro_batch(self, step: int, micro_batch: int) -> IntArray:
        """List the samples as rows of (shard, position in it, repeat); steps count from 0 over all epochs."""
        check_key(step, micro_batch, num_micro_batches=self.num_micro_batches)
        firsts, lasts = (self._shares.counts(n * self._micro_batch_size).tolist() for n in (step, step + 1))
        parts: list[IntArray] = []
        for passes, shard, first, last in zip(self._passes, self._first_shards, firsts, lasts, strict=True):
            parts.append(passes.rows(first, last, span=micro_batch) + np.array([shard, 0, 0]))
        return stream(self._seed, "mix", step, micro_batch).permutation(np.concatenate(parts))

    def _visits_per_span(self, source: int, count: int) -> int:
        if count < self.num_micro_batches:
            raise UserError(
                f"source {source + 1} of data.shards holds {count} samples, fewer than the {self.num_micro_batches} "
                f"micro-batches of a step among which they are divided; leave it out, or use fewer micro-batches"
            )
        return count // self.num_micro_batches


class Shares:
    """How many of the first n samples each source gives: w * n to less than one sample, for every n and source.

    The samples are dealt out one by one in a sequence that repeats after as many as the weights, as whole numbers, add
    up to. A source's i-th sample may be the n-th of all where w * n > i - 1, and must be among the first n where w * n
    >= i; of those that may come the one that must first does. (That all come in time is the theorem behind fair
    scheduling.)
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._parts = np.array(whole_weights(weights), np.int64)
        self._counts = _deal(self._parts.tolist())

    def counts(self, n: int) -> IntArray:
        """Count how many of the first ``n`` samples come from each source."""
        periods, rest = divmod(n, int(self._parts.sum()))
        return periods * self._parts + self._counts[rest]


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Find the smallest whole numbers in the same ratios as the decimals that ``weights`` are written with.

    Raises:
        UserError: the ratios are too fine; the message names close ones that do.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    whole = [number // math.gcd(*whole) for number in whole]
    if sum(whole) > MOST_PARTS:
        close = [max(1, round(1000 * weight / sum(exact))) / 1000 for weight in exact]
        raise UserError(
            f"data.weights {' '.join(map(str, weights))} are finer than {MOST_PARTS} equal parts can show; "
            f"round them, for example to {' '.join(map(str, close))}"
        )
    return whole


def _deal(parts: Sequence[int]) -> IntArray:
    """Deal out a whole period: row n tells how many of the first n samples each source gives."""
    period, counts = sum(parts), [0] * len(parts)
    table = np.zeros((period, len(parts)), np.int64)
    for n in range(1, period):
        waiting = [source for source, part in enumerate(parts) if counts[source] * period < part * n]
        chosen = min(waiting, key=lambda source: -(-(counts[source] + 1) * period // parts[source]))
        counts[chosen] += 1
        table[n] = counts
    return table
