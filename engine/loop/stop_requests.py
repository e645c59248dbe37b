"""A run ends early when it is asked to: by a signal to any of its processes, or by the STOP file in its folder."""

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from engine.distributed.engine import Engine
from engine.errors import LIMIT_OF_WAITS, SIGNALS, Stopped
from engine.run.folder import RunFolder

logger = logging.getLogger(__name__)

ASKING = (signal.SIGINT, *SIGNALS)
"""Schedulers send SIGTERM and SIGUSR2 (NCCL takes SIGUSR1), often more than once; closed terminals SIGHUP."""
LEAST_WAIT_S, MOST_WAIT_S = 3.0, 20.0
"""Seconds after a signal for which the program still waits for data: twice what its waits took, within these bounds.

Launchers kill half a minute after their signal."""
CHECK_S = 5.0
"""Seconds between the steps at which several processes agree on whether to stop."""


class StopRequests:
    """Within it signals only ask for a stop; a second SIGINT interrupts as usual.

    Args:
        engine: the processes, which stop after the same step.
        folder: the run folder; its STOP file is the user's wish.
    """

    def __init__(self, engine: Engine, folder: RunFolder) -> None:
        self.reason: str | None = None
        """What asked for the stop, once the processes have agreed on it."""
        self.signalled_at: float | None = None
        """Time of the first signal to this process, in seconds since 1970."""
        self._engine, self._folder = engine, folder
        self._signal: str | None = None
        self._waits, self._longest_wait_s = 0, 0.0
        self._handlers: dict[int, Any] = {}
        self.restart(0)

    def restart(self, step: int) -> None:
        """Measure the time of a step from here on: ``step`` is the next one, at the start or after going back."""
        self._started, self._first_step, self._next_check = time.monotonic(), step, 0

    def agreed(self, step: int) -> bool:
        """Agree among the processes on stopping after ``step`` steps, about every ``CHECK_S`` seconds (collective).

        Rank 0 says at which step all look next: launchers give a signalled process half a minute before they kill it.
        """
        if self._engine.world_size > 1 and step < self._next_check:
            return False
        by_file = self._engine.is_main and self._folder.stop_requested()
        if self._engine.any(by_file or self._signal is not None):
            # A signal does not reach all processes at once, and another one's must not be taken for the STOP file.
            requests = self._engine.gather_lines([{"by_file": by_file, "signal": self._signal}])
            signals = [request["signal"] for request in requests if request["signal"] is not None]
            self.reason = "the STOP file" if any(request["by_file"] for request in requests) else signals[0]
            logger.warning("stopping after step %d, as asked by %s", step, self.reason)
        step_s = (time.monotonic() - self._started) / (step - self._first_step)
        self._next_check = self._engine.broadcast_object(step + max(1, int(CHECK_S / step_s)))
        return self.reason is not None

    def __enter__(self) -> "StopRequests":
        """Take over the signals."""
        for number in ASKING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                self._handlers[number] = signal.signal(number, self._handle)
        self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._end_wait)
        LIMIT_OF_WAITS.set(self._waiting)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        LIMIT_OF_WAITS.set(contextlib.nullcontext)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Wait within, in the main thread, but not for ever once a signal has come: the step may never be full.

        Raises:
            Stopped: some seconds after the signal the data is still not there.
        """
        self._waits += 1
        started = time.monotonic()
        if self._signal is not None and self._waits == 1:
            self._limit_wait()
        try:
            yield
            self._longest_wait_s = max(self._longest_wait_s, time.monotonic() - started)
        finally:
            self._waits -= 1
            if not self._waits:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _limit_wait(self) -> None:
        limit_s = min(max(LEAST_WAIT_S, 2 * self._longest_wait_s), MOST_WAIT_S)
        signal.setitimer(signal.ITIMER_REAL, limit_s)

    def _end_wait(self, _number: int, _frame: FrameType | None) -> None:
        if self._waits and self._signal is not None:
            raise Stopped(signal.Signals[self._signal])

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        self.signalled_at = self.signalled_at or time.time()
        if self._waits:
            self._limit_wait()
        if number == signal.SIGINT:
            signal.signal(number, self._handlers[number])
