"""Fetches the shards that the order says come next, in a process of its own, while others are being read.

A process and not a thread: it costs the trainer none of its interpreter's time, nothing is inherited half done by
workers that are forked later, and it can be killed in the middle of a download, which leaves nothing behind that
counts.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from data.loading.passes import IntArray
from data.shards.open_shard import cached_files
from data.shards.shard_set import ShardSet
from engine.errors import SIGNALS, UserError
from engine.terms import MicroBatchKey

logger = logging.getLogger(__name__)

DOWNLOADS_AT_ONCE = 4
PARENT_CHECK_S = 1.0
RowsOf = Callable[[int, int], IntArray]
"""Names the samples of the micro-batch (step, number) by rows of (shard, position, repeat)."""


@contextlib.contextmanager
def prefetching(
    shards: ShardSet, rows_of: RowsOf, keys: Iterable[MicroBatchKey], *, ahead: int
) -> Iterator[Callable[[], int]]:
    """Fetch the shards of the micro-batches to come, in the order of ``keys``, up to ``ahead`` of them early.

    Yields what is to be called for each micro-batch that was read; it returns how many bytes came since the last call.
    Does nothing where no shard goes through the cache.
    """
    if not ahead or not shards.cached:
        yield lambda: 0
        return
    permits, fetched = multiprocessing.Semaphore(ahead), multiprocessing.RawValue("Q", 0)
    process = multiprocessing.Process(target=_fetch_ahead, args=(shards, rows_of, keys, permits, fetched), daemon=True)
    process.start()
    total = 0

    def advance() -> int:
        nonlocal total
        permits.release()
        before, total = total, int(fetched.value)
        return total - before

    try:
        yield advance
    finally:
        process.kill()
        process.join()


def _fetch_ahead(shards: ShardSet, rows_of: RowsOf, keys: Iterable[MicroBatchKey], permits: Any, fetched: Any) -> None:
    leave_signals_to_trainer()  # which ends this process with SIGKILL
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    fetches: dict[int, Future[None]] = {}
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        for step, micro_batch in keys:
            # A permit for each micro-batch that the trainer has read, so this stays as far ahead of it as it may be.
            while not permits.acquire(timeout=PARENT_CHECK_S):
                if not trainer.is_alive():
                    os._exit(0)
            fetched.value = shards.cache.fetched_bytes
            for shard in dict.fromkeys(rows_of(step, micro_batch)[:, 0].tolist()):
                if _should_fetch(shards, shard, earlier=fetches.get(shard)):
                    fetches[shard] = pool.submit(_fetch, shards, shard)


def _should_fetch(shards: ShardSet, shard: int, *, earlier: "Future[None] | None") -> bool:
    """Whether to fetch a shard: one that failed is left to its reader, who says why; one may have been evicted."""
    tar = shards.cached_tar(shard)
    if tar is None or (earlier is not None and (not earlier.done() or earlier.exception() is not None)):
        return False
    return not shards.cache.path(tar).exists()


def leave_signals_to_trainer() -> None:
    """Ignore what schedulers send to every process: the trainer saves, and then ends the processes that feed it."""
    for number in (signal.SIGINT, *SIGNALS, signal.SIGUSR1, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def _fetch(shards: ShardSet, shard: int) -> None:
    info, cache = shards.manifest.shards[shard], shards.cache
    try:
        for file in cached_files(shards.root, info=info, local=cache.config.local):
            if file is not None:
                cache.prefetch(file)
    except (OSError, UserError) as error:
        logger.debug("shard %s could not be fetched ahead: %s", info.name, error)
        raise
    except Exception:  # a bug: nobody asks the future for it
        logger.exception("shard %s was not fetched ahead", info.name)
        raise
