"""Fault drills: servers that fail, hang or lie, and a cache disk that is full. Each describes its result."""

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.drills.drill import NUM_SAMPLES, PER_SHARD, Drill, expect
from benchmarks.drills.faults.faulty_server import FaultyServer

SHORT_WAITS = ("--data.cache.timeout-s", "1", "--data.cache.give-up-s", "4")
MOST_SECONDS = 60.0  # start-up and the waits, on a busy machine
MOST_SENT_MIB = 20.0  # sent to one request, most of it held in buffers of the two sockets
SMALL_DISK_KIB = 400  # about two shards
FILE_BLOCKS = 200  # of 512 bytes: less than a shard


def flaky_server(drill: Drill) -> str:
    """A fifth of the requests fail, in four ways: the run sees nothing of it."""
    with FaultyServer(drill.sound, seed=3) as server:
        server.busy = server.dropped = server.truncated = server.hanging = 0.0543  # 1 - 0.9457 ** 4 = 0.2
        drill.pretrain(server.url, "--data.cache.timeout-s", "1").expect_sound()
        num_requests = len(server.requests)
        again = num_requests - len({path for path, _ in server.requests})
    drill.expect_reference()
    expect(again >= 3, f"only {again} requests failed")
    return f"{again} of {num_requests} requests failed; samples, crops and losses of a run on local shards"


def hanging_server(drill: Drill) -> str:
    """A server that accepts and never answers, at once or in the middle of a run."""
    with FaultyServer(drill.sound, hangs_after=0) as server:
        options = ("--cache.timeout-s", "1", "--cache.give-up-s", "4", "--cache.folder", drill.folder / "cache")
        first = drill.data("verify", "--shards", server.url, *options).expect_error("manifest.json", "gave up after")
    with FaultyServer(drill.sound, hangs_after=8) as server:
        ended = drill.pretrain(server.url, *SHORT_WAITS).expect_error(server.url, "gave up after")
    seconds = max(first.seconds, ended.seconds)
    expect(seconds < MOST_SECONDS, f"it took {seconds:.0f} s to stop")
    expect(not drill.trained().ledger, "samples that could not be read were replaced")
    return f"stopped with the reason after give-up-s, {ended.seconds:.0f} s with start-up; nothing replaced"


def lying_server(drill: Drill) -> str:
    """A server that announces another size, sends without end, or closes early each time."""
    cache = ("--cache.folder", drill.folder / "cache")
    with FaultyServer(drill.sound, lies="size") as server:
        drill.data("verify", "--shards", server.url, *cache).expect_error("10 problems", "bytes, the manifest says")
    with FaultyServer(drill.sound, lies="endless") as server:
        drill.data("verify", "--shards", server.url, *cache).expect_error("10 problems", "has more than")
        sent_mib = server.sent_bytes / 2**20 / sum(path.endswith(".tar") for path, _ in server.requests)
    with FaultyServer(drill.sound, lies="half") as server:
        drill.pretrain(server.url, *SHORT_WAITS).expect_error(server.url, "ended after", "gave up after")
    _expect_sound_cache(drill.folder / "cache", num_tars=0)
    expect(sent_mib < MOST_SENT_MIB, f"{sent_mib:.0f} MiB were taken of each endless file")
    with FaultyServer(drill.sound) as server:
        drill.pretrain(server.url).expect_sound()
    drill.expect_reference()
    _expect_sound_cache(drill.folder / "cache", num_tars=NUM_SAMPLES // PER_SHARD)
    return (
        f"refused each time with the reason, after {sent_mib:.0f} MiB of an endless file; "
        "then a sound server was trained from"
    )


def full_cache_disk(drill: Drill) -> str:
    """A disk that is full below the cache's limit: the run stops and says so, and no cached file is half of one."""
    cache = drill.folder / "cache"
    with _small_disk(cache) as prefix, FaultyServer(drill.sound) as server:
        ended = drill.pretrain(server.url, prefix=prefix)
        ended.expect_error("no space for", str(cache), "free on its disk", "data.cache.folder")
        _expect_sound_cache(cache)
    expect(not drill.trained().ledger, "samples that could not be read were replaced")
    how = "a limit on file sizes" if prefix else f"a disk of {SMALL_DISK_KIB} KiB"
    return f"{how}: stopped, naming folder, size and what is free; what is in the cache is whole"


def _expect_sound_cache(cache: Path, *, num_tars: int | None = None) -> None:
    """Insist on the number of files, that each is what its name says, and that no partial file is left."""
    files = [path for path in cache.iterdir() if path.suffix in (".tar", ".idx")]
    wrong = [path.name for path in files if hashlib.sha256(path.read_bytes()).hexdigest() != path.stem]
    expect(not wrong, f"the cache holds what is not what it should be: {wrong}")
    if num_tars is not None:
        actual_tars = sum(path.suffix == ".tar" for path in files)
        expect(actual_tars == num_tars, f"the cache holds {actual_tars} tars, expected {num_tars}")
    rests = [path.name for path in cache.iterdir() if path.suffix == ".partial"]
    expect(not (rests and num_tars), f"rests of killed downloads were not removed: {rests}")


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Sequence[str]]:
    """Make ``folder`` a small disk; where that is not allowed, give a command that limits a program's files."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_KIB}k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        yield ("sh", "-c", f'ulimit -f {FILE_BLOCKS}; exec "$@"', "sh")
        return
    try:
        yield ()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
