"""The cache of shards: whole files only, within its limit, whoever shares it and whenever they are killed."""

import errno
import fcntl
import hashlib
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import time

import numpy as np
import pytest

from data.remote.cache import CachedFile, ShardCache
from data.remote.config import CacheConfig
from engine.errors import PassingError
from tests.unit.data.bad_server import BadServer

SIZE = 100_000
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr("data.remote.download.FIRST_DELAY_S", 0.01)
    (tmp_path / "served").mkdir()
    with BadServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def shard(server):
    """Put file ``number`` on the server and return it as one for the cache."""

    def shard(number, *, size=SIZE, name=None):
        content = np.random.default_rng(number).bytes(size)
        path = server.folder / (name or f"{number}.tar")
        path.write_bytes(content)
        return CachedFile(
            location=f"{server.url}/{path.name}",
            sha256=hashlib.sha256(content).hexdigest(),
            suffix=".tar",
            size_bytes=size,
        )

    return shard


def make_cache(tmp_path, *, files=3, **options):
    options = {"give_up_s": 10.0, "timeout_s": 5.0, **options}
    return ShardCache(CacheConfig(folder=tmp_path / "cache", gib=(files + 0.5) * SIZE / 2**30, **options))


def read(cache, file):
    with cache.open(file) as descriptor:
        return os.pread(descriptor, 2 * SIZE, 0)


def content_of(file, server):
    return (server.folder / file.location.rpartition("/")[2]).read_bytes()


def names(cache):
    return sorted(path.name for path in cache.folder.iterdir() if path.name != "lock")


def test_a_file_is_fetched_once_and_then_kept(tmp_path, shard, server):
    cache, file = make_cache(tmp_path), shard(0)
    assert read(cache, file) == read(cache, file) == read(pickle.loads(pickle.dumps(cache)), file)
    assert read(cache, file) == content_of(file, server)
    assert len(server.requests) == 1
    assert names(cache) == [file.name]
    assert cache.fetched_bytes == SIZE


def test_what_was_used_least_recently_goes_first(tmp_path, shard):
    cache, files = make_cache(tmp_path), [shard(number) for number in range(5)]
    for file in [*files[:3], files[0], files[3], files[0], files[4]]:
        read(cache, file)
        time.sleep(0.02)
    assert names(cache) == sorted(files[number].name for number in (0, 3, 4))


def test_a_file_in_use_is_never_evicted_and_the_limit_holds(tmp_path, shard):
    cache, files = make_cache(tmp_path, files=2), [shard(number) for number in range(4)]
    with cache.open(files[0]) as descriptor:
        for file in files[1:]:
            read(cache, file)
            assert os.fstat(descriptor).st_nlink == 1
            assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= cache.config.limit_bytes
    assert names(cache) == sorted([files[0].name, files[3].name])


def test_files_are_evicted_where_only_who_may_write_gets_a_lock_alone(tmp_path, shard, monkeypatch):
    flock = fcntl.flock

    def flock_of_nfs(descriptor, kind):
        if kind & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, kind)

    monkeypatch.setattr("fcntl.flock", flock_of_nfs)
    cache, files = make_cache(tmp_path, files=1), [shard(number) for number in range(2)]
    for file in files:
        read(cache, file)
    assert names(cache) == [files[1].name]


def test_a_file_system_without_locks_is_refused_and_named(tmp_path, shard, monkeypatch):
    def no_locks(_descriptor, _kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    cache = make_cache(tmp_path, files=1)
    with pytest.raises(ValueError, match=rf"file system of data.cache.folder {cache.folder} has no locks \(No locks"):
        read(cache, shard(0))


def test_a_cache_that_is_too_small_says_what_it_needs(tmp_path, shard):
    with pytest.raises(ValueError, match=r"1.tar needs 0.2 MiB in the cache .*, which is limited to 0.1 MiB; raise"):
        read(make_cache(tmp_path, files=1), shard(1, size=2 * SIZE))
    cache = make_cache(tmp_path, files=1, give_up_s=0.3)
    with cache.open(shard(2)), pytest.raises(ValueError, match=r"limited to 0.1 MiB, all in use"):
        read(cache, shard(3))


def test_what_is_not_the_caches_is_neither_counted_nor_removed(tmp_path, shard):
    cache = make_cache(tmp_path, files=1)
    cache.folder.mkdir()
    (cache.folder / "shard-000000.tar").write_bytes(b"x" * 10 * SIZE)
    for number in range(3):
        read(cache, shard(number))
    assert (cache.folder / "shard-000000.tar").stat().st_size == 10 * SIZE
    assert len(names(cache)) == 2


def test_names_that_are_no_digests_are_refused():
    with pytest.raises(ValueError, match="expected a sha256"):
        CachedFile(location="http://host/a.tar", sha256="../../etc/passwd", suffix=".tar")


def test_a_cached_file_of_another_size_is_fetched_again(tmp_path, shard, server):
    cache, file = make_cache(tmp_path), shard(0)
    read(cache, file)
    os.truncate(cache.path(file), 10)
    assert read(cache, file) == content_of(file, server)


def test_wrong_content_never_gets_a_name(tmp_path, shard, server):
    cache, file = make_cache(tmp_path), shard(0)
    (server.folder / "0.tar").write_bytes(b"x" * SIZE)
    with pytest.raises(ValueError, match="has sha256"):
        read(cache, file)
    assert names(cache) == []


def test_processes_that_want_one_file_fetch_it_once(tmp_path, shard, server):
    cache, file = make_cache(tmp_path), shard(0, size=SIZE)
    processes = [FORK.Process(target=read, args=(cache, file), daemon=True) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * 6
    assert len(server.requests) == 1


def _hammer(cache, files, contents, seed):
    rng = np.random.default_rng(seed)
    for number in rng.integers(0, len(files), 50).tolist():
        assert read(cache, files[number]) == contents[number]
        used = 0
        for path in cache.folder.iterdir():
            try:
                used += path.stat().st_size
            except FileNotFoundError:
                continue
        assert used <= cache.config.limit_bytes + SIZE  # a file may be renamed while they are added up


def test_two_processes_share_a_small_folder_and_always_read_right(tmp_path, shard, server):
    cache, files = make_cache(tmp_path, files=3), [shard(number) for number in range(8)]
    contents = [content_of(file, server) for file in files]
    server.busy = server.truncated = 0.2
    processes = [FORK.Process(target=_hammer, args=(cache, files, contents, n), daemon=True) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(names(cache)) <= 3
    assert all(len(name) == 68 for name in names(cache)), "nothing but whole shards is left"


@pytest.mark.parametrize("waiting", [False, True])
def test_a_killed_downloader_leaves_nothing_that_counts(tmp_path, shard, server, waiting):
    cache, file = make_cache(tmp_path), shard(0)
    server.drip_s = 0.01
    victim = FORK.Process(target=read, args=(cache, file), daemon=True)
    victim.start()
    while not any(name.endswith(".partial") for name in (names(cache) if cache.folder.exists() else [])):
        time.sleep(0.01)
    found = []
    if waiting:  # another one waits for the victim's download, and takes over
        waiter = threading.Thread(target=lambda: found.append(read(cache, file)))
        waiter.start()
        time.sleep(0.1)
    server.drip_s = None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    if waiting:
        waiter.join(10)
    else:
        assert any(name.endswith(".partial") for name in names(cache))
        found.append(read(cache, file))
    assert found == [content_of(file, server)]
    assert names(cache) == [file.name]


def test_what_another_node_is_writing_is_left_alone_until_it_is_old(tmp_path, shard):
    cache, file = make_cache(tmp_path), shard(0)
    cache.folder.mkdir()
    partial = cache.folder / f"{'a' * 64}.tar.other-node-77-0123abcd.partial"
    partial.write_bytes(b"x" * SIZE)
    read(cache, file)
    assert partial.exists()
    os.utime(partial, (time.time() - 20, time.time() - 20))
    read(cache, shard(1))
    assert not partial.exists()


def test_a_stopped_downloader_does_not_hold_others_up_for_ever(tmp_path, shard, server):
    cache, file = make_cache(tmp_path, give_up_s=0.5), shard(0)
    server.hanging = 1.0
    victim = FORK.Process(target=read, args=(make_cache(tmp_path), file), daemon=True)
    victim.start()
    while not (cache.folder.exists() and names(cache)):
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(OSError, match=r"another process of this node has been at .*0.tar"):
        read(cache, file)
    assert time.monotonic() - start < 2
    assert not cache.prefetch(file)
    victim.kill()
    victim.join()


def test_prefetching_leaves_a_file_at_which_another_process_is(tmp_path, shard):
    cache, file = make_cache(tmp_path), shard(0)
    assert cache.prefetch(file)
    assert cache.prefetch(file)
    assert names(cache) == [file.name]


def _read_with_file_limit(cache, file, results):
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, SIZE // 2))
    try:
        read(cache, file)
    except ValueError as error:
        results.put(str(error))


def test_a_file_that_the_disk_refuses_is_an_error_that_names_folder_and_sizes(tmp_path, shard):
    cache, file, results = make_cache(tmp_path), shard(0), FORK.SimpleQueue()
    process = FORK.Process(target=_read_with_file_limit, args=(cache, file, results), daemon=True)
    process.start()
    process.join(20)
    message = results.get()
    assert f"no space for {file.location} in the cache {cache.folder}: 0.1 MiB needed" in message
    assert names(cache) == []


def test_a_full_disk_is_an_error_that_names_folder_and_sizes(shard, small_disk):
    config = CacheConfig(folder=small_disk / "cache", gib=1, give_up_s=5)
    cache = ShardCache(config)
    read(cache, shard(0))
    (small_disk / "other").write_bytes(b"x" * (900_000 - SIZE))
    with pytest.raises(
        PassingError, match=r"no space for .*1.tar in the cache .*: 0.3 MiB needed, 0.\d MiB free on its"
    ):
        read(cache, shard(1, size=300_000))
    assert len(names(cache)) == 1
    assert read(cache, shard(0))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    import ctypes

    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=1m"):
        pytest.skip(f"a small file system cannot be mounted here: {errno.errorcode[ctypes.get_errno()]}")
    yield folder
    libc.umount2(bytes(folder), 2)
