"""Work on many small tasks in several processes, with results in the tasks' order."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from engine.errors import UserError

ORPHAN_POLL_S = 0.5

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


def num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(function: Callable[[S, T], R], tasks: Iterable[T], *, state: S, processes: int) -> Iterator[R]:
    """Yield ``function(state, task)`` for each task; ``state`` goes to each process once. A few results wait ready.

    Raises:
        UserError: a process was killed.
    """
    if processes <= 1:
        for task in tasks:
            yield function(state, task)
        return
    running: deque[Future[R]] = deque()
    pool = ProcessPoolExecutor(processes, initializer=_begin, initargs=(function, state))
    try:
        for task in tasks:
            running.append(pool.submit(_run, task))
            if len(running) > 2 * processes:  # enough that no process waits, and few enough results to hold
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool:
        raise UserError("a working process was killed (out of memory?); use fewer --processes") from None
    finally:
        pool.shutdown(cancel_futures=True)


class _Job:
    """What a process works with, sent once and not with every task."""

    function: Callable[[Any, Any], Any]
    state: Any


def _begin(function: Callable[[Any, Any], Any], state: Any) -> None:
    """Leave an interrupt to the parent, and end with it when it is killed: a pool's processes would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's own handler speaks to the user
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _Job.function, _Job.state = function, state


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_POLL_S)
    os._exit(1)


def _run(task: Any) -> Any:
    return _Job.function(_Job.state, task)
