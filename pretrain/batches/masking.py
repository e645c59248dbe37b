"""Batch-wise random masking: one mask of whole units for a micro-batch (GreenMIM, section 3; methods of MAE).

A unit is as large as the encoder's total stride (32 px), so that a 2x2 merge never mixes visible and masked tokens.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from engine.randomness import stream
from engine.terms import Size
from pretrain.config import num_visible


@dataclass(frozen=True, kw_only=True)
class UnitMask:
    """Which units of the grid are visible, in raster order."""

    visible: Bool[np.ndarray, "rows cols"]
    """True where the encoder sees the unit."""

    @property
    def visible_units(self) -> Int[np.ndarray, " k"]:
        """Raster indices of the visible units, ascending."""
        return np.flatnonzero(self.visible)

    @property
    def predicted_units(self) -> Int[np.ndarray, " p"]:
        """Raster indices of the units that the loss is over: the masked ones, or all where none is masked."""
        masked = np.flatnonzero(~self.visible)
        return masked if len(masked) else np.arange(self.visible.size)


def unit_mask(grid: Size, *, mask_ratio: float, seed: int, step: int, micro_batch: int) -> UnitMask:
    """Draw the mask that belongs to ``(seed, step, micro_batch)`` on a grid of ``(rows, cols)`` units."""
    num_units = grid[0] * grid[1]
    order = stream(seed, "mask", step, micro_batch).permutation(num_units)
    visible = np.zeros(num_units, dtype=bool)
    visible[order[: num_visible(num_units, mask_ratio)]] = True
    return UnitMask(visible=visible.reshape(grid))
