"""One process writes its share of a checkpoint, and all agree through files that it is complete.

Each process leaves its part of the index beside its file, process 0 waits for all parts, writes the index and renames
the folder; a process that fails leaves its message instead, and all of them fail with it.
"""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.format import make_index, write_index, write_slices
from engine.checkpoint.slices import TensorSlice
from engine.errors import NO_SPACE, PassingError
from engine.run.durable import fsync_folder
from engine.run.folder import checkpoint_steps, step_folder

logger = logging.getLogger(__name__)

VISIBLE_WITHIN_S = 30.0
"""Longest time that a shared file system takes to show another node's rename."""


class CheckpointError(PassingError):
    """A checkpoint could not be written; the message says where, how much was needed, and what is still intact.

    Disks and servers come back: another start may write it.
    """


@dataclass(frozen=True, kw_only=True)
class Write:
    """One process's share of writing one checkpoint."""

    folder: Path
    """The checkpoint's final name."""
    rank: int
    """Number of this process."""
    world_size: int
    """Number of processes that write."""
    attempt: int
    """Number of this save in the run, the same on all processes: tells its files from those of a failed one."""
    slices: Sequence[TensorSlice]
    """What this process owns, on the host."""
    state: str
    """The state that goes into the index, as JSON text."""
    deadline: float
    """When to give up waiting for the others, as `time.monotonic` counts."""

    @property
    def partial(self) -> Path:
        """The folder's name until it is complete."""
        return self.folder.with_suffix(".partial")

    def run(self) -> None:
        """Write this process's file, then publish (process 0) or wait until it is published."""
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            part = write_slices(self._mine(".safetensors"), self.slices)
            self._announce(part)
            if self.rank == 0:
                self._publish([self._part_of(rank) for rank in range(self.world_size)])
            else:
                self._await_publication()
        except BaseException as error:
            self._give_up(error)
            if isinstance(error, OSError):
                raise self._explained(error) from error
            raise

    def _announce(self, part: dict[str, Any]) -> None:
        """Hand this process's part of the index to process 0, which may rename the folder as soon as it sees it."""
        beside = self._mine(".json.new")
        beside.write_text(json.dumps({"attempt": self.attempt, **part}))
        beside.replace(self._mine(".json"))

    def _publish(self, parts: Sequence[dict[str, Any]]) -> None:
        for file in (part["file"] for part in parts):
            path = self.partial / file["name"]
            if not path.is_file() or path.stat().st_size != file["size_bytes"]:
                raise CheckpointError(f"cannot save checkpoint {self.folder}: {file['name']} is not what was announced")
        write_index(
            self.partial, make_index(int(self.folder.name.removeprefix("step-")), json.loads(self.state), parts)
        )
        for path in self.partial.glob("rank-*.json"):
            path.unlink()
        fsync_folder(self.partial)
        if self.folder.exists():  # a damaged one of this step, which the run did not use
            shutil.rmtree(self.folder)
        self.partial.rename(self.folder)
        fsync_folder(self.folder.parent)

    def _part_of(self, rank: int) -> dict[str, Any]:
        """Wait for the part of the index that process ``rank`` announces."""
        path = self.partial / f"rank-{rank:05d}.json"
        pause_s = 0.005
        while True:
            self._check_failures()
            if path.exists() and (part := json.loads(path.read_bytes()))["attempt"] == self.attempt:
                return part
            self._pause(pause_s, f"process {rank} did not finish its part")
            pause_s = min(pause_s * 1.5, 0.5)

    def _await_publication(self) -> None:
        pause_s = 0.005
        while self.partial.exists():
            with contextlib.suppress(FileNotFoundError):  # renamed just now
                self._check_failures()
            self._pause(pause_s, "process 0 did not complete it")
            pause_s = min(pause_s * 1.5, 0.5)
        visible_by = time.monotonic() + VISIBLE_WITHIN_S
        while not self.folder.is_dir():
            if time.monotonic() > visible_by:
                raise CheckpointError(f"cannot save checkpoint {self.folder}: its unfinished folder is gone")
            time.sleep(pause_s)

    def _pause(self, pause_s: float, what: str) -> None:
        if time.monotonic() > self.deadline:
            raise CheckpointError(f"cannot save checkpoint {self.folder}: {what} in time")
        time.sleep(pause_s)

    def _check_failures(self) -> None:
        # One file name for all processes: looking costs the same with any number of them.
        with contextlib.suppress(FileNotFoundError):
            message = self._failure.read_text()
            raise CheckpointError(message or f"cannot save checkpoint {self.folder}: another process failed")

    def _give_up(self, error: BaseException) -> None:
        """Free the space and tell the other processes."""
        message = str(self._explained(error))
        try:
            self._mine(".safetensors").unlink(missing_ok=True)
            beside = self._mine(".failed")
            with contextlib.suppress(OSError):  # on a full disk the others learn at least that something failed
                beside.write_text(message)
            beside.replace(self._failure)
        except OSError as cleanup_error:
            logger.warning("could not clean up %s: %s", self.partial, cleanup_error)

    def _explained(self, error: BaseException) -> CheckpointError:
        """Say which checkpoint failed, what it needs and what is still intact."""
        if isinstance(error, CheckpointError):
            return error
        if not isinstance(error, OSError):
            return CheckpointError(f"cannot save checkpoint {self.folder}, process {self.rank} fails: {error!r}")
        needed_bytes = sum(s.values.numel() * s.values.element_size() for s in self.slices)
        steps = checkpoint_steps(self.folder.parent)
        intact = f"{step_folder(self.folder.parent, steps[-1])} is intact" if steps else "there is no earlier one"
        advice = "free some space or lower run.keep-last" if error.errno in NO_SPACE else "check the folder"
        return CheckpointError(
            f"cannot save checkpoint {self.folder}: {error.strerror or error}; process {self.rank} needs "
            f"{needed_bytes} bytes there ({needed_bytes / 1e6:.1f} MB); {intact}; {advice}, then start again"
        )

    @property
    def _failure(self) -> Path:
        return self.partial / f"failed-{self.attempt}"

    def _mine(self, ending: str) -> Path:
        return self.partial / f"rank-{self.rank:05d}{ending}"
