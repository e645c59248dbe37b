"""Fetches the shards that the order says come next, in a process of its own, while others are being read.

A process and not a thread: it costs the trainer none of its interpreter's time, nothing is inherited half done by workers
that are forked later, and it can be killed in the middle of a download, which leaves nothing behind that counts.
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
from engine.errors import UserError

logger = logging.getLogger(__name__)

DOWNLOADS_AT_ONCE = 4
PARENT_CHECK_S = 1.0


@contextlib.contextmanager
def prefetching(shards: ShardSet, upcoming: Iterable[IntArray], *, ahead: int) -> Iterator[Callable[[], int]]:
    """Fetch the shards of ``upcoming`` micro-batches, rows of (shard, position, repeat), up to ``ahead`` of them early.

    Yields what is to be called for each micro-batch that was read; it returns how many bytes came since the last call.
    Does nothing where no shard goes through the cache.
    """
    if not ahead or not shards.cached:
        yield lambda: 0
        return
    permits, fetched = multiprocessing.Semaphore(ahead), multiprocessing.RawValue("Q", 0)
    process = multiprocessing.Process(target=_fetch_ahead, args=(shards, upcoming, permits, fetched), daemon=True)
    process.start()
    said = 0

    def advance() -> int:
        nonlocal said
        permits.release()
        before, said = said, int(fetched.value)
        return said - before

    try:
        yield advance
    finally:
        process.kill()
        process.join()


def _fetch_ahead(shards: ShardSet, upcoming: Iterable[IntArray], permits: Any, fetched: Any) -> None:
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
    ):  # the trainer's: it ends this with SIGKILL
        signal.signal(number, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    asked: dict[int, Future[None]] = {}
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        for rows in upcoming:
            while not permits.acquire(timeout=PARENT_CHECK_S):
                if not trainer.is_alive():
                    os._exit(0)
            fetched.value = shards.cache.fetched_bytes
            for shard in dict.fromkeys(rows[:, 0].tolist()):
                if _is_wanted(shards, shard, asked=asked.get(shard)):
                    asked[shard] = pool.submit(_fetch, shards, shard)


def _is_wanted(shards: ShardSet, shard: int, *, asked: "Future[None] | None") -> bool:
    """Return whether to fetch a shard: one that failed is left to its reader, who says why; one may have been evicted."""
    tar = shards.cached_tar(shard)
    if tar is None or (asked is not None and (not asked.done() or asked.exception() is not None)):
        return False
    return not shards.cache.path(tar).exists()


def _fetch(shards: ShardSet, shard: int) -> None:
    info, cache = shards.manifest.shards[shard], shards.cache
    try:
        for file in cached_files(shards.folder, info=info, local=cache.config.local):
            if file is not None:
                cache.prefetch(file)
    except (OSError, UserError) as error:
        logger.debug("shard %s could not be fetched ahead: %s", info.name, error)
        raise
