"""Layout-free checkpoints: every process writes what it owns, any number of processes reads it.

``CheckpointStore`` belongs to the run that writes, ``open_checkpoint`` and ``newest_checkpoint`` to every reader. A
checkpoint is written in ``step-000010000.partial/`` and renamed when all of it is on disk, so a folder without that
ending is complete. The processes agree through these files alone: the writing threads use no collectives.
"""

import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from engine.checkpoint.format import DTYPES, check_file, read_index, slice_key
from engine.checkpoint.slices import Kind, TensorSlice
from engine.checkpoint.writing import Write
from engine.errors import UserError
from engine.run.folder import checkpoint_steps, step_folder

logger = logging.getLogger(__name__)

REMOVED = ".removed"
"""Ending of a checkpoint's folder while it is deleted."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint, whose tensors are read from memory-mapped files on demand."""

    path: Path
    """Its folder."""
    step: int
    """Optimizer steps that were done."""
    state: dict[str, Any]
    """JSON values saved beside the tensors."""
    _files: list[dict[str, Any]]
    _tensors: dict[str, dict[str, Any]]
    _open: dict[int, Any] = field(default_factory=dict[int, Any], repr=False, compare=False)

    def names(self, kind: Kind) -> tuple[str, ...]:
        """List the tensors of one kind."""
        return tuple(self._tensors.get(kind, ()))

    def shape(self, kind: Kind, name: str) -> tuple[int, ...]:
        """Give a whole tensor's shape."""
        return tuple(self._entry(kind, name)["shape"])

    def read(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> Tensor:
        """Read ``length`` elements of the flattened tensor from ``offset`` on (all that follow by default)."""
        entry = self._entry(kind, name)
        size = math.prod(entry["shape"])
        end = size if length is None else offset + length
        if not 0 <= offset <= end <= size:
            raise UserError(f"{kind} {name} in {self.path} has {size} elements, asked for {offset} to {end}")
        flat = torch.empty(end - offset, dtype=DTYPES[entry["dtype"]])
        for number, begin, count in entry["slices"]:  # as they were written, by any number of processes
            first, last = max(offset, begin), min(end, begin + count)
            if first < last:
                part = self._file(number).get_slice(slice_key(kind, name, begin))[first - begin : last - begin]
                flat[first - offset : last - offset] = part
        return flat

    def read_full(self, kind: Kind, name: str) -> Tensor:
        """Read a whole tensor in its shape."""
        return self.read(kind, name).reshape(self.shape(kind, name))

    def verify(self, *, digests: bool = True) -> None:
        """Compare every file's size, and its digest, with the index.

        Raises:
            UserError: a file is missing, truncated or changed; the message names it.
        """
        for file in self._files:
            check_file(
                self.path / file["name"], size_bytes=file["size_bytes"], digest=file["digest"] if digests else None
            )

    @torch.no_grad()
    def load_weights(self, module: nn.Module, *, kind: Kind = "weight", architecture: str | None = None) -> None:
        """Copy weights and buffers into ``module``; ``kind="ema"`` takes the averaged weights.

        Raises:
            UserError: names or shapes differ; the message says which, and names both architectures.
        """
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        # A buffer that is not persistent is filled only where an earlier version has saved it.
        persistent = module.state_dict().keys() & buffers.keys()
        targets: dict[tuple[Kind, str], Tensor] = {(kind, name): p for name, p in parameters.items()}
        targets |= {
            ("buffer", name): b for name, b in buffers.items() if name in persistent or self.has("buffer", name)
        }
        saved = {(k, name) for k in (kind, "buffer") for name in self.names(k)}
        faults = {
            "missing": sorted(name for k, name in targets.keys() - saved),
            "unexpected": sorted(name for k, name in saved - targets.keys()),
            "of another shape": sorted(
                f"{name} {self.shape(k, name)} in the checkpoint, {tuple(targets[k, name].shape)} in the model"
                for k, name in targets.keys() & saved
                if self.shape(k, name) != tuple(targets[k, name].shape)
            ),
        }
        if any(faults.values()):
            saved_name = self.state.get("architecture", "an unnamed architecture")
            model_name = architecture or getattr(module, "architecture", type(module).__name__)
            raise UserError(
                f"{self.path} holds weights of {saved_name}, which do not fit {model_name}: {_summary(faults)}; "
                f"use the checkpoint's own architecture, or another checkpoint"
            )
        for (k, name), target in targets.items():
            target.copy_(self.read_full(k, name))

    def has(self, kind: Kind, name: str) -> bool:
        """Whether the checkpoint holds this tensor."""
        return name in self._tensors.get(kind, {})

    def _entry(self, kind: Kind, name: str) -> dict[str, Any]:
        if not self.has(kind, name):
            raise UserError(f"{self.path} holds no {kind} {name!r}; it holds {len(self.names(kind))} of that kind")
        return self._tensors[kind][name]

    def _file(self, number: int) -> Any:
        if number not in self._open:
            self._open[number] = safe_open(self.path / self._files[number]["name"], framework="pt")
        return self._open[number]


def open_checkpoint(path: Path, *, verify: bool = True) -> Checkpoint:
    """Open a checkpoint folder; ``verify=False`` compares the sizes of its files only, not their digests.

    Raises:
        UserError: it is missing, partial, truncated or damaged.
    """
    if not path.is_dir():
        raise UserError(f"checkpoint {path} is no folder; expected something like runs/x/checkpoints/step-000010000")
    content = read_index(path)
    checkpoint = Checkpoint(
        path=path,
        step=content["step"],
        state=content["state"],
        _files=content["files"],
        _tensors=content["tensors"],
    )
    checkpoint.verify(digests=verify)
    return checkpoint


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Open the newest undamaged checkpoint in ``folder``, with a warning that names those passed over.

    Raises:
        UserError: there are checkpoints and all of them are damaged.
    """
    partial = [path.name for path in folder.glob("step-*.partial")]
    faults = [f"{name} was not finished" for name in partial]
    steps = checkpoint_steps(folder)
    for step in reversed(steps):
        try:
            checkpoint = open_checkpoint(step_folder(folder, step))
        except UserError as error:
            faults.append(str(error))
            continue
        if faults:
            logger.warning("passed over: %s; using %s", "; ".join(faults), checkpoint.path)
        return checkpoint
    if steps:
        raise UserError(
            f"every checkpoint is damaged: {'; '.join(faults)}; remove {folder} to start from the beginning"
        )
    if faults:
        logger.warning("passed over: %s; there is no checkpoint yet", "; ".join(faults))
    return None


class CheckpointStore:
    """The checkpoints of one run, written in the background by all of its processes together.

    All processes make the same calls in the same order. Process 0 clears what a killed run left half written when
    the store is made, so a collective must lie between making the stores and the first ``save``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int = 0,
        world_size: int = 1,
        keep_last: int = 2,
        keep_every_steps: int | None = None,
        timeout_s: float = 1800.0,
    ) -> None:
        self.folder = folder
        self._rank = rank
        self._world_size = world_size
        self._keep_last = keep_last
        self._keep_every_steps = keep_every_steps
        self._timeout_s = timeout_s
        self._newest: int | None = None
        self._attempt = 0
        self._copies = _HostCopies()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            self._clear_leftovers()

    def latest(self) -> Checkpoint | None:
        """Open the newest undamaged checkpoint; see ``newest_checkpoint``."""
        self.wait()
        checkpoint = newest_checkpoint(self.folder)
        self.go_on_from(checkpoint.step if checkpoint else None)
        return checkpoint

    def go_on_from(self, step: int | None) -> None:
        """Take the checkpoint of ``step`` for the newest: later ones, which are damaged, are written again."""
        self._newest = step

    def save(self, step: int, slices: Iterable[TensorSlice], state: dict[str, Any]) -> None:
        """Copy the slices to the host and write them in the background; ``state`` is JSON, the same on all processes.

        Waits for the write before it. A step that is already there is not written again.

        Raises:
            CheckpointError: the write before this one failed.
        """
        self.wait()
        if step == self._newest:
            return
        self._attempt += 1
        write = Write(
            folder=step_folder(self.folder, step),
            rank=self._rank,
            world_size=self._world_size,
            attempt=self._attempt,
            slices=self._copies.of(slices),
            state=json.dumps(state),
            deadline=time.monotonic() + self._timeout_s,
        )
        self._thread = threading.Thread(target=self._run, args=(step, write), name=f"checkpoint-{step}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, step: int, write: Write) -> None:
        try:
            write.run()
            self._newest = step
            if self._rank == 0:
                self._retain(step)
        except Exception as error:
            self._error = error

    def _retain(self, newest: int) -> None:
        """Remove old checkpoints; those past ``newest`` are damaged ones of a run that was rewound, and not counted."""
        steps = [step for step in checkpoint_steps(self.folder) if step <= newest]
        for step in steps[: -self._keep_last]:
            if not (self._keep_every_steps and step % self._keep_every_steps == 0):
                folder = step_folder(self.folder, step)
                # Renamed first: a kill in the middle must not leave half a checkpoint under a complete one's name.
                # No other folder is touched: the other processes may have begun the next checkpoint already.
                doomed = folder.with_suffix(REMOVED)
                folder.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        for partial in self.folder.glob("step-*.partial"):
            logger.warning("%s was not finished by the run that wrote it: removed", partial)
            shutil.rmtree(partial, ignore_errors=True)
        for doomed in self.folder.glob(f"step-*{REMOVED}"):
            shutil.rmtree(doomed, ignore_errors=True)


class _HostCopies:
    """Host memory that every save of a run copies to; allocating it anew costs more than the copying."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str, int], Tensor] = {}

    def of(self, slices: Iterable[TensorSlice]) -> list[TensorSlice]:
        """Copy the slices' values, which hold until the next call."""
        copies: list[TensorSlice] = []
        previous, self._buffers = self._buffers, {}
        on_gpu = False
        for s in slices:
            values = s.values.detach()
            on_gpu |= values.is_cuda
            key = (s.kind, s.name, s.offset)
            copy = previous.pop(key, None)
            if copy is None or (copy.shape, copy.dtype) != (values.shape, values.dtype):
                copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
            self._buffers[key] = copy.copy_(values, non_blocking=True)
            copies.append(replace(s, values=copy))
        if on_gpu:
            torch.cuda.synchronize()
        return copies


def _summary(faults: dict[str, list[str]], *, shown: int = 3) -> str:
    """Say of each fault how many tensors have it and name the first ``shown``."""
    parts: list[str] = []
    for fault, names in faults.items():
        if names:
            more = f", and {len(names) - shown} more" if len(names) > shown else ""
            parts.append(f"{len(names)} {fault} ({', '.join(names[:shown])}{more})")
    return "; ".join(parts)
