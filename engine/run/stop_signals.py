"""The signals by which schedulers and users ask a run to stop."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


class stop_signals:  # noqa: N801 - used as a function is
    """Within it, SIGINT, SIGTERM and SIGUSR2 only ask for a stop; a second SIGINT interrupts as usual.

    Schedulers send SIGUSR2 (NCCL takes SIGUSR1) and SIGTERM, often more than once.
    """

    def __init__(self, note: Callable[[int, FrameType | None], None]) -> None:
        self._note = note
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._note(number, frame)
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
