"""Data sets of random bytes, and a builder that says what it was given: for tests of reading, without decoding."""

import hashlib

import numpy as np

from data.loading.loader import training_batches
from data.loading.order import Order
from data.shards.shard_set import open_shards
from data.writing.writer import NewSample, ShardLimits, write_shards


class Digests:
    """Says which samples came and what their bytes were."""

    def __call__(self, samples, *, step, micro_batch):
        return {
            "key": (step, micro_batch),
            "samples": [(s.id, s.key, s.label, hashlib.sha256(s.image).hexdigest()) for s in samples],
        }


def write_set(folder, *, count=60, per_shard=5, size=4000):
    rng = np.random.default_rng(count)
    samples = (NewSample(source=str(n), members={"jpg": rng.bytes(size)}, label=n % 3) for n in range(count))
    write_shards(samples, out=folder, classes=("a", "b", "c"), limits=ShardLimits(samples=per_shard))
    return open_shards(folder)


def order_of(shards, **options):
    return Order(
        shards.sizes, batch_size=8, micro_batch_size=4, seed=3, window_samples=1, **{"window_shards": 2, **options}
    )


def train(shards, *, steps=7, workers=0, micro_batches=range(2), first=0):
    return training_batches(
        shards,
        order_of(shards),
        Digests(),
        micro_batches=micro_batches,
        first_step=first,
        last_step=steps,
        workers=workers,
    )


def content(batches):
    return [(batch["key"], batch["samples"]) for batch in batches]
