"""Signals reach the training processes, however early, and nobody else; nothing outlives its launcher."""

import os
import signal
import sys
import time

import psutil
import pytest

from launch.attempt.process_tree import ProcessTree

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
command = [sys.executable, "-c", code, folder, slow]
ranks = [subprocess.Popen(command, env={**os.environ, "RANK": str(n)}) for n in range(2)]
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


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_what_slurm_sends_to_all_processes_ends_none_that_is_not_ready(tmp_path, number):
    tree = start(tmp_path, slow=1.0)
    wait(lambda: len(list(tmp_path.glob("*.helper"))) == 2)
    for process in psutil.Process().children(recursive=True):
        process.send_signal(number)
    wait(lambda: len(list(tmp_path.glob("*.ready"))) == 2)
    assert tree.poll() is None
    wait(lambda: tree.stop() or tree.poll() is not None)
    assert tree.poll() == 0


def test_nothing_outlives_a_launcher_that_was_killed(tmp_path):
    tree = start(tmp_path)
    wait(lambda: len(list(tmp_path.glob("*.ready"))) == 2)
    tree.poll()
    own = [process for process in psutil.Process().children() if process.status() != psutil.STATUS_ZOMBIE]
    launcher = next(process for process in own if "subprocess.Popen([sys" in " ".join(process.cmdline()))
    children = launcher.children(recursive=True)
    launcher.kill()
    wait(lambda: tree.poll() is not None)
    assert tree.poll() == -signal.SIGKILL
    gone, alive = psutil.wait_procs(children, timeout=10)
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


def test_torchs_launcher_leaves_sigterm_to_the_training_processes(tmp_path):
    """It would close them, and kill them half a minute later, in the middle of a checkpoint."""
    program = "import torch.distributed.run as run; print(run.get_args_parser().parse_args(['x']).signals_to_handle)"
    output = tmp_path / "output"
    code = f"import contextlib\nwith open({str(output)!r}, 'w') as f, contextlib.redirect_stdout(f):\n    {program}"
    tree = ProcessTree([sys.executable, "-c", code], os.environ, stop_with=signal.SIGUSR2, is_training=False)
    wait(lambda: tree.poll() is not None)
    assert tree.poll() == 0
    assert output.read_text().split(",") == ["SIGINT", "SIGHUP", "SIGQUIT\n"]


def test_a_program_that_is_stopped_with_sigterm_hears_it(tmp_path):
    command = [sys.executable, "-c", f"import time; open({str(tmp_path / 'ready')!r}, 'w'); time.sleep(60)"]
    tree = ProcessTree(command, os.environ, stop_with=signal.SIGTERM, is_training=True)
    wait(lambda: (tmp_path / "ready").exists())
    wait(lambda: tree.stop() or tree.poll() is not None)
    assert tree.poll() == -signal.SIGTERM
