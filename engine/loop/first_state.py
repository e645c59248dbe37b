"""What a run goes back to before it has a checkpoint: its first weights, kept by each process as far as it owns them."""

import torch
from torch import Tensor

from engine.checkpoint.slices import Kind
from engine.distributed.engine import Engine


class FirstState:
    """Copies of the first weights on the host; the optimizer's moments are zero, the averaged weights the same.

    Args:
        engine: prepared, before its first step.
    """

    def __init__(self, engine: Engine) -> None:
        self._weights = {(run.name, run.offset): run.weight.to("cpu", copy=True) for run in engine.owned_runs()}
        self._buffers = {name: buffer.to("cpu", copy=True) for name, buffer in engine.buffers().items()}

    def read(self, kind: Kind, name: str, offset: int, length: int) -> Tensor:
        """Return a run of elements that this process owns, like ``Checkpoint.read``."""
        if kind == "buffer":
            return self._buffers[name].flatten()[offset : offset + length]
        if kind in ("weight", "ema"):
            return self._weights[name, offset]
        return torch.zeros(length)
