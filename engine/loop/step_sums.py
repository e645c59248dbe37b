"""Sums over the micro-batches since the last report, which stay on the device until their means are asked for."""

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.distributed.engine import Engine

COUNT, NORMS = "micro-batches", "gradient norms"


class StepSums:
    """Sums of one process, which ``means`` joins with the others'; one that is not finite stays so."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._sums: dict[str, Tensor] = {}
        self._count = 0.0
        self._norms: Tensor | float = 0.0

    def add(self, values: Mapping[str, Tensor], *, counts: bool) -> None:
        """Add one micro-batch's figures; one that does not count only says which figures there are."""
        for name, value in values.items():
            value = value.detach() if counts else torch.zeros_like(value)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += counts

    def add_step(self, norm: Tensor) -> None:
        """Count a step and its gradient norm."""
        self.num_steps += 1
        self._norms = self._norms + norm

    def means(self, engine: Engine, *, own: float = 0.0) -> tuple[dict[str, float], list[float]]:
        """Average the figures over all processes, and list every process's ``own`` (collective; waits for the device).

        Beside the figures: ``COUNT``, micro-batches that counted per process; ``NORMS``, the sum of the steps' norms.
        """
        sums, owns = engine.collect({**self._sums, COUNT: self._count, NORMS: self._norms}, own=own)
        counted = max(sums[COUNT], 1e-9)
        return {name: x if name in (COUNT, NORMS) else x / counted for name, x in sums.items()}, owns
