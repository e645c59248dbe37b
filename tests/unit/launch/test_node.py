"""A node's job sees that it was cancelled even where the signal reached nobody."""

import os
import signal
import sys
import threading
import time

import pytest

from launch import node
from launch.config import ClusterConfig
from launch.job_folder import Job, JobFolder
from launch.node import NodeJob
from launch.program_calls import DOCTOR, Call


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
    monkeypatch.setattr(node, "JobEnvironment", Environment)
    monkeypatch.setattr(node, "log_to_job", lambda: None)
    monkeypatch.chdir(tmp_path)  # and back: the job goes to its own
    monkeypatch.setattr(node, "start_command", lambda *_, **__: [sys.executable, "-c", program])

    def start(*, program="pretrain", cancel_first=False):
        folder = JobFolder(tmp_path / "x")
        folder.make()
        call = Call(program=program, arguments=(), folder=folder.run, recipe="", starter="python", zero_stage=0)
        folder.write(Job(call=call, cluster=ClusterConfig(), nodes=1, cwd=str(tmp_path)))
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
