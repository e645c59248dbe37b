"""What a run goes on from or back to: its newest whole checkpoint, one of another run, or its first weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint.slices import Kind
from engine.checkpoint.store import Checkpoint, CheckpointStore, open_checkpoint
from engine.config import RunConfig
from engine.distributed.engine import Engine
from engine.errors import UserError
from engine.run.folder import checkpoint_steps

SAME_DATA = ("manifest_digest", "shards_per_folder")
"""What a checkpoint says of its data that may not change in a run."""


class InitialState:
    """What a run goes back to before it has a checkpoint: each process's part of the first weights, on the host.

    The optimizer's moments are zero and the averaged weights are the weights.

    Args:
        engine: prepared, before its first step.
    """

    def __init__(self, engine: Engine) -> None:
        self._weights = {(s.name, s.offset): s.weight.to("cpu", copy=True) for s in engine.param_slices()}
        self._buffers = {name: buffer.to("cpu", copy=True) for name, buffer in engine.buffers().items()}

    def read(self, kind: Kind, name: str, offset: int, length: int) -> Tensor:
        """Read elements that this process owns, as ``Checkpoint.read`` does."""
        if kind == "buffer":
            return self._buffers[name].flatten()[offset : offset + length]
        if kind in ("weight", "ema"):
            return self._weights[name, offset]
        return torch.zeros(length)


def find_checkpoint(
    store: CheckpointStore, *, engine: Engine, branch_from: Path | None, metadata: Mapping[str, Any]
) -> Checkpoint | None:
    """Choose the checkpoint to go on from, None at the start; rank 0 chooses and checks it for all (collective).

    Raises:
        UserError: it is the run's own and was trained on other data than ``metadata`` says.
    """
    path: Path | None = None
    if engine.is_main:
        newest = store.latest()
        path = newest.path if newest is not None else branch_from
    path = engine.broadcast_object(path)
    if path is None:
        store.go_on_from(None)
        return None
    checkpoint = open_checkpoint(path, verify=engine.is_main)
    is_own = path.parent == store.folder
    store.go_on_from(checkpoint.step if is_own else None)
    if is_own:
        _check_same_data(checkpoint, metadata)
    return checkpoint


def check_start(config: RunConfig) -> None:
    """Refuse a run without checkpoints that is to start from another run's checkpoint which is not there.

    Raises:
        UserError: that checkpoint is not there, or not whole.
    """
    if config.branch_from is not None and not checkpoint_steps(config.folder / "checkpoints"):
        open_checkpoint(config.branch_from, verify=False)


def _check_same_data(checkpoint: Checkpoint, metadata: Mapping[str, Any]) -> None:
    """Refuse to go on with other samples; where they lie may change."""
    for name in SAME_DATA:
        stored, current = checkpoint.state.get(name), metadata.get(name)
        if stored is not None and stored != current:
            raise UserError(
                f"{checkpoint.path} was trained on other data than data.shards: {name.replace('_', ' ')} stored "
                f"{stored}, asked {current}; give the folders with the same content in the same order, another "
                "--run.folder, or start a new run from this checkpoint with --run.branch-from"
            )
