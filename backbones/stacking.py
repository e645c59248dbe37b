"""Several micro-batches, each with a mask of its own, in one forward pass.

Masks of one ratio have equally many visible units, so the tokens of all micro-batches are rows of one tensor [s*b, n, c], s
micro-batches of b images. What depends on the mask (which pixels are read, which tokens share a window) is done micro-batch
by micro-batch; norms, projections and MLPs see all rows at once.

Legend: s micro-batches, b images of each, k visible units, n tokens, p values of a patch, c channels.
"""

from dataclasses import dataclass
from typing import Any

from backbones.visible import LayoutSpec, Pair, VisibleLayout


@dataclass(frozen=True, kw_only=True)
class VisibleStack:
    """The visible layouts of s micro-batches, with equally many visible units each."""

    layouts: tuple[VisibleLayout, ...]

    def __post_init__(self) -> None:
        sizes = sorted({len(layout.units) for layout in self.layouts})
        if len(sizes) != 1:
            raise ValueError(f"micro-batches of one forward pass need equally many visible units, got {sizes}")

    @property
    def spec(self) -> LayoutSpec:
        """The backbone's sizes."""
        return self.layouts[0].spec

    @property
    def stages(self) -> tuple["StageStack", ...]:
        """The stages, each of all micro-batches."""
        return tuple(StageStack(parts=parts) for parts in zip(*(layout.stages for layout in self.layouts), strict=True))


@dataclass(frozen=True, kw_only=True)
class StageStack:
    """One stage of s layouts."""

    parts: tuple[Any, ...]

    def plan(self, shift: Pair) -> tuple[Any, ...]:
        """Return each layout's plan for blocks whose windows are shifted by ``shift``."""
        return tuple(part.plan(shift) for part in self.parts)


Layout = VisibleLayout | VisibleStack
"""Of one micro-batch, or of several."""
