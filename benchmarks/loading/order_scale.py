"""The order of samples at scale: ``python benchmarks/loading/order_scale.py``.

1024 processes, 10^9 samples in 10^5 uneven shards.

Nothing is read: the shards are numbers. Each process has one micro-batch index. What one process needs is measured in a
fresh `Order` (time, memory); what all of them do together by laying out the epoch whole, a span after the other: with a
micro-batch as long as its span the same order gives the span in one call, which is compared with the real
micro-batches. Seconds are of CPU time.

``--laid-out N`` lays out the spans of the first N processes only, ``--samples`` makes all of it smaller.
"""

import argparse
import hashlib
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.goals import Goal, finish, machine
from data.loading.mixing import MixedOrder
from data.loading.order import Order, TrainingOrder
from data.loading.passes import IntArray
from data.shards.manifest import MANIFEST_NAME, Manifest, ShardInfo, write_manifest
from data.shards.shard_set import open_shards

PROCESSES, MICRO_BATCH = 1024, 64
BATCH = PROCESSES * MICRO_BATCH
SHARD_SIZE = 10_000
SEED = 0
SEQUENCE_OF_EACH = 8
"""How many processes share the one whose sequence of shards is looked at closely."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10**9, help="samples in all shards")
    parser.add_argument("--laid-out", type=int, default=PROCESSES, help="processes whose span is laid out whole")
    parser.add_argument("--no-goal", action="store_true", help="only measure")
    options = parser.parse_args()
    sizes = uneven(options.samples)
    figures: dict[str, Any] = {"machine": machine(), "samples": options.samples, "shards": len(sizes)}
    figures |= {"processes": PROCESSES, "batch_size": BATCH, "micro_batch_size": MICRO_BATCH}
    figures |= one_process(sizes)
    figures |= mixed(sizes)
    figures |= manifest(sizes)
    figures |= all_processes(sizes, num_laid_out=options.laid_out)
    finish(figures, goals(figures), check=not options.no_goal)


def goals(figures: dict[str, Any]) -> list[Goal]:
    """List the bounds that the figures must keep."""
    return [
        Goal(name="seconds to build the order", value=figures["build_s"], at_most=1.0),
        Goal(name="seconds to the first micro-batch at a late step", value=figures["first_s"], at_most=1.0),
        Goal(name="the same of two mixed sources", value=figures["mixed_first_s"], at_most=1.5),
        Goal(name="seconds to read the manifest and its digest", value=figures["manifest_s"], at_most=3.0),
        Goal(name="milliseconds per micro-batch", value=figures["micro_batch_ms"], at_most=1.0),
        Goal(name="MB per process", value=figures["memory_mb"], at_most=16),
        Goal(name="samples visited twice in an epoch", value=figures["visited_twice"], at_most=0),
        Goal(name="samples left out, in batches", value=figures["left_out"] / BATCH, at_most=1),
        Goal(name="processes that read one shard, at most", value=figures["processes_per_shard_max"], at_most=2),
        Goal(name="shards read over the least possible", value=figures["shards_over_least"], at_most=1.03),
        Goal(name="shards in use at once", value=figures["open_at_once_max"], at_most=48),
    ]


def uneven(num_samples: int) -> IntArray:
    """Draw shard sizes from 0 to twice the usual one, some of them 0 and 1."""
    rng = np.random.default_rng(SEED)
    sizes = rng.integers(0, 2 * SHARD_SIZE, num_samples // SHARD_SIZE)
    sizes[rng.integers(0, len(sizes), 20)] = np.arange(20) % 2
    sizes[int(np.argmax(sizes))] += num_samples - int(sizes.sum())
    while sizes.max() > 2 * SHARD_SIZE or sizes.min() < 0:  # spread what the sum was off by
        sizes = np.clip(sizes, 0, 2 * SHARD_SIZE)
        places = rng.permutation(len(sizes))[: max(1, abs(num_samples - int(sizes.sum())))]
        sizes[places] += np.sign(num_samples - int(sizes.sum()))
    return sizes


def one_process(sizes: IntArray) -> dict[str, Any]:
    """Measure what a process needs of its order."""
    as_given = tuple(sizes.tolist())
    start = time.process_time()
    order = order_of(as_given)
    build_s = time.process_time() - start
    late = [
        order.steps_per_epoch * epoch + step for epoch, step in [(0, 1), (3, 0.6 * order.steps_per_epoch), (299, 7)]
    ]
    first_s = max(seconds_to(order_of(sizes), int(step), rank) for step in late for rank in (0, 511, 1023))
    steps = range(2 * order.steps_per_epoch // 5, 2 * order.steps_per_epoch // 5 + 4000)
    tracemalloc.start()
    traced = order_of(sizes)
    for step in steps[::7]:
        traced.micro_batch(step, 700)
    memory_mb = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    start = time.process_time()
    for step in steps:
        order.micro_batch(step, 700)
    micro_batch_ms = (time.process_time() - start) / len(steps) * 1e3
    return {"build_s": build_s, "first_s": first_s, "micro_batch_ms": micro_batch_ms, "memory_mb": memory_mb}


def manifest(sizes: IntArray) -> dict[str, Any]:
    """Measure what the list of shards itself takes in each process; it is read before the order is built."""
    with tempfile.TemporaryDirectory(prefix="order-scale-") as name:
        folder = Path(name)
        digest = hashlib.sha256().hexdigest()
        shards = [
            ShardInfo(
                name=f"shard-{number:06d}.tar",
                num_samples=size,
                size_bytes=10**5 * size + 10_240,
                sha256=digest,
                index=f"shard-{number:06d}.idx",
                index_sha256=digest,
            )
            for number, size in enumerate(sizes.tolist())
        ]
        write_manifest(folder, Manifest(shards=tuple(shards)))
        del shards
        start = time.process_time()
        opened = open_shards(folder)
        digest = opened.manifest.digest
        seconds = time.process_time() - start
        tracemalloc.start()
        opened = open_shards(folder)
        memory_mb = tracemalloc.get_traced_memory()[0] / 1e6
        tracemalloc.stop()
        assert opened.manifest.digest == digest
        return {
            "manifest_s": seconds,
            "manifest_memory_mb": memory_mb,
            "manifest_mb": (folder / MANIFEST_NAME).stat().st_size / 1e6,
        }


def mixed(sizes: IntArray) -> dict[str, Any]:
    """Measure the same of two sources mixed 0.7 to 0.3."""
    third = len(sizes) // 3
    start = time.process_time()
    order = MixedOrder(
        [sizes[:third].tolist(), sizes[third:].tolist()],
        weights=(0.7, 0.3),
        batch_size=BATCH,
        micro_batch_size=MICRO_BATCH,
        seed=SEED,
    )
    order.micro_batch(100 * order.steps_per_epoch, 700)
    return {"mixed_first_s": time.process_time() - start}


def all_processes(sizes: IntArray, *, num_laid_out: int) -> dict[str, Any]:
    """Lay out an epoch whole: is a sample visited twice, which process reads which shards, and in which order?"""
    order = order_of(sizes)
    span = order.steps_per_epoch * MICRO_BATCH
    whole = Order(sizes, batch_size=PROCESSES * span, micro_batch_size=span, seed=SEED)
    starts = np.cumsum(sizes) - sizes
    seen = np.zeros(int(sizes.sum()), bool)
    readers = np.zeros(len(sizes), np.int64)
    per_process: list[Reads] = []
    start = time.process_time()
    for rank in range(num_laid_out):
        rows = whole.micro_batch(0, rank)
        compare(order, rows, rank)
        seen[starts[rows[:, 0]] + rows[:, 1]] = True
        readers += np.bincount(rows[:, 0], minlength=len(sizes)) > 0
        if rank % SEQUENCE_OF_EACH == 0:
            per_process.append(reads(rows[:, 0]))
    seconds = time.process_time() - start
    visits = num_laid_out * span
    least = np.count_nonzero(sizes) * visits / sizes.sum() / num_laid_out
    touched = [process.shards for process in per_process]
    return {
        "laid_out_processes": num_laid_out,
        "laid_out_s": seconds,
        "visited_twice": visits - int(np.count_nonzero(seen)),
        "left_out": int(sizes.sum()) - PROCESSES * span,
        "shards_per_process_mean": float(np.mean(touched)),
        "shards_per_process_max": max(touched),
        "shards_over_least": float(np.mean(touched) / least),
        "processes_per_shard_mean": float(readers[readers > 0].mean()),
        "processes_per_shard_max": int(readers.max()),
        "shards_per_1000_samples": float(np.mean([process.per_1000 for process in per_process])),
        "open_at_once_max": max(process.open_at_once for process in per_process),
    }


@dataclass(frozen=True, kw_only=True)
class Reads:
    """How one process reads its shards in an epoch."""

    shards: int
    """Different ones in all."""
    per_1000: float
    """Different ones in a thousand samples, on average."""
    open_at_once: int
    """Most that were begun and not yet done with."""


def reads(shards: IntArray) -> Reads:
    """Describe how a process reads, from the shards of its samples in their order."""
    _, first = np.unique(shards, return_index=True)
    last = len(shards) - 1 - np.unique(shards[::-1], return_index=True)[1]
    change = np.zeros(len(shards) + 1, np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, last + 1, -1)
    thousands = [len(np.unique(shards[start : start + 1000])) for start in range(0, len(shards) - 999, 50_000)]
    return Reads(shards=len(first), per_1000=float(np.mean(thousands)), open_at_once=int(np.cumsum(change).max()))


def compare(order: Order, rows: IntArray, rank: int) -> None:
    """End the program where the span laid out is not what the real micro-batches hold, at three of its steps."""
    for step in (0, order.steps_per_epoch // 2, order.steps_per_epoch - 1):
        expected = rows[step * MICRO_BATCH : (step + 1) * MICRO_BATCH]
        np.testing.assert_array_equal(order.micro_batch(step, rank), expected)


def order_of(sizes: IntArray | tuple[int, ...]) -> Order:
    """The order of the run."""
    return Order(sizes, batch_size=BATCH, micro_batch_size=MICRO_BATCH, seed=SEED)


def seconds_to(order: TrainingOrder, step: int, micro_batch: int) -> float:
    """Time the first micro-batch that an order gives."""
    start = time.process_time()
    order.micro_batch(step, micro_batch)
    return time.process_time() - start


if __name__ == "__main__":
    main()
