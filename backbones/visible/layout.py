"""The visible layout: everything about indices that computing on visible tokens needs, for one mask.

It is built by pure numpy code (in a loader worker), travels with the batch and is read by the backbones, which
compute nothing about indices themselves. What it holds per stage is each backbone's own: its ``LayoutSpec`` names
the function that builds it. Mask units are in raster order. Torch is imported when a layout becomes tensors.

Legend: k visible units, n tokens of a stage.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray

from engine.errors import UserError
from engine.terms import Size

Rule = Literal["optimal", "greedy", "largest_window", "tiles"]
"""How windows are put together (``backbones.visible.grouping``, ``backbones.visible.window_slots``)."""
Indices = TypeVar("Indices")
"""Integer indices: numpy arrays as built, int16 where they fit, since layouts cross from worker processes for every
batch; int64 tensors, as torch wants them, once moved."""
StageBuilder = Callable[..., tuple[Any, ...]]
"""``(spec, units [k, 2], *, rule)`` -> one frozen dataclass of indices per stage; a module's function, so that it
pickles."""


@dataclass(frozen=True, kw_only=True)
class LayoutSpec:
    """The sizes of a backbone that its layouts follow from: plain numbers, so loader workers can have it."""

    img_size: Size
    """Height and width in pixels."""
    patch: Size
    """Height and width of a first-stage token in pixels."""
    unit: Size
    """Height and width of a mask unit in pixels: the stride of the last stage."""
    stages: tuple[Any, ...]
    """What `build` needs to know of each stage, with its `grid` (rows and columns of tokens) and `channels`."""
    build: StageBuilder
    """Makes the stages of a layout."""

    @property
    def units(self) -> Size:
        """Rows and columns of mask units."""
        return self.img_size[0] // self.unit[0], self.img_size[1] // self.unit[1]


@dataclass(frozen=True, kw_only=True)
class VisibleLayout(Generic[Indices]):
    """All indices that follow from one mask."""

    spec: LayoutSpec
    units: Indices
    """[k] raster numbers of the visible mask units, ascending."""
    stages: tuple[Any, ...]
    """What the backbone's builder made, stage by stage; each has the tokens' `coords` [n, 2] in the stage's grid."""

    def to(self, device: Any) -> "VisibleLayout[Any]":
        """Move all indices to a device, as int64 tensors and in one copy."""
        from backbones.visible.packing import moved  # noqa: PLC0415 # imports torch, which building does without

        return moved(self, device)

    def pin_memory(self) -> "VisibleLayout[Any]":
        """Copy all indices into one piece of page-locked memory; the loader calls this."""
        from backbones.visible.packing import pinned  # noqa: PLC0415 # imports torch, which building does without

        return pinned(self)


def build_layout(
    spec: LayoutSpec, visible: Shaped[np.ndarray, "rows cols"], *, rule: Rule = "optimal"
) -> VisibleLayout[NDArray[Any]]:
    """Lay out the mask units that are ``visible``; ``rule`` says how windows are grouped, where there are any.

    Raises:
        UserError: ``visible`` is not a boolean per mask unit, or nothing is visible.
    """
    visible = np.asarray(visible)
    if visible.dtype != np.bool_ or visible.shape != spec.units:
        raise UserError(
            f"expected one bool per mask unit, {spec.units[0]}x{spec.units[1]} for images of "
            f"{spec.img_size[0]}x{spec.img_size[1]} px, got {visible.dtype} {visible.shape}"
        )
    if not visible.any():
        raise UserError("no mask unit is visible: lower the mask ratio")
    return VisibleLayout(
        spec=spec,
        units=compact(np.flatnonzero(visible)),
        stages=spec.build(spec, np.argwhere(visible), rule=rule),
    )


def num_indices(value: Any) -> int:
    """Count the indices of a layout or of a stage of one: they grow with what is computed beside the tokens."""
    return sum(math.prod(array.shape) for array in arrays_of(value))


def compact(indices: NDArray[Any]) -> NDArray[Any]:
    """Store indices in the smallest of int16 and int32."""
    fits = indices.size == 0 or max(indices.max(), -indices.min()) <= np.iinfo(np.int16).max
    return np.ascontiguousarray(indices, dtype=np.int16 if fits else np.int32)


def arrays_of(value: Any) -> list[Any]:
    """All index arrays, or tensors, of a layout or of a part of one, in the order of its fields."""
    if hasattr(value, "shape"):
        return [value]
    if isinstance(value, tuple):
        return [array for item in value for array in arrays_of(item)]
    return [array for name in index_fields(value) for array in arrays_of(getattr(value, name))]


def index_fields(value: Any) -> list[str]:
    """The fields of a dataclass that may hold indices; a spec holds none."""
    if not dataclasses.is_dataclass(value) or isinstance(value, LayoutSpec):
        return []
    return [field.name for field in dataclasses.fields(value)]
