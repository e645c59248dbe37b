"""A run that waits for data that never comes: a signal ends it with what it has done, the watchdog looks at once."""

import json
import os
import signal
import time
from types import SimpleNamespace

import pytest

from engine.checkpoint.store import CheckpointStore, newest_checkpoint
from engine.errors import Stopped, waiting_for
from engine.faults.watchdog import Watchdog
from engine.loop.stop_requests import StopRequests
from tests.tiny_run import TinyBatches, config_of, run_tiny, same


def test_a_signal_during_the_wait_saves_the_steps_that_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.loop.stop_requests.LEAST_WAIT_S", 0.05)
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


def stop_in_an_evaluation(monkeypatch, tmp_path, *, after, **sections):
    """Send a signal while a wait for data that is not training's lasts, after some steps; return the new checkpoint."""
    monkeypatch.setattr("engine.loop.stop_requests.LEAST_WAIT_S", 0.05)

    def evaluate(training, step):
        if step == after:
            with training.ema.swap(), waiting_for("the images of an evaluation"):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)

    with pytest.raises(Stopped, match=rf"an evaluation, the last checkpoint is that of step {after}$"):
        run_tiny(config_of(tmp_path / "stopped", **sections), before_step=evaluate)
    return tmp_path / "stopped"


def test_a_signal_in_an_evaluation_saves_the_steps_that_are_done_not_the_averages_in_their_place(tmp_path, monkeypatch):
    folder = stop_in_an_evaluation(monkeypatch, tmp_path, after=5)
    run_tiny(config_of(tmp_path / "whole", run={"save_every_steps": 5}), until=5)
    assert same(folder, tmp_path / "whole", step=5)


def test_a_checkpoint_that_is_being_written_is_awaited(tmp_path, monkeypatch):
    run = CheckpointStore._run

    def slowly(store, *args):
        time.sleep(0.5)
        run(store, *args)

    monkeypatch.setattr(CheckpointStore, "_run", slowly)
    folder = stop_in_an_evaluation(monkeypatch, tmp_path, after=3)
    assert newest_checkpoint(folder / "checkpoints").step == 3


def test_bad_samples_of_a_step_that_was_not_done_are_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.loop.stop_requests.LEAST_WAIT_S", 0.05)
    take, left = TinyBatches.__next__, [3 * 4 + 2]

    def stuck(batches):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        batch = take(batches)
        return {**batch, "bad": [(int(batch["ids"][0]), "x", "no JPEG")] if left[0] == 1 else []}

    monkeypatch.setattr(TinyBatches, "__next__", stuck)
    with pytest.raises(Stopped):
        run_tiny(config_of(tmp_path / "run", data={"max_bad_share": 1.0}))
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").state["bad_samples"] == 0


def test_a_wait_ends_later_where_waits_took_longer(monkeypatch):
    requests = StopRequests(SimpleNamespace(world_size=1, is_main=True), SimpleNamespace())
    monkeypatch.setattr("engine.loop.stop_requests.LEAST_WAIT_S", 0.05)
    with requests:
        with waiting_for("slow data"):
            time.sleep(0.3)
        with waiting_for("slow data"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.4)
        with pytest.raises(Stopped), waiting_for("slow data"):
            time.sleep(5)


def test_the_first_fetch_counts_as_inside_a_step(tmp_path, monkeypatch):
    notes, note = [], Watchdog.note

    def noted(watchdog, phase, *, step, outside=False, **options):
        notes.append((phase, step, outside))
        note(watchdog, phase, step=step, outside=outside, **options)

    monkeypatch.setattr(Watchdog, "note", noted)
    run_tiny(config_of(tmp_path / "run"), until=2)
    assert ("fetch", 0, False) in notes
    assert ("forward", 0, True) in notes
    assert ("forward", 1, False) in notes
