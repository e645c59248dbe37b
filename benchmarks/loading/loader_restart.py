"""How long after a restart does the first micro-batch come, at any step of 10^8 samples?

Used by `benchmarks/loading/loader.py`, which starts it once for each step.

The data set is 10^4 shards of 10^4 samples: one tar and one index of small images, linked under 10^4 names. Each
restart is a fresh process; counted from when it has started and imported everything to when it holds its first
micro-batches.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.loading.loader_sides import CropBuilder
from data.loading.loader import training_batches
from data.loading.order import Order
from data.shards.manifest import Manifest, ShardInfo, write_manifest
from data.shards.shard_set import open_shards
from data.writing.writer import NewSample, ShardLimits, write_shards

SHARDS, SAMPLES = 10_000, 10_000
BATCH, MICRO_BATCH = 4096, 64
RANK_OF_16 = range(4, 8)


def write_links(folder: Path, *, image: bytes) -> None:
    """Write the data set."""
    one, many = folder / "one", folder / "many"
    many.mkdir()
    samples = (NewSample(source="", members={"jpg": image}) for _ in range(SAMPLES))
    shard = write_shards(samples, out=one, classes=None, limits=ShardLimits(samples=SAMPLES)).shards[0]
    for number in range(SHARDS):
        os.link(one / shard.name, many / f"shard-{number:06d}.tar")
        os.link(one / shard.index, many / f"shard-{number:06d}.idx")
    infos = tuple(
        ShardInfo(
            name=f"shard-{number:06d}.tar",
            index=f"shard-{number:06d}.idx",
            num_samples=shard.num_samples,
            size_bytes=shard.size_bytes,
            sha256=shard.sha256,
            index_sha256=shard.index_sha256,
        )
        for number in range(SHARDS)
    )
    write_manifest(many, Manifest(shards=infos))


def restarts(folder: Path) -> dict[str, float]:
    """Time the first micro-batch after a restart, in seconds by the step that is restarted at."""
    steps_per_epoch = SHARDS * SAMPLES // BATCH
    steps = (0, 1, steps_per_epoch // 2, steps_per_epoch - 1, steps_per_epoch, 99 * steps_per_epoch + 12_345)
    seconds: dict[str, float] = {}
    for step in steps:
        command = [sys.executable, "-m", "benchmarks.loading.loader_restart", str(folder / "many"), str(step)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        seconds[str(step)] = float(json.loads(done.stdout)["seconds"])
    return seconds


def _first_batch(folder: str, step: int) -> float:
    start = time.perf_counter()
    shards = open_shards(folder)
    order = Order(shards.sizes, batch_size=BATCH, micro_batch_size=MICRO_BATCH, seed=0)
    batches = training_batches(
        shards,
        order,
        CropBuilder(decode="exact", interpolation="bicubic"),
        micro_batches=RANK_OF_16,
        first_step=step,
        last_step=step + 2,
        workers=2,
    )
    next(batches)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"seconds": _first_batch(sys.argv[1], int(sys.argv[2]))}) + "\n")
