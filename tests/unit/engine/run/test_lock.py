"""The lock of a run folder: one holder, and a dead one never stays in the way."""

import json
import logging
import multiprocessing
import os
import signal
import time

import pytest

from engine.run import lock as run_lock
from engine.run.lock import RunLock, find_holder


def forge(folder, *, age_s=0.0, **changes):
    """Leave a lock as another process would have."""
    lock = RunLock(folder)
    lock.acquire()
    content = json.loads((folder / "lock.json").read_text())
    lock.release()
    (folder / "lock.json").write_text(json.dumps(content | {"token": "other"} | changes))
    then = time.time() - age_s
    os.utime(folder / "lock.json", (then, then))


def dead_pid():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_a_second_start_is_refused_and_names_the_holder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    RunLock(tmp_path).acquire()
    with pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on host \S+, job 4711, started 20"):
        RunLock(tmp_path).acquire()
    assert find_holder(tmp_path)["job_id"] == "4711"


def test_a_released_lock_is_free(tmp_path):
    first = RunLock(tmp_path)
    first.acquire()
    first.release()
    assert find_holder(tmp_path) is None
    RunLock(tmp_path).acquire()


def test_the_lock_of_a_dead_process_is_taken_over_and_said(tmp_path, caplog):
    forge(tmp_path, pid=dead_pid())
    assert find_holder(tmp_path) is None
    with caplog.at_level(logging.WARNING):
        RunLock(tmp_path).acquire()
    assert "which is gone: taken over" in caplog.text


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    pid = os.fork()
    if pid == 0:
        RunLock(tmp_path).acquire()
        time.sleep(60)
        os._exit(0)
    while find_holder(tmp_path) is None:
        time.sleep(0.005)
    with pytest.raises(ValueError, match=f"process {pid}"):
        RunLock(tmp_path).acquire()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    RunLock(tmp_path).acquire()


def test_a_reused_process_number_does_not_hold_the_lock(tmp_path):
    forge(tmp_path, pid_started="long ago")
    RunLock(tmp_path).acquire()


@pytest.mark.parametrize("elsewhere", [{"host": "n7"}, {"pid_namespace": "another container"}, {"boot": "before"}])
def test_elsewhere_the_heartbeat_decides(tmp_path, elsewhere):
    forge(tmp_path, pid=dead_pid(), age_s=100, **elsewhere)
    with pytest.raises(ValueError, match="counts as gone 180 s after its last sign of life"):
        RunLock(tmp_path).acquire()
    forge_again = tmp_path / "older"
    forge_again.mkdir()
    forge(forge_again, pid=dead_pid(), age_s=200, **elsewhere)
    RunLock(forge_again).acquire()


def test_an_unreadable_lock_counts_until_its_heartbeat_is_old(tmp_path):
    (tmp_path / "lock.json").write_text("{")
    with pytest.raises(ValueError, match="in use by process unknown on host unknown"):
        RunLock(tmp_path).acquire()
    os.utime(tmp_path / "lock.json", (0, 0))
    RunLock(tmp_path).acquire()


def test_the_heartbeat_moves_and_stops_with_the_lock(tmp_path):
    lock = RunLock(tmp_path, heartbeat_s=0.01)
    lock.acquire()
    os.utime(tmp_path / "lock.json", (0, 0))
    deadline = time.monotonic() + 5
    while (tmp_path / "lock.json").stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert time.time() - (tmp_path / "lock.json").stat().st_mtime < 5
    lock.release()
    assert not (tmp_path / "lock.json").exists()


def test_a_holder_whose_lock_was_taken_notices_and_leaves_it_alone(tmp_path):
    lock = RunLock(tmp_path, heartbeat_s=0.01)
    lock.acquire()
    content = json.loads((tmp_path / "lock.json").read_text())
    (tmp_path / "beside").write_text(json.dumps(content | {"token": "other"}))
    (tmp_path / "beside").replace(tmp_path / "lock.json")
    deadline = time.monotonic() + 5
    while not lock.lost and time.monotonic() < deadline:
        time.sleep(0.005)
    assert lock.lost
    lock.release()
    assert (tmp_path / "lock.json").exists()


def _try(folder, start, results, end):
    start.wait()
    try:
        RunLock(folder).acquire()
        results.put("taken")
    except ValueError:
        results.put("refused")
    end.wait()


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_start_at_once_exactly_one_gets_the_lock(tmp_path, stale):
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if stale:
            forge(folder, pid=dead_pid())
        start, end, results = context.Event(), context.Event(), context.Queue()
        processes = [context.Process(target=_try, args=(folder, start, results, end)) for _ in range(6)]
        for process in processes:
            process.start()
        start.set()
        outcomes = sorted(results.get(timeout=20) for _ in processes)
        end.set()
        for process in processes:
            process.join()
        assert outcomes == ["refused"] * 5 + ["taken"]


def test_a_file_system_without_flock_still_locks(tmp_path, monkeypatch, caplog):
    def no_flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_lock.fcntl, "flock", no_flock)
    RunLock(tmp_path).acquire()
    with pytest.raises(ValueError, match="in use by"):
        RunLock(tmp_path).acquire()
    assert "has no flock" in caplog.text


def test_a_job_that_slurm_starts_again_elsewhere_need_not_wait_for_its_own_lock_to_age(tmp_path, monkeypatch):
    """A node that died leaves a lock whose heartbeat is seconds old."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    forge(tmp_path, host="a-node-that-died", age_s=5)
    with pytest.raises(ValueError, match="in use by process"):  # another process of the same start
        RunLock(tmp_path).acquire()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    RunLock(tmp_path).acquire()


def test_another_job_still_waits_for_the_lock_to_age(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    forge(tmp_path, host="elsewhere", age_s=5)
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(ValueError, match="in use by process"):
        RunLock(tmp_path).acquire()
