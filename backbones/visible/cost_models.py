"""What a plan of attention groups costs, in the terms of one named model.

A plan of ``G`` groups, each padded to ``g`` tokens, costs ``G * per_group(g)``. ``core`` counts the attention core alone,
because our linear layers never see padding; ``paper`` also counts the four projections, as GreenMIM's published code
pays for them on padded groups; ``tiles`` counts the fused kernel's; ``measured`` reads times that were taken on the machine at hand.
"""

import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.errors import UserError

SMALL_TILES, LARGEST_TILE = (16, 32), 64
"""Slots of the fused kernel's tiles: a tensor core's product wants 16, and more than 64x64 fp32 scores with their gradients do not fit registers."""


class CostModel(Protocol):
    """Prices one group. Models are hashable, since plans are cached by them."""

    def padded(self, size: int) -> int:
        """Return the tokens that a group of ``size`` tokens is padded to."""
        ...

    def per_group(self, size: int) -> float:
        """Return the cost of a group of ``size`` tokens, padding included: never falling in ``size``, inf if too large."""
        ...


@dataclass(frozen=True)
class Core:
    """Multiply-adds of scores and weighted sum: ``2 g^2 C``."""

    channels: int = 1
    """C; it scales every plan's cost alike, so the choice of plan does not depend on it."""

    def padded(self, size: int) -> int:
        """Return ``size``: every size is possible."""
        return size

    def per_group(self, size: int) -> float:
        """Return ``2 g^2 C``."""
        return 2 * size * size * self.channels


@dataclass(frozen=True)
class Paper:
    """Multiply-adds of a whole attention layer on padded tokens: ``4 g C^2 + 2 g^2 C``."""

    channels: int

    def padded(self, size: int) -> int:
        """Return ``size``: every size is possible."""
        return size

    def per_group(self, size: int) -> float:
        """Return ``4 g C^2 + 2 g^2 C``."""
        return 4 * size * self.channels**2 + 2 * size * size * self.channels


@dataclass(frozen=True)
class Tiles:
    """Scores that the fused kernel computes: tiles of 16, 32 or 64 slots, larger groups in whole tiles of 64."""

    def padded(self, size: int) -> int:
        """Return the slots of the tiles of a group of ``size`` tokens."""
        small = next((side for side in SMALL_TILES if size <= side), None)
        return small or -(-size // LARGEST_TILE) * LARGEST_TILE

    def per_group(self, size: int) -> float:
        """Return the pairs of slots; a padding slot costs no memory traffic, so nothing else differs between plans."""
        return self.padded(size) ** 2


class Measured:
    """Measured cost of one group by group size; a group is padded to the cheapest size of the table that holds it."""

    def __init__(self, table: Mapping[int, float]) -> None:
        if not table or min(table) < 1 or not all(math.isfinite(cost) and cost > 0 for cost in table.values()):
            raise UserError(f"a measured cost table maps group sizes >= 1 to positive costs, got {dict(table)}")
        self._sizes: list[int] = []
        self._costs: list[float] = []
        for size, cost in sorted(table.items(), reverse=True):
            if not self._costs or cost < self._costs[-1]:  # a larger size that is no dearer replaces this one
                self._sizes.append(size)
                self._costs.append(cost)
        self._sizes.reverse()
        self._costs.reverse()

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """Return the model of a JSON file that maps group sizes to costs: ``{"16": 0.8, "32": 1.9}``."""
        try:
            return cls({int(size): float(cost) for size, cost in json.loads(path.read_text()).items()})
        except (OSError, AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{path}: expected a JSON object of group size: cost, {error}") from None

    def padded(self, size: int) -> int:
        """Return the cheapest size of the table that is at least ``size``."""
        k = bisect_left(self._sizes, size)
        if k == len(self._sizes):
            raise UserError(
                f"a group of {size} tokens exceeds the measured cost table, which ends at {self._sizes[-1]}"
            )
        return self._sizes[k]

    def per_group(self, size: int) -> float:
        """Return the cost of the cheapest size of the table that is at least ``size``; inf beyond its end."""
        k = bisect_left(self._sizes, size)
        return self._costs[k] if k < len(self._costs) else math.inf

    def __hash__(self) -> int:
        """Hash by value: plans are cached by their cost model."""
        return hash((tuple(self._sizes), tuple(self._costs)))

    def __eq__(self, other: object) -> bool:
        """Compare by value."""
        return isinstance(other, Measured) and (self._sizes, self._costs) == (other._sizes, other._costs)


def named_cost_model(name: str, *, channels: int = 1) -> CostModel:
    """Return the cost model called ``core``, ``paper``, ``tiles`` or ``measured:FILE.json``."""
    if name == "core":
        return Core(channels)
    if name == "tiles":
        return Tiles()
    if name == "paper":
        return Paper(channels)
    if name.startswith("measured:"):
        return Measured.read(Path(name.removeprefix("measured:")))
    raise UserError(f"unknown cost model {name!r}; expected core, paper, tiles or measured:FILE.json")
