"""What a plan of attention groups costs, in the terms of one model.

A plan of ``G`` groups, each padded to ``g`` tokens, costs ``G * per_group(g)``. ``Core`` counts the attention core
alone, because our linear layers never see padding; ``Tiles`` counts the fused kernel's.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from engine.errors import UserError

SMALL_TILES, LARGEST_TILE = (16, 32), 64
"""Slots of the fused kernel's tiles: a tensor core's product wants 16, and more than 64x64 fp32 scores with their
gradients do not fit registers."""


class CostModel(Protocol):
    """Prices one group. Models are hashable, since plans are cached by them."""

    def padded(self, size: int) -> int:
        """Pad a group of ``size`` tokens to so many."""
        ...

    def per_group(self, size: int) -> float:
        """Price a group of ``size`` tokens with its padding: never falling in ``size``, inf where it is too large."""
        ...


@dataclass(frozen=True)
class Core:
    """Multiply-adds of scores and weighted sum of each channel: ``2 g^2``; every size is possible."""

    def padded(self, size: int) -> int:
        """Pad nothing."""
        return size

    def per_group(self, size: int) -> float:
        """Count all pairs, twice."""
        return 2 * size * size


@dataclass(frozen=True)
class Tiles:
    """Scores that the fused kernel computes: tiles of 16, 32 or 64 slots, larger groups in whole tiles of 64."""

    def padded(self, size: int) -> int:
        """Fill the tiles of a group of ``size`` tokens."""
        small = next((side for side in SMALL_TILES if size <= side), None)
        return small or -(-size // LARGEST_TILE) * LARGEST_TILE

    def per_group(self, size: int) -> float:
        """Count pairs of slots; a padding slot costs no memory traffic, so nothing else differs between plans."""
        return self.padded(size) ** 2


@dataclass(frozen=True)
class OneSize:
    """Groups of one size: the fewest are the best."""

    size: int

    def padded(self, size: int) -> int:
        """Pad every group to the one size.

        Raises:
            UserError: it is larger.
        """
        if size > self.size:
            raise UserError(f"a window of {size} tokens does not fit groups of {self.size}")
        return self.size

    def per_group(self, size: int) -> float:
        """Count groups."""
        return 1.0 if size <= self.size else math.inf
