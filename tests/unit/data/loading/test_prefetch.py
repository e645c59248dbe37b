"""Remote shards in the loader: the same samples as from a local folder, fetched before they are needed."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from data.loading.loader import LoadingError, PassingLoadingError, evaluation_batches
from data.remote.config import CacheConfig
from data.shards.shard_set import open_shards
from tests.unit.data.bad_server import BadServer
from tests.unit.data.remote_set import Digests, content, order_of, train, write_set


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr("data.remote.download.FIRST_DELAY_S", 0.01)
    with BadServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def local(server):
    return write_set(server.folder)


def cache_in(tmp_path, **options):
    return CacheConfig(**{"folder": tmp_path / "cache", "gib": 1, "give_up_s": 10, "timeout_s": 5, **options})


def tars_in(cache):
    return len(list(cache.folder.glob("*.tar")))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prefetch_steps", [0, 2])
def test_a_remote_set_gives_the_batches_of_the_local_one(tmp_path, server, local, workers, prefetch_steps):
    server.busy = server.dropped = server.truncated = 0.2
    remote = open_shards(server.url, cache=cache_in(tmp_path, prefetch_steps=prefetch_steps))
    assert remote.manifest == local.manifest
    assert content(train(remote, workers=workers)) == content(train(local))
    shards_read = {shard for step in range(7) for m in range(2) for shard in order_of(local).micro_batch(step, m)[:, 0]}
    assert tars_in(remote.cache.config) >= len(shards_read)


def test_shards_are_there_before_they_are_read_and_no_earlier_than_asked(tmp_path, server, local):
    cache = cache_in(tmp_path, prefetch_steps=3)
    batches = train(open_shards(server.url, cache=cache), steps=100)
    next(batches)
    ahead = [order_of(local).micro_batch(step, m) for step in range(4) for m in range(2)][:7]
    wanted = {shard for rows in ahead for shard in rows[:, 0].tolist()}
    deadline = time.monotonic() + 10
    while tars_in(cache) < len(wanted):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    assert tars_in(cache) == len(wanted) < len(local.sizes)
    server.__exit__()
    assert [batch["reading"].wait_s for batch in (next(batches) for _ in range(6))] == [0.0] * 6
    batches.close()


def test_a_batch_says_what_reading_it_cost(tmp_path, server, local):
    batches = list(train(open_shards(server.url, cache=cache_in(tmp_path)), steps=3))
    readings = [batch["reading"] for batch in batches]
    assert all(reading.used_bytes == 4 * 4000 <= reading.read_bytes for reading in readings)
    assert sum(reading.fetched_bytes for reading in readings) > 0
    plain = [batch["reading"] for batch in train(local, steps=3)]
    assert all(reading.fetched_bytes == reading.wait_s == 0 < reading.requests for reading in plain)


def test_evaluation_reads_remote_sets_too_and_in_few_requests(tmp_path, server, local):
    remote = open_shards(server.url, cache=cache_in(tmp_path))
    batches = list(evaluation_batches(remote, Digests(), micro_batch_size=10))
    assert content(batches) == content(evaluation_batches(local, Digests(), micro_batch_size=10))
    assert [batch["reading"].requests for batch in batches] == [2] * 6, "ten neighbours in two shards"
    assert remote.labels().tolist() == local.labels().tolist()


def test_a_missing_shard_stops_the_run_with_the_reason(tmp_path, server, local):
    (server.folder / "shard-000003.tar").unlink()
    with pytest.raises(LoadingError, match=r"micro-batch \d of step \d: .*shard-000003.tar cannot be read: 404"):
        list(train(open_shards(server.url, cache=cache_in(tmp_path)), steps=20, workers=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_server_that_goes_away_stops_the_run_in_time_and_may_come_back(tmp_path, server, local, workers):
    remote = open_shards(server.url, cache=cache_in(tmp_path, prefetch_steps=0, give_up_s=0.5))
    batches = train(remote, steps=20, workers=workers)
    next(batches)
    server.busy = 1.0
    start = time.monotonic()
    with pytest.raises(PassingLoadingError, match=r"http.* answered 503 .*gave up after \d+ attempts"):
        list(batches)
    assert time.monotonic() - start < 3


def test_local_shards_go_through_the_cache_where_asked(tmp_path, local):
    cache = cache_in(tmp_path, local=True)
    copied = open_shards(local.folder, cache=cache)
    assert content(train(copied)) == content(train(local))
    assert tars_in(cache) > 0


def test_the_cache_may_hold_less_than_the_set(tmp_path, server):
    local = write_set(server.folder, count=300)
    small = cache_in(tmp_path, gib=40 * 25_000 / 2**30, prefetch_steps=4)
    remote = open_shards(server.url, cache=small)
    steps = order_of(local).steps_per_epoch
    most, found = 0, []
    for batch in train(remote, steps=steps, workers=2):
        found.append((batch["key"], batch["samples"]))
        most = max(most, size_of(small.folder))
    assert found == content(train(local, steps=steps))
    assert 0.5 * small.limit_bytes < most <= small.limit_bytes
    assert tars_in(small) < len(local.sizes)


def size_of(folder):
    """Add up what lies in a cache at one moment: while its lock is held nobody takes or makes room there."""
    total = 0
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in [*folder.glob("*.tar"), *folder.glob("*.tar.*.partial")]:
            with contextlib.suppress(FileNotFoundError):  # a download that has just ended
                total += path.stat().st_size
    return total


PROGRAM = """
import sys, time
from data.remote.config import CacheConfig
from data.shards.shard_set import open_shards
from tests.unit.data.remote_set import train
from pathlib import Path
batches = train(open_shards(sys.argv[1], cache=CacheConfig(folder=Path(sys.argv[2]))), steps=1000)
next(batches)
import multiprocessing
print(*[process.pid for process in multiprocessing.active_children()], flush=True)
time.sleep(60)
"""


def test_the_prefetcher_ends_with_a_trainer_that_is_killed(tmp_path, server, local):
    words = [sys.executable, "-c", PROGRAM, server.url, str(tmp_path / "cache")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as program:
        prefetcher = int(program.stdout.readline())
        os.kill(program.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _runs(prefetcher):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(process):
    try:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
