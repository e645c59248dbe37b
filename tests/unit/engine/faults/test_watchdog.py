"""Who is blamed for a run without progress, and what does not count as one. Real hangs: test_survival.py."""

import faulthandler
import json
import time
from dataclasses import replace

import pytest

from engine.config import RunConfig
from engine.faults import watchdog
from engine.faults.watchdog import Heartbeat, Watchdog, blame

BEAT = Heartbeat(rank=0, host="n1", pid=1, step=7, phase="forward", progress=100, silent_s=1.0, time=1000.0)


def beats(*changes):
    return [replace(BEAT, rank=rank, **change) for rank, change in enumerate(changes)]


def blamed(found, *, world_size=3):
    return blame(found, world_size=world_size, now=1001.0, stale_s=60.0)


def test_the_process_with_the_least_progress_is_blamed():
    assert blamed(beats({}, {"progress": 99, "phase": "fetch", "host": "n2"}, {})) == [
        "process 1 on n2 is behind (fetch after step 7)"
    ]


def test_processes_without_a_heartbeat_or_with_an_old_one_are_blamed_before_all_others():
    found = beats({"progress": 1}, {"time": 900.0})
    assert blamed(found) == [
        "process 2 has left no heartbeat",
        "process 1 on n1 gave no sign of life for 101 s (forward after step 7)",
    ]


def test_where_all_stand_at_the_same_point_no_process_is_singled_out():
    assert blamed(beats({}, {}, {})) == [
        "all 3 processes stand at the same point (forward after step 7): a collective or the file system"
    ]
    assert blamed(beats({}), world_size=1) == ["process 0 on n1 hangs (forward after step 7)"]


def test_a_process_that_makes_progress_is_left_alone_also_while_it_starts_and_saves(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog.Watchdog, "_give_up", lambda *args: pytest.fail("it gave up"))
    with Watchdog(tmp_path, rank=0, world_size=1, timeout_s=0.3) as watched:
        time.sleep(0.5)  # longer than inside a step
        for step in range(6):
            watched.note("forward", step=step)
            time.sleep(0.1)
        watched.note("save", step=6, outside=True)
        time.sleep(0.6)
    assert not list((tmp_path / "stalls").glob("*.txt"))
    assert not list((tmp_path / "stalls" / "heartbeats").iterdir())


def test_silence_ends_in_giving_up_with_what_was_done_last(tmp_path, monkeypatch):
    given_up = []
    monkeypatch.setattr(watchdog.Watchdog, "_give_up", lambda self, stacks, last: given_up.append(last))
    with Watchdog(tmp_path, rank=0, world_size=1, timeout_s=0.2) as watched:
        watched.note("backward", step=4)
        time.sleep(0.6)
        (heartbeat,) = watched.read_heartbeats()
    assert (given_up[0].phase, given_up[0].step) == ("backward", 4)
    assert (heartbeat.phase, heartbeat.step, heartbeat.silent_s > 0.1) == ("backward", 4, True)


def test_without_a_limit_nothing_is_watched_or_written(tmp_path):
    with Watchdog(tmp_path, rank=0, world_size=1, timeout_s=None) as watched:
        watched.note("forward", step=0)
    assert not list(tmp_path.iterdir())


def test_a_heartbeat_that_is_half_written_is_passed_over(tmp_path):
    with Watchdog(tmp_path, rank=0, world_size=2, timeout_s=60.0) as watched:
        (tmp_path / "stalls" / "heartbeats" / "rank-00001.json").write_text(json.dumps({"rank": 1})[:-2])
        assert all(beat.rank != 1 for beat in watched.read_heartbeats())
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("limits", [{"stall_timeout_s": 0.0}, {"max_rewinds": -1}])
def test_limits_that_make_no_sense_are_refused(limits):
    with pytest.raises(ValueError, match=r"run\.(stall-timeout-s|max-rewinds) must"):
        RunConfig(**limits)


def test_a_fetch_that_gives_up_by_itself_is_given_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(Watchdog, "_end", lambda *_: None)
    watchdog = Watchdog(tmp_path, rank=0, world_size=1, timeout_s=0.1)
    with watchdog:
        watchdog.note("fetch", step=0, at_least_s=60)
        time.sleep(1)
    assert not (tmp_path / "stalls" / "report.json").exists()
