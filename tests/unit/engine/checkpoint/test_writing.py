"""Writing checkpoints: killed, out of space, in several processes, in the background."""

import contextlib
import itertools
import logging
import os
import random
import resource
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from engine.checkpoint.format import write_slices
from engine.checkpoint.slices import TensorSlice
from engine.checkpoint.store import CheckpointStore, newest_checkpoint
from engine.checkpoint.writing import CheckpointError
from engine.errors import PassingError
from engine.run.folder import checkpoint_steps


def slices_of(tensors):
    return [
        TensorSlice(kind="weight", name=name, shape=tuple(t.shape), offset=0, values=t.flatten())
        for name, t in tensors.items()
    ]


def test_the_caller_goes_on_while_a_checkpoint_is_written_and_the_next_save_waits(tmp_path, monkeypatch):
    release, events = threading.Event(), []

    def slow(path, slices):
        release.wait(20)
        events.append(f"wrote {path.parent.name}")
        return write_slices(path, slices)

    monkeypatch.setattr("engine.checkpoint.writing.write_slices", slow)
    store = CheckpointStore(tmp_path)
    store.save(1, slices_of({"w": torch.ones(3)}), {})
    events.append("the caller went on")
    release.set()
    store.save(2, slices_of({"w": torch.ones(3)}), {})
    assert events[:2] == ["the caller went on", "wrote step-000000001.partial"]
    assert checkpoint_steps(tmp_path)[0] == 1
    store.wait()
    assert checkpoint_steps(tmp_path) == [1, 2]


def test_a_save_that_follows_at_once_is_not_touched_by_the_clearing_up_of_the_one_before(tmp_path, monkeypatch):
    """As when a stop is asked for while a checkpoint is written: the others begin while process 0 still clears up."""

    def slow_folder(path):
        if path == tmp_path:
            time.sleep(0.1)

    def slow_file(path, slices):
        part = write_slices(path, slices)
        time.sleep(0.3)
        return part

    monkeypatch.setattr("engine.checkpoint.writing.fsync_folder", slow_folder)
    monkeypatch.setattr("engine.checkpoint.writing.write_slices", slow_file)
    stores = [CheckpointStore(tmp_path, rank=r, world_size=3, keep_last=1, timeout_s=20) for r in range(3)]
    together = threading.Barrier(3)

    def save_all(rank):
        for step in (1, 2, 3):
            together.wait(20)
            stores[rank].save(step, slices_of({f"w{rank}": torch.ones(3)}), {"step": step})
        stores[rank].wait()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(save_all, range(3)))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000003"]
    checkpoint = newest_checkpoint(tmp_path)
    assert sorted(checkpoint.names("weight")) == ["w0", "w1", "w2"]


def test_all_processes_write_a_step_again_that_the_first_found_damaged(tmp_path):
    """As when a run goes back: only process 0 looks, and says where all go on."""
    stores = [CheckpointStore(tmp_path, rank=r, world_size=2, timeout_s=20) for r in range(2)]

    def save(step):
        for rank, store in enumerate(stores):
            store.save(step, slices_of({f"w{rank}": torch.full((3,), float(step))}), {"step": step})
        for store in stores:
            store.wait()

    save(1)
    save(2)
    with (tmp_path / "step-000000002" / "rank-00001.safetensors").open("r+b") as file:
        file.truncate(10)
    assert stores[0].latest().step == 1
    stores[1].go_on_from(1)
    save(2)
    assert newest_checkpoint(tmp_path).step == 2


def test_a_file_that_is_not_what_was_announced_is_never_published(tmp_path, monkeypatch):
    def lost(path, slices):
        part = write_slices(path, slices)
        path.unlink()
        return part

    monkeypatch.setattr("engine.checkpoint.writing.write_slices", lost)
    store = CheckpointStore(tmp_path)
    store.save(1, slices_of({"w": torch.ones(3)}), {})
    with pytest.raises(CheckpointError, match="is not what was announced") as raised:
        store.wait()
    assert isinstance(raised.value, PassingError), "another start may write it"
    assert checkpoint_steps(tmp_path) == []


def test_all_processes_learn_that_one_could_not_write(tmp_path, monkeypatch):
    def failing(path, slices):
        if path.name == "rank-00001.safetensors":
            raise OSError(28, "No space left on device")
        return write_slices(path, slices)

    stores = [CheckpointStore(tmp_path, rank=r, world_size=3) for r in range(3)]
    monkeypatch.setattr("engine.checkpoint.writing.write_slices", failing)
    for store in stores:
        store.save(1, slices_of({f"w{store}": torch.ones(3)}), {})
    for store in stores:
        with pytest.raises(ValueError, match="process 1 needs 12 bytes"):
            store.wait()
    monkeypatch.undo()
    for store in stores:
        store.save(1, slices_of({f"w{store}": torch.ones(3)}), {})
    for store in stores:
        store.wait()
    assert newest_checkpoint(tmp_path).step == 1


def test_a_process_is_content_with_a_checkpoint_that_is_published_as_soon_as_its_part_is_seen(tmp_path, monkeypatch):
    stores, replace = [CheckpointStore(tmp_path, rank=r, world_size=2) for r in range(2)], Path.replace
    stores[0].save(1, slices_of({"w": torch.ones(3)}), {})
    publisher, seen = stores[0]._thread, []

    def replace_and_look_away(self, target):
        replace(self, target)
        if Path(target).name == "rank-00001.json":
            publisher.join()
            seen.append(checkpoint_steps(tmp_path))

    monkeypatch.setattr(Path, "replace", replace_and_look_away)
    stores[1].save(1, slices_of({"v": torch.ones(3)}), {})
    for store in stores:
        store.wait()
    assert seen == [[1]]


def test_a_process_that_never_writes_ends_in_a_message(tmp_path):
    store = CheckpointStore(tmp_path, rank=0, world_size=2, timeout_s=0.05)
    store.save(1, slices_of({"w": torch.ones(3)}), {})
    with pytest.raises(ValueError, match="process 1 did not finish its part in time"):
        store.wait()


def forked(body):
    """Run ``body`` in a forked process that never comes back into pytest; returns its process id."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            torch.set_num_threads(1)
            body()
        os._exit(0)
    return pid


@pytest.mark.parametrize("writers", [1, 2])
def test_a_kill_at_any_moment_leaves_the_newest_complete_checkpoint_loadable(tmp_path, writers):
    rng = random.Random(writers)

    def save_for_ever():
        newest = newest_checkpoint(tmp_path)
        stores = [CheckpointStore(tmp_path, rank=r, world_size=writers) for r in range(writers)]
        for step in itertools.count(newest.step + 1 if newest else 1):
            for rank, store in enumerate(stores):
                tensors = {f"w{rank}.{i}": torch.full((20_000,), float(step)) for i in range(20)}
                store.save(step, slices_of(tensors), {"step": step})

    logging.disable(logging.WARNING)
    interrupted, last = 0, 0
    try:
        for attempt in range(100):  # later kills come later: on a busy machine, too, some checkpoints are finished
            if interrupted >= 10 and last >= 10:
                break
            pid = forked(save_for_ever)
            time.sleep(rng.uniform(0.0, 0.06 + 0.003 * attempt))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            interrupted += any(tmp_path.glob("*.partial"))
            newest = newest_checkpoint(tmp_path)
            step = newest.step if newest else 0
            assert step >= last
            last = step
            for name in newest.names("weight") if newest else ():
                assert newest.read_full("weight", name).eq(step).all()
    finally:
        logging.disable(logging.NOTSET)
    assert interrupted >= 10
    assert last >= 10


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, mounted for the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_previous_checkpoint_and_says_what_is_needed(small_disk):
    store = CheckpointStore(small_disk / "checkpoints")
    store.save(1, slices_of({"w": torch.ones(100_000)}), {})
    store.save(2, slices_of({"w": torch.ones(200_000)}), {})
    with pytest.raises(ValueError, match=r"No space left on device; process 0 needs 800000 bytes") as error:
        store.save(3, slices_of({"w": torch.ones(10)}), {})
    assert str(small_disk / "checkpoints" / "step-000000002") in str(error.value)
    assert "step-000000001 is intact" in str(error.value)
    assert store.latest().step == 1
    store.save(4, slices_of({"w": torch.ones(100_000)}), {})
    store.wait()
    assert store.latest().step == 4, "the space of the failed write was given back"


def test_a_file_size_limit_leaves_the_previous_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, slices_of({"w": torch.ones(10)}), {})
    store.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        store.save(2, slices_of({"w": torch.ones(1 << 19)}), {})
        with pytest.raises(
            ValueError, match=r"File too large; process 0 needs 2097152 bytes.*step-000000001 is intact"
        ):
            store.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.latest().step == 1
