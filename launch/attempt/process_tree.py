"""A launcher, the training processes that it starts, and theirs: signals go to the training processes alone.

Slurm signals every process of a step: SIGUSR2 before the time limit, SIGTERM before it is preempted. Launchers and
loader workers must not end of it, and training processes that are still starting cannot obey it yet. So all of them
start with both signals ignored, and the training processes get SIGUSR2 from here, again and again, until they have
ended. torch's launcher would handle SIGTERM again and kill its processes half a minute later, in the middle of a
checkpoint: it is told not to.
"""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence

import psutil

REPEAT_S = 2.0
LOOK_S = 1.0
TORCHRUN_SIGNALS = {"PET_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP,SIGQUIT"}
"""torchrun's `--signals-to-handle` without SIGTERM, for accelerate as well, which does not know that option."""


class ProcessTree:
    """A launcher and the training processes that it starts.

    Args:
        command: the launcher's command line.
        environment: all variables of its environment.
        stop_with: the signal by which the program saves and ends.
        is_training: the command is the training process itself, with no launcher before it.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, stop_with: signal.Signals, is_training: bool
    ) -> None:
        self._stop_with, self._is_training = stop_with, is_training
        # a program that is stopped with SIGTERM has no handler of its own: ignored, the signal would never end it
        ignored = [signal.SIGUSR2] if stop_with == signal.SIGTERM else [signal.SIGUSR2, signal.SIGTERM]
        self._launcher = subprocess.Popen(
            command, env={**environment, **TORCHRUN_SIGNALS}, preexec_fn=lambda: _ignore(ignored)
        )
        self._seen: dict[int, psutil.Process] = {}
        self._next_look = self._next_stop = 0.0

    def poll(self) -> int | None:
        """Look whether the launcher has ended: its exit code, or None. What it left behind is killed."""
        code = self._launcher.poll()
        if code is None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_S
            self._look()
        if code is not None:
            self._kill_rest()
        return code

    def stop(self) -> None:
        """Ask the training processes to save and end; may be called any number of times."""
        if time.monotonic() < self._next_stop:
            return
        self._next_stop = time.monotonic() + REPEAT_S
        self._look()
        if self._is_training:
            self._launcher.send_signal(self._stop_with)
            return
        for process in self._seen.values():
            with contextlib.suppress(psutil.Error):
                if process.is_running() and _is_rank(process):
                    process.send_signal(self._stop_with)

    def _look(self) -> None:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self._launcher.pid).children(recursive=True):
                self._seen.setdefault(process.pid, process)

    def _kill_rest(self) -> None:
        for process in self._seen.values():
            with contextlib.suppress(psutil.Error):
                if process.is_running():
                    process.kill()


def _is_rank(process: psutil.Process) -> bool:
    """Whether a launcher made this a training process; what that starts itself has its variables, too."""
    parent = process.parent()
    return "RANK" in process.environ() and (parent is None or "RANK" not in parent.environ())


def _ignore(numbers: Iterable[signal.Signals]) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
