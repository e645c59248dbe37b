"""Ends a run that hangs, and says who hung: every process watches its own progress from a thread.

    runs/x/stalls/
    ├── heartbeats/rank-00000.json    what the process does and since when; written every few seconds
    ├── call                          made by the first process that gives up: all others dump their stacks and end
    ├── rank-00000.txt                stacks of all its threads
    └── report.json                   who is behind or gone, and where every process stood

Processes that wait in a collective for one that hangs make no progress either, so any of them may be the first to give
up: the one with the least progress, or without a heartbeat, is the one to blame. They agree through files, since
collectives hang too.
"""

import contextlib
import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TextIO

from engine.documents import from_tree, parse_json
from engine.errors import UserError
from engine.run.durable import write_durably

logger = logging.getLogger(__name__)

PATIENCE_OUTSIDE = 6.0
"""Outside of steps (start-up, evaluation, saving) a process may be silent so many times as long as inside one."""
LONGEST_BEAT_S = 15.0
EXIT_CODE = 1


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """What one process was doing."""

    rank: int
    """Which process."""
    host: str
    """Where it runs."""
    pid: int
    """Its number there."""
    step: int
    """Steps it had done."""
    phase: str
    """What it began last."""
    progress: int
    """How much it has begun since it was started; the same for processes that keep pace."""
    silent_s: float
    """Seconds since then."""
    time: float
    """When this was written, Unix seconds."""


@dataclass(frozen=True, kw_only=True)
class _Note:
    """The last sign of progress of the main thread."""

    phase: str
    step: int
    progress: int
    limit_s: float
    since: float


class Watchdog:
    """Watches one process between ``__enter__`` and ``__exit__``; ``note`` says that it makes progress.

    Args:
        folder: the run folder, shared by all processes.
        rank: this process.
        world_size: how many there are.
        timeout_s: seconds without progress inside a step that end the run; None watches nothing.
    """

    def __init__(self, folder: Path, *, rank: int, world_size: int, timeout_s: float | None) -> None:
        self._folder, self._rank, self._world_size, self._timeout_s = folder / "stalls", rank, world_size, timeout_s
        self._last = _Note(phase="starting", step=0, progress=0, limit_s=0.0, since=time.monotonic())
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._started_ns = 0

    def note(self, phase: str, *, step: int, outside: bool = False, at_least_s: float = 0.0) -> None:
        """Say that this process begins something; ``outside`` of a step it may take longer. Costs next to nothing.

        What ends by itself ``at_least_s`` seconds later, with better words, is left to that.
        """
        self._last = _Note(  # one assignment: the thread sees all of it or nothing
            phase=phase,
            step=step,
            progress=self._last.progress + 1,
            limit_s=max((self._timeout_s or 0.0) * (PATIENCE_OUTSIDE if outside else 1.0), at_least_s),
            since=time.monotonic(),
        )

    def __enter__(self) -> "Watchdog":
        """Start watching."""
        self.note("starting", step=self._last.step, outside=True)
        if self._timeout_s is not None:
            (self._folder / "heartbeats").mkdir(parents=True, exist_ok=True)
            self._stacks.unlink(missing_ok=True)
            self._beat(self._last)
            self._started_ns = self._heartbeat_of(self._rank).stat().st_mtime_ns  # by the file system's own clock
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching."""
        self.stop()

    def stop(self) -> None:
        """Stop watching, if it has not ended yet."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            with contextlib.suppress(OSError):
                self._heartbeat_of(self._rank).unlink(missing_ok=True)

    def _watch(self) -> None:
        pause_s = self._pause_s
        with self._stacks.open("w") as stacks:
            looked = time.monotonic()
            while not self._ended.wait(pause_s):
                last, now = self._last, time.monotonic()
                slept_s, looked = now - looked - pause_s, now
                self._beat(last)
                silent_s = now - last.since
                if self._called():
                    self._end(stacks, last, "another process has made no progress: see report.json there")
                if self._world_size > 1:
                    # The interpreter may be held by what hangs, and this thread with it: then this ends the process.
                    left_s = max(last.limit_s - silent_s, 0.0) + 4 * pause_s + LONGEST_BEAT_S
                    faulthandler.dump_traceback_later(left_s, exit=True, file=stacks)
                elif slept_s > last.limit_s / 2:  # the whole program was stopped for a while, and nothing hung
                    self._last = replace(last, since=now)
                    continue
                if silent_s > last.limit_s:
                    self._give_up(stacks, last)
            faulthandler.cancel_dump_traceback_later()
        if self._stacks.stat().st_size == 0:
            self._stacks.unlink()

    def _give_up(self, stacks: TextIO, last: "_Note") -> None:
        """Call the others to write down where they are, name who is behind, and end."""
        with contextlib.suppress(OSError):
            self._call.write_text(str(self._rank))
        self._await_others(last)
        beats = self.read_heartbeats()
        blamed = blame(beats, world_size=self._world_size, now=time.time(), stale_s=self._stale_s)
        timeout_s = self._timeout_s or 0.0
        limit = f"run.stall-timeout-s {timeout_s:g}"
        if last.limit_s == timeout_s * PATIENCE_OUTSIDE:
            limit += f" times {PATIENCE_OUTSIDE:g}, outside of steps"
        elif last.limit_s > timeout_s:
            limit += f" and the {last.limit_s:g} after which a fetch gives up"
        message = f"no progress for {time.monotonic() - last.since:.0f} s (more than {limit}): {'; '.join(blamed)}"
        content = {"message": message, "blamed": blamed, "heartbeats": [asdict(beat) for beat in beats]}
        with contextlib.suppress(OSError):
            write_durably(self._folder / "report.json", json.dumps(content, indent=1).encode())
        self._end(stacks, last, message)

    def _await_others(self, last: "_Note") -> None:
        """Leave the others the time to see the call, and go on giving signs of life."""
        deadline = time.monotonic() + (2 * self._pause_s + 1.0 if self._world_size > 1 else 0.0)
        while True:
            self._beat(last)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(self._pause_s, left_s))

    def _end(self, stacks: TextIO, last: "_Note", message: str) -> None:
        """Dump the stacks and end the process, whose main thread will never come to an end of its own."""
        faulthandler.dump_traceback(stacks, all_threads=True)
        stacks.flush()
        if not self._called_by_me():
            self._await_others(last)  # whoever called still reads the heartbeats
        sys.stderr.write(
            f"error: {message}. The stacks of every process are in {self._folder}. Start again to go on from the last "
            f"checkpoint; without that machine if it recurs, or with a longer --run.stall-timeout-s if nothing hung\n"
        )
        sys.stderr.flush()
        os._exit(EXIT_CODE)

    def _called(self) -> bool:
        """Whether a process of this start has given up."""
        try:
            return self._call.stat().st_mtime_ns > self._started_ns
        except OSError:
            return False

    def _called_by_me(self) -> bool:
        try:
            return self._call.read_text() == str(self._rank)
        except OSError:
            return True

    @property
    def _call(self) -> Path:
        return self._folder / "call"

    @property
    def _pause_s(self) -> float:
        assert self._timeout_s is not None
        return min(self._timeout_s / 8, LONGEST_BEAT_S)

    @property
    def _stale_s(self) -> float:
        """Age of a heartbeat that is no sign of life any more; file systems over a network show files late."""
        return max(self._pause_s * 6, 2.0)

    def _beat(self, last: "_Note") -> None:
        beat = Heartbeat(
            rank=self._rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            step=last.step,
            phase=last.phase,
            progress=last.progress,
            silent_s=time.monotonic() - last.since,
            time=time.time(),
        )
        path = self._heartbeat_of(self._rank)
        beside = path.with_suffix(".new")
        try:
            beside.write_text(json.dumps(asdict(beat)))
            beside.replace(path)
        except OSError as error:  # a full disk is the checkpoint's to report
            logger.debug("no heartbeat in %s: %s", path, error)

    def read_heartbeats(self) -> list[Heartbeat]:
        """Read the last heartbeat of every process that has one."""
        beats: list[Heartbeat] = []
        for rank in range(self._world_size):
            with contextlib.suppress(OSError, UserError):
                beats.append(from_tree(Heartbeat, parse_json(self._heartbeat_of(rank).read_bytes())))
        return beats

    def _heartbeat_of(self, rank: int) -> Path:
        return self._folder / "heartbeats" / f"rank-{rank:05d}.json"

    @property
    def _stacks(self) -> Path:
        return self._folder / f"rank-{self._rank:05d}.txt"


def blame(beats: list[Heartbeat], *, world_size: int, now: float, stale_s: float) -> list[str]:
    """Say who holds the others up: processes without a fresh heartbeat, else those with the least progress."""
    seen = {beat.rank: beat for beat in beats}
    gone = [f"process {rank} has left no heartbeat" for rank in range(world_size) if rank not in seen]
    gone += [
        f"process {beat.rank} on {beat.host} gave no sign of life for {now - beat.time:.0f} s ({_where(beat)})"
        for beat in beats
        if now - beat.time > stale_s
    ]
    if gone or not beats:
        return gone
    least, most = min(beat.progress for beat in beats), max(beat.progress for beat in beats)
    if least == most:
        if world_size == 1:
            return [f"process 0 on {beats[0].host} hangs ({_where(beats[0])})"]
        return [
            f"all {world_size} processes stand at the same point ({_where(beats[0])}): a collective or the file system"
        ]
    return [
        f"process {beat.rank} on {beat.host} is behind ({_where(beat)})" for beat in beats if beat.progress == least
    ]


def _where(beat: Heartbeat) -> str:
    return f"{beat.phase} after step {beat.step}"
