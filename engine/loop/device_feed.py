"""Micro-batches on their way from the loader to the device: on a GPU the next one is copied while one is computed.

    side stream      copy 0   copy 1              copy 2
    compute stream            forward, backward 0 forward, backward 1 ...

The compute stream waits for the copy that it reads next and for no other, and the host waits for none. Pixels travel as
uint8 (``engine/pixels.py``), out of the page-locked memory that the loader puts them in.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.loop.micro_batch_feed import MicroBatchFeed
from engine.run.reporting import Phase
from engine.terms import MicroBatchKey

Timed = Callable[[Phase], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A micro-batch whose copy was started."""

    batch: dict[str, Any]
    """On the device, to be read once ``done``."""
    done: Any
    """The event of its end."""


class SideStream(Protocol):
    """What copies micro-batches beside the computing."""

    def copy(self, batch: dict[str, Any]) -> Copy:
        """Start the copy of a micro-batch to the device."""
        ...

    def hand_over(self, copy: Copy) -> dict[str, Any]:
        """Let what is computed from now on wait for a copy; return it, to be read and dropped at will."""
        ...


class CudaSideStream:
    """A CUDA stream beside the current one."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def copy(self, batch: dict[str, Any]) -> Copy:
        """Start the copy of a micro-batch to the device."""
        with torch.cuda.stream(self._stream):
            return Copy(batch=to_device(batch, self._device), done=self._stream.record_event())

    def hand_over(self, copy: Copy) -> dict[str, Any]:
        """Let the current stream wait for a copy, whose memory is reused only when that stream is past its last use."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(copy.done)
        for x in tensors_in(copy.batch):
            x.record_stream(computing)
        return copy.batch


class DeviceFeed:
    """Hands out the micro-batches of one process on its device, in the order of their keys (step, micro_batch).

    On a GPU it reads one ahead, and no further than the last step; on a CPU none.

    Args:
        device: where they go.
        micro_batches: numbers of this process's micro-batches of every step.
        last_step: number of steps of the run.
    """

    def __init__(self, device: torch.device, *, micro_batches: range, last_step: int) -> None:
        self._device, self._micro_batches, self._last_step = device, micro_batches, last_step
        self._feed, self._stream = MicroBatchFeed(), side_stream(device)
        self._ahead: tuple[MicroBatchKey, Copy | Exception] | None = None

    def restart(self, *, first_step: int, skip: Collection[MicroBatchKey]) -> None:
        """Let the next ``take`` begin at ``first_step``, without what is to skip; what was read ahead is forgotten."""
        self._feed.restart(first_step=first_step, skip=skip)
        self._ahead = None

    def take(self, batches: Iterator[dict[str, Any]], *, key: MicroBatchKey, timed: Timed) -> dict[str, Any]:
        """Take the micro-batch ``key`` on the device (``MicroBatchFeed.take``); ``timed`` measures waiting and copying.

        An error of one that was read ahead is raised when its turn comes: the steps before it are still done and saved.
        """
        if self._stream is None:
            with timed("data"):
                batch = self._feed.take(batches, key=key)
            with timed("transfer"):
                return to_device(batch, self._device)
        (ahead, copy), self._ahead = self._ahead or self._start(self._stream, batches, key=key, timed=timed), None
        assert ahead == key, f"micro-batch {key} was asked for, and {ahead} comes next"
        if isinstance(copy, Exception):
            raise copy
        # The next copy starts before this micro-batch is computed on.
        following = self._following(key)
        if following is not None:
            self._ahead = self._start(self._stream, batches, key=following, timed=timed)
        with timed("transfer"):
            return self._stream.hand_over(copy)

    def _start(
        self, stream: SideStream, batches: Iterator[dict[str, Any]], *, key: MicroBatchKey, timed: Timed
    ) -> tuple[MicroBatchKey, Copy | Exception]:
        """Wait for a micro-batch and start its copy, or return the error of reading it."""
        try:
            with timed("data"):
                batch = self._feed.take(batches, key=key)
        except Exception as error:
            return key, error
        with timed("transfer"):
            return key, stream.copy(batch)

    def _following(self, key: MicroBatchKey) -> MicroBatchKey | None:
        """Find the key after ``key``, None after the last one of the run."""
        step, number = key
        if number != self._micro_batches[-1]:
            return step, number + 1
        return (step + 1, self._micro_batches[0]) if step + 1 < self._last_step else None


def side_stream(device: torch.device) -> SideStream | None:
    """Make what copies beside the computing on ``device``, None where it is the CPU."""
    return CudaSideStream(device) if device.type == "cuda" else None


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move a micro-batch's tensors to ``device``, also those of dataclasses that have a method for it."""
    return {name: _moved(value, device) for name, value in batch.items()}


def tensors_in(value: Any) -> list[Tensor]:
    """List all tensors in dicts, lists, tuples and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [x for item in value.values() for x in tensors_in(item)]
    if isinstance(value, list | tuple):
        return [x for item in value for x in tensors_in(item)]
    if dataclasses.is_dataclass(value):
        return [x for field in dataclasses.fields(value) for x in tensors_in(getattr(value, field.name))]
    return []


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if dataclasses.is_dataclass(value) and hasattr(value, "to"):
        return value.to(device)  # pyright: ignore[reportAttributeAccessIssue]
    return value
