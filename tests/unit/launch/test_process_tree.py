"""Signals reach the training processes, however early, and nobody else; nothing outlives its launcher."""

import os
import signal
import sys
import time

import psutil
import pytest

from launch.process_tree import ProcessTree

RANK = """
import os, pathlib, signal, subprocess, sys, time
folder, name, slow = pathlib.Path(sys.argv[1]), os.environ["RANK"], float(sys.argv[2])
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # has the rank's variables, too
(folder / f"{name}.helper").write_text(str(helper.pid))
time.sleep(slow)
got = []
signal.signal(signal.SIGUSR2, lambda *_: got.append(1))
(folder / f"{name}.ready").touch()
while not got:
    time.sleep(0.02)
time.sleep(0.2)
assert helper.poll() is None
helper.kill()
(folder / f"{name}.saved").touch()
"""
LAUNCHER = """
import os, subprocess, sys
folder, slow, code = sys.argv[1:]
ranks = [subprocess.Popen([sys.executable, "-c", code, folder, slow], env={**os.environ, "RANK": str(n)}) for n in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""


def start(folder, *, slow=0.0):
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    command = [sys.executable, "-c", LAUNCHER, str(folder), str(slow), RANK]
    return ProcessTree(command, environment, stop_with=signal.SIGUSR2, is_training=False)


def wait(condition, *, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("slow", [0.0, 2.5], ids=["running", "still starting"])
def test_a_stop_reaches_every_training_process_whenever_it_comes(tmp_path, slow):
    tree = start(tmp_path, slow=slow)
    wait(lambda: len(list(tmp_path.glob("*.ready" if not slow else "*.helper"))) == 2)

    def done():
        tree.stop()
        return tree.poll() is not None

    wait(done)
    assert tree.poll() == 0
    assert len(list(tmp_path.glob("*.saved"))) == 2


def test_what_slurm_sends_to_all_processes_ends_none_that_is_not_ready(tmp_path):
    tree = start(tmp_path, slow=1.0)
    wait(lambda: len(list(tmp_path.glob("*.helper"))) == 2)
    for process in psutil.Process().children(recursive=True):
        process.send_signal(signal.SIGUSR2)
    wait(lambda: len(list(tmp_path.glob("*.ready"))) == 2)
    assert tree.poll() is None
    wait(lambda: tree.stop() or tree.poll() is not None)
    assert tree.poll() == 0


def test_nothing_outlives_a_launcher_that_was_killed(tmp_path):
    tree = start(tmp_path)
    wait(lambda: len(list(tmp_path.glob("*.ready"))) == 2)
    tree.poll()
    children = psutil.Process().children(recursive=True)
    launcher = next(
        process
        for process in children
        if "subprocess.Popen([sys" in " ".join(process.cmdline()) and process.ppid() == os.getpid()
    )
    launcher.kill()
    wait(lambda: tree.poll() is not None)
    assert tree.poll() == -signal.SIGKILL
    gone, alive = psutil.wait_procs([process for process in children if process != launcher], timeout=10)
    assert not alive
    assert len(gone) >= 4


def test_one_process_without_a_launcher_gets_the_signal_itself(tmp_path):
    environment = {**os.environ, "RANK": "0"}
    tree = ProcessTree(
        [sys.executable, "-c", RANK, str(tmp_path), "0"], environment, stop_with=signal.SIGUSR2, is_training=True
    )
    wait(lambda: (tmp_path / "0.ready").exists())
    wait(lambda: tree.stop() or tree.poll() is not None)
    assert tree.poll() == 0
    assert (tmp_path / "0.saved").exists()
