"""Visible layouts as tensors: all their indices are views of one tensor, so that they move in one copy."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from backbones.visible.layout import VisibleLayout, arrays_of, index_fields


def moved(layout: VisibleLayout[Any], device: torch.device | str) -> VisibleLayout[Tensor]:
    """Move a layout to a device, as int64 tensors."""
    return _packed([layout], lambda packed: packed.to(device, non_blocking=True).to(torch.int64))


def pinned(layout: VisibleLayout[Any]) -> VisibleLayout[Tensor]:
    """Copy a layout into page-locked memory."""
    return _packed([layout], lambda packed: packed.pin_memory())


def joined(layouts: Sequence[VisibleLayout[Tensor]]) -> VisibleLayout[Tensor] | None:
    """Join s layouts on one device to one whose arrays are [s, ...]; None where their shapes differ."""
    shapes = {tuple(array.shape for array in arrays_of(layout)) for layout in layouts}
    return _packed(layouts, lambda packed: packed) if len(shapes) == 1 else None


def _packed(layouts: Sequence[VisibleLayout[Any]], change: Callable[[Tensor], Tensor]) -> VisibleLayout[Tensor]:
    """Give the first layout arrays that are views of one changed tensor; of several layouts they have a first axis."""
    arrays = [[torch.as_tensor(array) for array in same] for same in zip(*map(arrays_of, layouts), strict=True)]
    packed = change(_end_to_end([array for same in arrays for array in same]))
    parts = packed.split([sum(array.numel() for array in same) for same in arrays])
    first = (len(layouts),) if len(layouts) > 1 else ()
    views = iter([part.view(*first, *same[0].shape) for part, same in zip(parts, arrays, strict=True)])
    return _with_arrays(layouts[0], views)


def _end_to_end(arrays: list[Tensor]) -> Tensor:
    """Join arrays to one; those that are its parts already are not copied, which would be out of page-locked memory."""
    whole, sizes = arrays[0]._base, [array.numel() for array in arrays]
    places = zip(arrays, itertools.accumulate(sizes, initial=0), strict=False)
    are_parts = all(array._base is whole and array.storage_offset() == start for array, start in places)
    if whole is not None and are_parts and whole.numel() == sum(sizes):
        return whole
    return torch.cat([array.flatten() for array in arrays])


def _with_arrays(value: Any, arrays: Iterator[Tensor]) -> Any:
    """Copy a layout or a part of one with other index arrays, in the order of ``arrays_of``."""
    if hasattr(value, "shape"):
        return next(arrays)
    if isinstance(value, tuple):
        return tuple(_with_arrays(item, arrays) for item in value)
    names = index_fields(value)
    return dataclasses.replace(value, **{n: _with_arrays(getattr(value, n), arrays) for n in names}) if names else value
