"""A run that waits for data that never comes: a signal ends it with what it has done, the watchdog looks at once."""

import json
import os
import signal
import time

import pytest

from engine.checkpoint.store import newest_checkpoint
from engine.errors import Stopped
from engine.faults.watchdog import Watchdog
from tests.tiny_run import TinyBatches, config_of, run_tiny


def test_a_signal_during_the_wait_saves_the_steps_that_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.loop.stop_requests.WAIT_S", 0.05)
    take, left = TinyBatches.__next__, [4 * 4]

    def never_again(batches):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        return take(batches)

    monkeypatch.setattr(TinyBatches, "__next__", never_again)
    config = config_of(tmp_path / "run")
    said = "stopped by SIGTERM, while waiting for data, micro-batch 0 of step 4, the last checkpoint is that of step 4"
    with pytest.raises(Stopped, match=said):
        run_tiny(config)
    checkpoint = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 4
    stopped = json.loads((tmp_path / "run" / "stopped.json").read_text())
    assert (stopped["step"], stopped["reason"]) == (4, "SIGTERM")


def test_the_first_fetch_counts_as_inside_a_step(tmp_path, monkeypatch):
    notes, note = [], Watchdog.note

    def noted(watchdog, phase, *, step, outside=False):
        notes.append((phase, step, outside))
        note(watchdog, phase, step=step, outside=outside)

    monkeypatch.setattr(Watchdog, "note", noted)
    run_tiny(config_of(tmp_path / "run"), until=2)
    assert ("fetch", 0, False) in notes
    assert ("forward", 0, True) in notes
    assert ("forward", 1, False) in notes
