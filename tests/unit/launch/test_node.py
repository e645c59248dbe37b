"""A node's job sees that it was cancelled even where the signal reached nobody."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import node
from launch.attempt.job_end import end_attempt
from launch.config import ClusterConfig
from launch.job_folder import Job, JobFolder
from launch.node import NodeJob
from launch.program_calls import DOCTOR, Call

ROOT = Path(__file__).parents[3]


class Environment:
    """What submitit says of the only node."""

    node, num_nodes, hostnames, raw_job_id, job_id = 0, 1, ("localhost",), "7", "7"


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Write a job of a program and run its node; the program waits for SIGUSR2."""
    program = (
        "import pathlib, signal, time\n"
        "got = []\n"
        "signal.signal(signal.SIGUSR2, lambda *_: got.append(1))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "deadline = time.monotonic() + 20\n"
        "while not got and time.monotonic() < deadline: time.sleep(0.05)\n"
        f"got and pathlib.Path({str(tmp_path / 'saved')!r}).touch()\n"
    )
    monkeypatch.setattr(node, "CANCEL_LOOK_S", 0.1)
    monkeypatch.setattr(node, "KNOWN_WAIT_S", 0.0)
    monkeypatch.setattr(node, "JobEnvironment", Environment)
    monkeypatch.setattr(node, "log_to_job", lambda: None)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)  # and back: the job goes to its own
    monkeypatch.setattr(node, "start_command", lambda *_, **__: [sys.executable, "-c", program])

    def start(*, program="pretrain", cancel_first=False, ids=("7",), code=None):
        if code is not None:
            monkeypatch.setattr(node, "start_command", lambda *_, **__: [sys.executable, "-c", code])
        folder = JobFolder(tmp_path / "x")
        folder.make()
        call = Call(program=program, arguments=(), folder=folder.run, recipe="", starter="python", zero_stage=0)
        folder.write(Job(call=call, cluster=ClusterConfig(), nodes=1, cwd=str(tmp_path), ids=ids))
        if cancel_first:
            folder.cancelled.touch()
        return folder, lambda: NodeJob(folder.run)()

    return start


def when(path, then):
    """Do it once the file is there."""

    def wait():
        while not path.exists():
            time.sleep(0.02)
        then()

    threading.Thread(target=wait, daemon=True).start()


def test_a_job_that_was_cancelled_before_it_started_does_not(started, tmp_path):
    _, run = started(cancel_first=True)
    with pytest.raises(SystemExit):
        run()
    assert not (tmp_path / "ready").exists()


def test_a_cancel_whose_signal_was_lost_stops_the_training_saved(started, tmp_path):
    folder, run = started()
    when(tmp_path / "ready", folder.cancelled.touch)
    run()
    assert (tmp_path / "saved").exists()


def test_the_doctors_own_mark_does_not_stop_it(started, tmp_path):
    _, run = started(program=DOCTOR, cancel_first=True)
    when(tmp_path / "ready", lambda: os.kill(os.getpid(), signal.SIGUSR2))
    run()
    assert (tmp_path / "saved").exists()


def test_a_job_that_is_not_written_down_ends_and_leaves_no_word_of_it(started, tmp_path):
    folder, run = started(ids=("8",))
    with pytest.raises(SystemExit):
        run()
    assert not (tmp_path / "ready").exists()
    assert folder.events() == []


def test_a_program_that_refuses_to_go_on_is_not_started_again(started):
    message = "data.shards is empty"
    folder, run = started(
        code=f"from engine.errors import *\n@one_line_errors\ndef main(): raise UserError({message!r})\nmain()"
    )
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == node.REFUSED
    decision = end_attempt(folder, folder.read(), exit_code=node.REFUSED)
    assert not decision.go_on
    assert message in decision.reason
    assert not folder.refusal(0).exists()


def test_a_refusal_that_may_pass_is_tried_again(started):
    folder, run = started(
        code="from engine.errors import *\n@one_line_errors\ndef main(): raise PassingError('in use')\nmain()"
    )
    with pytest.raises(SystemExit):
        run()
    assert end_attempt(folder, folder.read(), exit_code=1).go_on
