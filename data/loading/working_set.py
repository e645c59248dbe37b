"""How much of a cache the shards take that are in use at once.

A micro-batch is drawn from a window of shards, and each micro-batch index of a step has its own. A cache that cannot
hold the windows of all of a node's processes would fetch each shard again and again.
"""

import math
from collections.abc import Iterable, Mapping
from itertools import chain

from data.config import DataConfig
from data.loading.mixing import training_order
from data.loading.order import TrainingOrder
from data.loading.passes import IntArray
from data.shards.shard_set import ShardSet
from engine.distributed.launched import local_number, read_launched
from engine.errors import UserError

WINDOW_STEPS = 16
"""Steps in which the micro-batches of one index touch practically all shards of their window."""
MAX_STEPS_LOOKED_AT = 64
STARTS = 3
INDEX_BYTES_PER_SAMPLE = 80


def check_cache(
    shards: ShardSet,
    order: TrainingOrder,
    *,
    micro_batches: range,
    first_step: int,
    environment: Mapping[str, str],
) -> None:
    """Refuse a cache that cannot hold what the processes of this node read at once and fetch ahead.

    Raises:
        UserError: says how much is needed.
    """
    config = shards.cache.config
    limit = config.limit_bytes
    if not shards.cached or limit >= _bytes_of(shards, range(len(shards.manifest.shards))):
        return
    node = node_micro_batches(micro_batches, environment=environment)
    needed = working_set_bytes(
        shards, order, micro_batches=node, first_step=first_step, prefetch_steps=config.prefetch_steps
    )
    if needed > limit:
        raise UserError(
            f"data.cache.gib {config.gib:g} is too small: this node reads {len(node)} micro-batches of each step, and "
            f"the shards of their windows and of the next {config.prefetch_steps} steps take {gib(needed)} GiB; set "
            "data.cache.gib to at least that, or lower data.cache.prefetch-steps or data.window-shards"
        )


def working_set_bytes(
    shards: ShardSet,
    order: TrainingOrder,
    *,
    micro_batches: Iterable[int],
    first_step: int = 0,
    prefetch_steps: int = 0,
) -> int:
    """Add up the shards that are in use at once or fetched ahead: the most of a few moments of an epoch."""
    steps = max(prefetch_steps, WINDOW_STEPS)
    starts = [first_step + number * order.steps_per_epoch // STARTS for number in range(STARTS)]
    offsets = sorted({number * steps // MAX_STEPS_LOOKED_AT for number in range(MAX_STEPS_LOOKED_AT)})
    numbers = list(micro_batches)
    return max(
        _bytes_of(shards, _shards_in(order.micro_batch(start + offset, m) for m in numbers for offset in offsets))
        for start in starts
    )


def usual_working_set_bytes(shards: ShardSet) -> int:
    """Add up what a node needs that computes whole steps with the defaults of `DataConfig`."""
    config = DataConfig(shards=("",))
    if shards.num_samples < config.batch_size:
        return _bytes_of(shards, range(len(shards.manifest.shards)))
    order = training_order(config, shards, seed=0)
    return working_set_bytes(
        shards, order, micro_batches=range(order.num_micro_batches), prefetch_steps=config.cache.prefetch_steps
    )


def node_micro_batches(micro_batches: range, *, environment: Mapping[str, str]) -> range:
    """Number the micro-batches of all processes of this node, from those of one and what its launcher has set."""
    if read_launched(environment) is None:
        return micro_batches
    processes = local_number("LOCAL_WORLD_SIZE", environment)
    first = micro_batches.start - local_number("LOCAL_RANK", environment) * len(micro_batches)
    return range(max(first, 0), max(first, 0) + processes * len(micro_batches))


def gib(size_bytes: int) -> float:
    """Write a size in GiB, rounded up to what can be set."""
    return math.ceil(size_bytes / 2**30 * 1000) / 1000


def _shards_in(rows: Iterable[IntArray]) -> set[int]:
    return set(chain.from_iterable(part[:, 0].tolist() for part in rows))


def _bytes_of(shards: ShardSet, numbers: Iterable[int]) -> int:
    cached = shards.cached  # in a set of local shards alone, those that would go through a cache elsewhere
    infos = [shards.manifest.shards[n] for n in numbers if not cached or shards.cached_tar(n) is not None]
    return sum(info.size_bytes + info.num_samples * INDEX_BYTES_PER_SAMPLE for info in infos)
