"""The exponential moving average of the weights, cut like the training state: each process averages what it owns."""

import contextlib
from collections.abc import Iterator

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from engine.checkpoint.slices import TensorSlice
from engine.distributed.engine import Engine, Read
from engine.errors import UserError


class SlicedEma:
    """An average of the master weights that costs each process memory only for the elements it owns.

    Buffers, such as BatchNorm's running statistics, are not averaged.

    Args:
        engine: prepared; the average starts at its present weights.
        decay: share of the average that stays at each step.
        warmup: in the first steps use min(decay, (1 + steps) / (10 + steps)), so that the first weights fade sooner.
    """

    def __init__(self, engine: Engine, *, decay: float, warmup: bool = False) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"optimizer.ema-decay must lie in [0, 1), got {decay}; 0.9999 is usual for long runs")
        self._engine, self._decay, self._warmup = engine, decay, warmup
        self._averages = [run.weight.detach().clone() for run in engine.param_slices()]

    def decay(self, steps: int) -> float:
        """Return the decay of the update after ``steps`` earlier ones."""
        return min(self._decay, (1 + steps) / (10 + steps)) if self._warmup else self._decay

    @torch.no_grad()
    def update(self, steps: int = 0) -> None:
        """Move the average towards the present weights; ``steps`` counts the updates before, for the warm-up."""
        weights = [run.weight for run in self._engine.param_slices()]
        if weights:
            get_ema_multi_avg_fn(self.decay(steps))(self._averages, weights, steps)

    def slices(self) -> list[TensorSlice]:
        """Return what this process must save of the average."""
        return [
            TensorSlice(kind="ema", name=run.name, shape=run.shape, offset=run.offset, values=average)
            for run, average in zip(self._engine.param_slices(), self._averages, strict=True)
        ]

    def load(self, read: Read) -> None:
        """Replace the average by a saved one."""
        for run, average in zip(self._engine.param_slices(), self._averages, strict=True):
            average.copy_(read("ema", run.name, run.offset, average.numel()))

    @contextlib.contextmanager
    def swap(self) -> Iterator[None]:
        """Within it, the module of every process holds the averaged weights; afterwards exactly the former ones (collective)."""
        runs = self._engine.param_slices()
        kept = [run.weight.detach().clone() for run in runs]
        self._put(self._averages)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: list[torch.Tensor]) -> None:
        for run, value in zip(self._engine.param_slices(), values, strict=True):
            run.weight.copy_(value)
        self._engine.sync_weights()
