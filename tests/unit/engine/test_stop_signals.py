"""A program that a signal ends says so in a line, whatever it waits for, and ends in time."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAMS = {
    "waits": "with waiting_for('a file'):\n        print('ready', flush=True)\n        time.sleep(60)",
    "joins": "with ended_while('2 processes', is_over=threading.Event()):\n        print('ready', flush=True)\n"
    "        [ctypes.CDLL(None).sleep(60) for _ in range(9)]",
    "keeps": "threading.Thread(target=time.sleep, args=(60,)).start()\n    print('ready', flush=True)\n"
    "    time.sleep(60)",
    "forks": "child = os.fork()\n    print('ready', flush=True) if child else None\n    time.sleep(60)",
}
HEAD = """
import ctypes, os, signal, threading, time
import engine.errors
from engine.errors import one_line_errors, waiting_for
from engine.distributed.meeting import ended_while
engine.errors.END_WITHIN_S = 0.2
"""


@pytest.fixture(autouse=True)
def foreground():
    """As in the foreground: under nohup SIGHUP is ignored, here and in what is started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def start(name, *, prepare=""):
    code = f"{HEAD}{prepare}\n@one_line_errors\ndef main():\n    {PROGRAMS[name]}\nmain()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_a_wait_ends_with_a_line(number):
    process = start("waits")
    process.send_signal(number)
    _, said = process.communicate(timeout=10)
    assert said == f"stopped by {number.name}, while waiting for a file\n"
    assert process.returncode == 128 + number


def test_a_thread_that_goes_on_keeps_no_program_alive():
    process = start("keeps")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert said == "stopped by SIGTERM\n"
    assert process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 5


def test_what_waits_inside_a_library_is_ended_too_even_where_a_supervisor_ignores_the_signal():
    process = start("joins", prepare="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert said == "stopped by SIGTERM, while waiting for 2 processes\n"


def test_a_forked_child_ends_silently():
    process = start("forks")
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    subprocess.run(["kill", str(child)], check=True)
    time.sleep(0.3)
    assert process.poll() is None
    process.kill()
    assert process.communicate(timeout=10)[1] == ""
