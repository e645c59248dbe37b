"""The visible layout: everything about indices that computing on visible tokens needs, for one mask.

It is built by pure numpy code (in a loader worker), travels with the batch and is read by the backbones, which
compute nothing about indices themselves. What it holds per stage is each backbone's own: its ``LayoutSpec`` names
the function that builds it. Mask units are in raster order.

Legend: k visible units, n tokens of a stage.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import UserError
from engine.terms import Size

Rule = Literal["optimal", "greedy", "largest_window", "tiles"]
Indices = Any
"""Integer indices: numpy arrays as built, tensors once moved; int16 where they fit on the way from worker to device, int64 (as torch wants them) there."""
StageBuilder = Callable[..., tuple[Any, ...]]
"""``(spec, units [k, 2], *, rule)`` -> one frozen dataclass of indices per stage; a module's function, so that it pickles."""


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
    """What `build` needs to know about each stage, with the stage's `grid` (rows and columns of tokens) and `channels`."""
    build: StageBuilder
    """Makes the stages of a layout."""

    @property
    def units(self) -> Size:
        """Rows and columns of mask units."""
        return self.img_size[0] // self.unit[0], self.img_size[1] // self.unit[1]


@dataclass(frozen=True, kw_only=True)
class VisibleLayout:
    """All indices that follow from one mask."""

    spec: LayoutSpec
    units: Indices
    """[k] raster numbers of the visible mask units, ascending."""
    stages: tuple[Any, ...]
    """What the backbone's builder made, stage by stage; each has the tokens' `coords` [n, 2] in the stage's grid."""

    def to(self, device: torch.device | str) -> "VisibleLayout":
        """Return this layout as int64 tensors on ``device``, moved in one copy."""
        return self._repacked(lambda packed: packed.to(device, non_blocking=True).to(torch.int64))

    def pin_memory(self) -> "VisibleLayout":
        """Return this layout as tensors in one piece of page-locked memory."""
        return self._repacked(lambda packed: packed.pin_memory())

    def _repacked(self, change: Any) -> "VisibleLayout":
        return _packed([self], change)


def joined(layouts: Sequence[VisibleLayout]) -> VisibleLayout | None:
    """Return one layout whose arrays [s, ...] are those of s layouts on one device, None where their shapes differ."""
    shapes = {tuple(array.shape for array in _arrays(layout)) for layout in layouts}
    return _packed(layouts, lambda packed: packed) if len(shapes) == 1 else None


def _packed(layouts: Sequence[VisibleLayout], change: Callable[[Tensor], Tensor]) -> VisibleLayout:
    """Return the first layout with arrays that are views of one tensor; of several layouts they have a first axis."""
    arrays = [[torch.as_tensor(array) for array in same] for same in zip(*map(_arrays, layouts), strict=True)]
    packed = change(_end_to_end([array for same in arrays for array in same]))
    parts = packed.split([sum(array.numel() for array in same) for same in arrays])
    first = (len(layouts),) if len(layouts) > 1 else ()
    views = iter([part.view(*first, *same[0].shape) for part, same in zip(parts, arrays, strict=True)])
    return cast(VisibleLayout, _replaced(layouts[0], views))


def build_layout(
    spec: LayoutSpec, visible: Shaped[np.ndarray, "rows cols"], *, rule: Rule = "optimal"
) -> VisibleLayout:
    """Return the layout of the mask units that are ``visible``; ``rule`` says how windows are grouped, where there are any.

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
    """Return how many indices a layout or a stage of one holds: they grow with what is computed beside the tokens."""
    return sum(math.prod(array.shape) for array in _arrays(value))


def compact(indices: NDArray[Any]) -> NDArray[Any]:
    """Return indices in the smallest of int16 and int32: layouts cross from worker processes for every batch."""
    fits = indices.size == 0 or max(indices.max(), -indices.min()) <= np.iinfo(np.int16).max
    return np.ascontiguousarray(indices, dtype=np.int16 if fits else np.int32)


def _end_to_end(arrays: list[Tensor]) -> Tensor:
    """Return arrays as one; those that are its parts already are not copied, which would be out of page-locked memory."""
    whole, sizes = arrays[0]._base, [array.numel() for array in arrays]
    places = zip(arrays, itertools.accumulate(sizes, initial=0), strict=False)
    are_parts = all(array._base is whole and array.storage_offset() == start for array, start in places)
    if whole is not None and are_parts and whole.numel() == sum(sizes):
        return whole
    return torch.cat([array.flatten() for array in arrays])


def _arrays(value: Any) -> list[Indices]:
    """Return all index arrays of a layout in the order of its fields."""
    if isinstance(value, np.ndarray | Tensor):
        return [value]
    if isinstance(value, tuple):
        return [array for item in cast(tuple[Any, ...], value) for array in _arrays(item)]
    return [array for name in _index_fields(value) for array in _arrays(getattr(value, name))]


def _replaced(value: Any, arrays: Any) -> Any:
    """Return ``value`` with its index arrays taken from ``arrays``, in the order of ``_arrays``."""
    if isinstance(value, np.ndarray | Tensor):
        return next(arrays)
    if isinstance(value, tuple):
        return tuple(_replaced(item, arrays) for item in cast(tuple[Any, ...], value))
    names = _index_fields(value)
    return dataclasses.replace(value, **{n: _replaced(getattr(value, n), arrays) for n in names}) if names else value


def _index_fields(value: Any) -> list[str]:
    """Return the fields of a dataclass that may hold indices; a spec holds none."""
    if not dataclasses.is_dataclass(value) or isinstance(value, LayoutSpec):
        return []
    return [field.name for field in dataclasses.fields(value)]
