"""The wait for the other processes of a run: said while it lasts, and ended by signals, which Python misses then."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator

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
    nobody = {signal.SIGHUP, signal.SIGINT}  # nohup, and shells for what they start in the background, ignore them
    numbers = {n for n in (*SIGNALS, signal.SIGINT) if n not in nobody or signal.getsignal(n) != signal.SIG_IGN}

    def watch() -> None:
        while not is_over.is_set():
            if (came := signal.sigtimedwait(numbers, 0.2)) is not None:
                stop = Stopped(came.si_signo)
                stop.notes.append(f"while waiting for {what}")
                end_at_once(stop)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # which the thread inherits, and takes them
    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
