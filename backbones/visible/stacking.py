"""Several micro-batches, each with a mask of its own, in one forward pass.

Masks of one ratio have equally many visible units, so the tokens of all micro-batches are rows of one tensor
[s*b, n, c], s micro-batches of b images. What depends on the mask is which pixels are read, which is one gather, and
which tokens share a window: where plans have the same shapes (rule "tiles") the fused kernel takes all of them at once,
else attention's core runs micro-batch by micro-batch. Norms, projections and MLPs see all rows at once.

Legend: s micro-batches, b images of each, k visible units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from backbones.visible.layout import LayoutSpec, VisibleLayout
from backbones.visible.packing import joined
from backbones.visible.window_layout import GroupPlan
from engine.errors import UserError


@dataclass(frozen=True, kw_only=True)
class VisibleStack:
    """The visible layouts of s micro-batches, with equally many visible units each."""

    spec: LayoutSpec
    """The backbone's sizes."""
    unit_coords: Int[Tensor, "s k 2"]
    """Row and column of each visible unit."""
    stages: tuple["StageStack", ...]
    """The stages, each of all micro-batches."""

    @classmethod
    def of(cls, layouts: Sequence[VisibleLayout]) -> "VisibleStack":
        """Stack layouts that are on one device.

        Raises:
            UserError: they have not equally many visible units.
        """
        sizes = sorted({len(layout.units) for layout in layouts})
        if len(sizes) != 1:
            raise UserError(f"micro-batches of one forward pass need equally many visible units, got {sizes}")
        together = joined(layouts)
        joint = [None] * len(layouts[0].stages) if together is None else together.stages
        parts = zip(*(layout.stages for layout in layouts), strict=True)
        return cls(
            spec=layouts[0].spec,
            unit_coords=torch.stack([layout.stages[-1].coords for layout in layouts]),
            stages=tuple(StageStack(parts=part, joint=one) for part, one in zip(parts, joint, strict=True)),
        )


@dataclass(frozen=True, kw_only=True)
class StageStack:
    """One stage of s layouts."""

    parts: tuple[Any, ...]
    joint: Any | None
    """The stage with a first axis of s in all of its arrays, where these have the same shapes."""

    def plan(self, shift: tuple[int, int]) -> "PlanStack":
        """Stack the layouts' plans for blocks whose windows are shifted by ``shift``."""
        joint = None if self.joint is None else self.joint.plan(shift)
        return PlanStack(parts=tuple(part.plan(shift) for part in self.parts), joint=joint)


@dataclass(frozen=True, kw_only=True)
class PlanStack:
    """The plans of s layouts for one shift."""

    parts: tuple[GroupPlan, ...]
    joint: GroupPlan | None
    """One plan with a first axis of s in all of its arrays, where these have the same shapes."""


Layout = VisibleLayout | VisibleStack
"""Of one micro-batch, or of several."""
