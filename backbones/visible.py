"""The visible layout: everything about indices that computing on visible tokens needs, for one mask.

It is built by pure numpy code (in a loader worker), travels with the batch and is read by the backbones, which
compute nothing about indices themselves.

Mask units are in raster order. The tokens of a stage are in *nested* order: unit by unit, and inside a unit by
its 2x2 cells from the coarsest to the finest, each cell's four children in timm's merging order (0,0), (1,0),
(0,1), (1,1). So merging 2x2 cells is a reshape of neighbouring rows, at every stage, without a gather; in the
last stage, where a unit is one token, nested order is raster order. ``StageLayout.coords`` says where each token is.

Legend: k visible units, n tokens of a stage, G groups, g slots per group.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from backbones.cost_models import Core, CostModel, Paper
from backbones.grouping import Grouping, group_windows

Pair = tuple[int, int]
Rule = Literal["optimal", "greedy", "largest_window"]
Indices = Any
"""Integer indices: numpy arrays as built, tensors once moved; int16 where they fit on the way from worker to device, int64 (as torch wants them) there."""

CHILDREN = ((0, 0), (1, 0), (0, 1), (1, 1))
"""Row and column of the children of a 2x2 cell, in the order in which timm's PatchMerging concatenates them."""


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """What a layout needs to know about one stage of a backbone."""

    grid: Pair
    """Rows and columns of tokens."""
    window: Pair
    """Rows and columns of an attention window."""
    shifts: tuple[Pair, ...]
    """The different window shifts of the stage's blocks."""
    channels: int
    """Width, for cost models that count the projections."""
    merges: bool
    """Whether the stage starts by merging 2x2 cells of the one before."""


@dataclass(frozen=True, kw_only=True)
class LayoutSpec:
    """The sizes of a backbone that its layouts follow from: plain numbers, so loader workers can have it."""

    img_size: Pair
    """Height and width in pixels."""
    patch: Pair
    """Height and width of a patch in pixels."""
    unit: Pair
    """Height and width of a mask unit in pixels: the stride of the last stage."""
    stages: tuple[StageSpec, ...]

    @property
    def units(self) -> Pair:
        """Rows and columns of mask units."""
        return self.img_size[0] // self.unit[0], self.img_size[1] // self.unit[1]


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """Windows of one shift put into groups of equal size, in which attention is computed.

    A padding slot holds a copy of token 0, attends to itself only and is seen by no other slot.
    """

    shift: Pair
    num_groups: int
    group_size: int
    token: Indices
    """[G*g] token of each slot; 0 for padding."""
    slot: Indices
    """[n] slot of each token: the inverse of `token`."""
    bias_index: Indices
    """[G, g, g] row of the relative position bias table per pair of slots; `masked` where there is no attention."""
    masked: int
    """The number of rows of the bias table, which stands for a score of minus infinity."""
    identity: bool
    """Whether slots are tokens: one group, nothing padded, nothing to gather."""
    grouping: Grouping
    """Which windows are together, and how far from the best that is."""


@dataclass(frozen=True, kw_only=True)
class StageLayout:
    """The visible tokens of one stage."""

    coords: Indices
    """[n, 2] row and column of each token in the stage's grid."""
    plans: tuple[GroupPlan, ...]
    """One plan per shift."""

    def plan(self, shift: Pair) -> GroupPlan:
        """Return the plan for blocks whose windows are shifted by ``shift``."""
        return next(plan for plan in self.plans if plan.shift == tuple(shift))


@dataclass(frozen=True, kw_only=True)
class VisibleLayout:
    """All indices that follow from one mask."""

    spec: LayoutSpec
    units: Indices
    """[k] raster numbers of the visible mask units, ascending."""
    masked_units: Indices
    """[L-k] raster numbers of the other units, ascending."""
    stages: tuple[StageLayout, ...]

    def to(self, device: torch.device | str) -> "VisibleLayout":
        """Return this layout as int64 tensors on ``device``, moved in one copy."""
        return self._repacked(lambda packed: packed.to(device, non_blocking=True).to(torch.int64))

    def pin_memory(self) -> "VisibleLayout":
        """Return this layout as tensors in one piece of page-locked memory."""
        return self._repacked(lambda packed: packed.pin_memory())

    def _repacked(self, change: Any) -> "VisibleLayout":
        arrays = [torch.as_tensor(array) for array in _arrays(self)]
        packed: Tensor = change(torch.cat([array.flatten() for array in arrays]))
        parts = packed.split([array.numel() for array in arrays])
        views = iter([part.view(array.shape) for part, array in zip(parts, arrays, strict=True)])
        return cast(VisibleLayout, _replaced(self, views))


def build_layout(
    spec: LayoutSpec,
    visible: Bool[np.ndarray, "rows cols"],
    *,
    rule: Rule = "optimal",
    cost: Literal["core", "paper"] | CostModel = "core",
) -> VisibleLayout:
    """Return the layout of the mask units that are ``visible``.

    Raises:
        ValueError: ``visible`` is not a boolean per mask unit, or nothing is visible.
    """
    visible = np.asarray(visible)
    if visible.dtype != np.bool_ or visible.shape != spec.units:
        raise ValueError(
            f"expected one bool per mask unit, {spec.units[0]}x{spec.units[1]} for images of "
            f"{spec.img_size[0]}x{spec.img_size[1]} px, got {visible.dtype} {visible.shape}"
        )
    if not visible.any():
        raise ValueError("no mask unit is visible: lower the mask ratio")
    units = np.argwhere(visible)
    return VisibleLayout(
        spec=spec,
        units=_compact(np.flatnonzero(visible)),
        masked_units=_compact(np.flatnonzero(~visible)),
        stages=tuple(_stage_layout(spec, stage, units, rule=rule, cost=cost) for stage in spec.stages),
    )


def nested_offsets(side: int) -> Int[np.ndarray, "side*side 2"]:
    """Return the rows and columns of a square of ``side`` tokens (a power of two) in nested order."""
    if side == 1:
        return np.zeros((1, 2), dtype=np.int64)
    inner = nested_offsets(side // 2)
    return (np.array(CHILDREN)[:, None] * (side // 2) + inner).reshape(-1, 2)


def window_ids(coords: Int[np.ndarray, "n 2"], *, window: Pair, shift: Pair) -> Int[np.ndarray, "n 2"]:
    """Return the row and column of the window of each token; with a shift the first windows are cut short."""
    before = (np.array(window) - np.array(shift)) % np.array(window)
    return (coords + before) // np.array(window)


def _stage_layout(
    spec: LayoutSpec, stage: StageSpec, units: Int[np.ndarray, "k 2"], *, rule: Rule, cost: str | CostModel
) -> StageLayout:
    side = stage.grid[0] // spec.units[0]
    coords = (units[:, None] * side + nested_offsets(side)).reshape(-1, 2)
    model = _COSTS[cost](stage) if isinstance(cost, str) else cost
    plans = (_group_plan(coords, stage, shift, rule=rule, cost=model) for shift in stage.shifts)
    return StageLayout(coords=_compact(coords), plans=tuple(plans))


def _group_plan(
    coords: Int[np.ndarray, "n 2"], stage: StageSpec, shift: Pair, *, rule: Rule, cost: CostModel
) -> GroupPlan:
    ids = window_ids(coords, window=stage.window, shift=shift) @ (1 << 20, 1)
    _, window, counts = np.unique(ids, return_inverse=True, return_counts=True)
    grouping = group_windows(counts.tolist(), rule=rule, cost=cost)
    num_groups, group_size = grouping.num_groups, grouping.group_size
    slot = _slots(window, grouping)
    token = np.zeros(num_groups * group_size, dtype=np.int64)
    token[slot] = np.arange(len(slot))
    slot_window = np.full(len(token), -1)
    slot_window[slot] = window
    masked = (2 * stage.window[0] - 1) * (2 * stage.window[1] - 1)
    shape = (num_groups, group_size)
    bias_index = _bias_index(coords[token].reshape(*shape, 2), slot_window.reshape(shape), window=stage.window)
    return GroupPlan(
        shift=shift,
        num_groups=num_groups,
        group_size=group_size,
        token=_compact(token),
        slot=_compact(slot),
        bias_index=_compact(bias_index),
        masked=masked,
        identity=num_groups == 1 and group_size == len(slot),
        grouping=grouping,
    )


def _slots(window: Int[np.ndarray, " n"], grouping: Grouping) -> Int[np.ndarray, " n"]:
    """Return the slot of each token: groups one after the other, tokens of a group in their own order."""
    group_of_window = np.empty(sum(map(len, grouping.groups)), dtype=np.int64)
    for group, windows in enumerate(grouping.groups):
        group_of_window[list(windows)] = group
    group = group_of_window[window]
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], np.arange(grouping.num_groups))
    slot = np.empty(len(window), dtype=np.int64)
    slot[order] = np.arange(len(window)) - first[group[order]] + group[order] * grouping.group_size
    return slot


def _bias_index(
    coords: Int[np.ndarray, "G g 2"], window_of_slot: Int[np.ndarray, "G g"], *, window: Pair
) -> Int[np.ndarray, "G g g"]:
    rows, cols = window
    # index(i, j) = (h_i - h_j + rows - 1) * (2 cols - 1) + w_i - w_j + cols - 1: a difference of one number per slot
    number = coords @ np.array([2 * cols - 1, 1])
    centre = (rows - 1) * (2 * cols - 1) + cols - 1
    index = number[:, :, None] - number[:, None, :] + centre
    together = (window_of_slot[:, :, None] == window_of_slot[:, None, :]) & (window_of_slot[:, :, None] >= 0)
    together |= np.eye(coords.shape[1], dtype=bool)  # a padding slot attends to itself: no row is empty
    return np.where(together, index, (2 * rows - 1) * (2 * cols - 1))


def _compact(indices: NDArray[Any]) -> NDArray[Any]:
    """Return indices in the smallest of int16 and int32: layouts cross from worker processes for every batch."""
    fits = indices.size == 0 or indices.max() <= np.iinfo(np.int16).max
    return np.ascontiguousarray(indices, dtype=np.int16 if fits else np.int32)


def _arrays(value: Any) -> list[Indices]:
    """Return all index arrays of a layout in the order of its fields."""
    if isinstance(value, np.ndarray | Tensor):
        return [value]
    if isinstance(value, tuple):
        return [array for item in cast(tuple[Any, ...], value) for array in _arrays(item)]
    if isinstance(value, VisibleLayout | StageLayout | GroupPlan):
        return [array for field in dataclasses.fields(value) for array in _arrays(getattr(value, field.name))]
    return []


def _replaced(value: Any, arrays: Any) -> Any:
    """Return ``value`` with its index arrays taken from ``arrays``, in the order of ``_arrays``."""
    if isinstance(value, np.ndarray | Tensor):
        return next(arrays)
    if isinstance(value, tuple):
        return tuple(_replaced(item, arrays) for item in cast(tuple[Any, ...], value))
    if isinstance(value, VisibleLayout | StageLayout | GroupPlan):
        fields = {f.name: _replaced(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


_COSTS = {
    "core": lambda stage: Core(),
    "paper": lambda stage: Paper(channels=stage.channels),
}
