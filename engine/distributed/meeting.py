"""The wait for the other processes of a run: said while it lasts, and ended by signals, which Python misses then."""

import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from engine.distributed.launched import Launched
from engine.errors import SIGNALS, Stopped, end_at_once

FIRST_WORD_S, OTHERS_FIRST_WORD_S, NEXT_WORD_S = 3.0, 20.0, 60.0
"""Seconds after which a process that waits for others says so: the first one, the others, and each again."""


@contextlib.contextmanager
def said_while_waiting(launched: Launched) -> Iterator[None]:
    """Say whom this process waits for, once that takes longer than a start does; a signal ends the wait."""
    met, whom = threading.Event(), f"{launched.world_size} processes at {launched.meeting_place}"

    def say() -> None:
        pause_s = FIRST_WORD_S if launched.rank == 0 else OTHERS_FIRST_WORD_S
        started = time.monotonic()
        while not met.wait(pause_s):
            sys.stderr.write(
                f"process {launched.rank} is waiting for {whom}, for {time.monotonic() - started:.0f} s so far: was "
                "each of them started with this address and its own RANK?\n"
            )
            sys.stderr.flush()
            pause_s = NEXT_WORD_S

    with ended_while(whom, is_over=met):
        threading.Thread(target=say, name="waiting", daemon=True).start()
        yield


@contextlib.contextmanager
def ended_while(what: str, *, is_over: threading.Event) -> Iterator[None]:
    """End this process when a signal comes while a library waits for ``what``, in which Python handles none.

    Also where a supervisor lets it ignore them until it trains: there is nothing to save yet. ``is_over`` is set at
    the end.
    """
    if threading.current_thread() is not threading.main_thread():
        with contextlib.ExitStack() as stack:
            stack.callback(is_over.set)
            yield
        return
    # nohup ignores hang-ups, and shells interrupts of what they start in the background
    kept = {number for number in (signal.SIGHUP, signal.SIGINT) if signal.getsignal(number) == signal.SIG_IGN}
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        with contextlib.suppress(OSError):
            while came := reader.recv(1):
                stop = Stopped(came[0])
                stop.notes.append(f"while waiting for {what}")
                end_at_once(stop)

    # Whichever thread a signal reaches, its number is written to the socket at once.
    before = {number: signal.signal(number, _pass) for number in {*SIGNALS, signal.SIGINT} - kept}
    old_writer = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
        signal.set_wakeup_fd(old_writer)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        reader.close()


def _pass(_number: int, _frame: FrameType | None) -> None:
    """Leave a signal to the thread that watches."""
