"""The exponential moving average of the weights, cut like the training state: each process averages what it owns."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from engine.checkpoint.slices import TensorSlice
from engine.distributed.engine import Engine, ReadSlice


class SlicedEma:
    """An average of the master weights that costs each process memory for the elements that it owns.

    Buffers, such as BatchNorm's running statistics, are not averaged.

    Args:
        engine: prepared; the average starts at its present weights.
        decay: share of the average that stays at each step.
    """

    def __init__(self, engine: Engine, *, decay: float) -> None:
        self._engine = engine
        self._slices = engine.param_slices()
        self._averages = [own.weight.detach().clone() for own in self._slices]
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        if self._slices:
            self._average(self._averages, [own.weight for own in self._slices], 0)

    def slices(self) -> list[TensorSlice]:
        """List what this process must save of the average."""
        return [
            TensorSlice(kind="ema", name=own.name, shape=own.shape, offset=own.offset, values=average)
            for own, average in zip(self._slices, self._averages, strict=True)
        ]

    def load(self, read: ReadSlice) -> None:
        """Replace the average by a saved one."""
        for own, average in zip(self._slices, self._averages, strict=True):
            average.copy_(read("ema", own.name, own.offset, average.numel()))

    @contextlib.contextmanager
    def swap(self) -> Iterator[None]:
        """Let all modules hold the averaged weights within the context, the exact former ones after it (collective)."""
        former = [own.weight.detach().clone() for own in self._slices]
        self._set_weights(self._averages)
        try:
            yield
        finally:
            self._set_weights(former)

    @torch.no_grad()
    def _set_weights(self, values: list[Tensor]) -> None:
        for own, value in zip(self._slices, values, strict=True):
            own.weight.copy_(value)
        self._engine.sync_weights()
