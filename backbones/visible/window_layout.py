"""The visible layout of backbones with windows: tokens in nested order and windows in groups.

The tokens of a stage are in *nested* order: unit by unit, and inside a unit by
its 2x2 cells from the coarsest to the finest, each cell's four children in timm's merging order (0,0), (1,0),
(0,1), (1,1). So merging 2x2 cells is a reshape of neighbouring rows, at every stage, without a gather; in the
last stage, where a unit is one token, nested order is raster order. ``StageLayout.coords`` says where each token is.

Legend: k visible units, n tokens of a stage, G groups, g slots per group, W windows, T tiles.
"""

from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
from jaxtyping import Int

from backbones.visible.grouping import Grouping, group_windows
from backbones.visible.layout import Indices, LayoutSpec, Rule, compact
from backbones.visible.window_slots import slots_in_groups, slots_in_tiles
from engine.terms import Size

CHILDREN = ((0, 0), (1, 0), (0, 1), (1, 1))
"""Row and column of the children of a 2x2 cell, in the order in which timm's PatchMerging concatenates them."""


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """What a layout needs to know about one stage of a backbone."""

    grid: Size
    """Rows and columns of tokens."""
    window: Size
    """Rows and columns of an attention window."""
    shifts: tuple[tuple[int, int], ...]
    """The different window shifts of the stage's blocks."""
    channels: int
    """Width."""


@dataclass(frozen=True, kw_only=True)
class GroupPlan(Generic[Indices]):
    """Windows of one shift put into groups of equal size, in which attention is computed.

    Module ``backbones.visible.window_slots`` places them. A padding slot holds a copy of token 0, attends to itself
    only and is seen by no other slot.
    """

    shift: tuple[int, int]
    num_groups: int
    group_size: int
    token: Indices
    """[G*g] token of each slot; 0 for padding."""
    slot: Indices
    """[n] slot of each token: the inverse of `token`."""
    window: Indices
    """[G*g] number of each slot's window among those with visible tokens; padding slots have negative ones of their
    own."""
    number: Indices
    """[G*g] ``row * (2 cols - 1) + col`` of each slot's place in its window: for two slots of a window the row of the
    bias table is the difference of their numbers plus that of the table's middle row; 0 for padding."""
    member: Indices
    """[W, rows*cols] slot at each place of each window; -1 where no token is visible. By the rule "tiles" there are
    rows for all windows, else for those with visible tokens."""
    tile: int
    """Slots that the fused kernel computes at once."""
    key_tiles: int
    """The most tiles of keys that a tile of queries meets."""
    tiles: Indices
    """[T, 4] first slot and end of each tile, and of the keys that it meets: none where no token is in it."""
    first_key: Indices
    """[G*g] the first of the keys that each slot's tile meets."""
    window_size: Size
    """Rows and columns of a window."""
    bias_index: Indices
    """[G, g, g] row of the relative position bias table per pair of slots; `masked` where there is no attention. Empty
    by the rule "tiles", whose kernel finds the row itself."""
    masked: int
    """The number of rows of the bias table, which stands for a score of minus infinity."""
    identity: bool
    """Whether slots are tokens: one group, nothing padded, nothing to gather."""
    grouping: Grouping | None
    """Which windows are together, and how far from the best that is; None where they lie one after the other."""


@dataclass(frozen=True, kw_only=True)
class StageLayout(Generic[Indices]):
    """The visible tokens of one stage."""

    coords: Indices
    """[n, 2] row and column of each token in the stage's grid."""
    plans: tuple[GroupPlan[Indices], ...]
    """One plan per shift."""

    def plan(self, shift: tuple[int, int]) -> GroupPlan[Indices]:
        """Find the plan for blocks whose windows are shifted by ``shift``."""
        return next(plan for plan in self.plans if plan.shift == tuple(shift))


def window_stages(spec: LayoutSpec, units: Int[np.ndarray, "k 2"], *, rule: Rule) -> tuple[StageLayout, ...]:
    """Plan the stages of a layout whose visible units have these rows and columns."""
    return tuple(_stage_layout(spec, stage, units, rule=rule) for stage in spec.stages)


def nested_offsets(side: int) -> Int[np.ndarray, "_ 2"]:
    """Walk through a square of ``side`` tokens (a power of two) in nested order: the row and column of each."""
    if side == 1:
        return np.zeros((1, 2), dtype=np.int64)
    inner = nested_offsets(side // 2)
    return (np.array(CHILDREN)[:, None] * (side // 2) + inner).reshape(-1, 2)


def window_ids(coords: Int[np.ndarray, "n 2"], *, window: Size, shift: tuple[int, int]) -> Int[np.ndarray, "n 2"]:
    """Find the row and column of each token's window; with a shift the first windows are cut short."""
    before = (np.array(window) - np.array(shift)) % np.array(window)
    return (coords + before) // np.array(window)


def _stage_layout(spec: LayoutSpec, stage: StageSpec, units: Int[np.ndarray, "k 2"], *, rule: Rule) -> StageLayout:
    side = stage.grid[0] // spec.units[0]
    coords = (units[:, None] * side + nested_offsets(side)).reshape(-1, 2)
    around = {"grid": stage.grid, "window": stage.window}
    plans = (group_plan(coords, **around, shift=shift, rule=rule) for shift in stage.shifts)
    return StageLayout(coords=compact(coords), plans=tuple(plans))


def group_plan(
    coords: Int[np.ndarray, "n 2"], *, grid: Size, window: Size, shift: tuple[int, int], rule: Rule
) -> GroupPlan:
    """Plan attention between tokens with these rows and columns in a grid, in any order."""
    ids = window_ids(coords, window=window, shift=shift) @ (1 << 20, 1)
    _, window_of_token, counts = np.unique(ids, return_inverse=True, return_counts=True)
    num_windows = int(np.prod(window_ids(np.array([grid]) - 1, window=window, shift=shift) + 1))
    if rule == "tiles":
        sizes = {"largest": window[0] * window[1], "num_windows": num_windows}
        slots = slots_in_tiles(window_of_token, counts.tolist(), **sizes)
    else:
        slots = slots_in_groups(window_of_token, group_windows(counts.tolist(), rule=rule))
    num_groups, group_size, slot = slots.num_groups, slots.group_size, slots.slot
    token = np.zeros(num_groups * group_size, dtype=np.int64)
    token[slot] = np.arange(len(slot))
    slot_window = -1 - np.arange(len(token)) % group_size
    slot_window[slot] = window_of_token
    place = (coords - np.array(shift)) % np.array(window)  # row and column in the window
    number = np.zeros(len(token), dtype=np.int64)
    number[slot] = place @ np.array([2 * window[1] - 1, 1])
    member = np.full((num_windows if rule == "tiles" else len(counts), window[0] * window[1]), -1)
    member[window_of_token, place @ np.array([window[1], 1])] = slot
    masked = (2 * window[0] - 1) * (2 * window[1] - 1)
    listed = (0 if rule == "tiles" else num_groups, group_size)
    pairs = (of_slot[: listed[0] * group_size].reshape(listed) for of_slot in (number, slot_window))
    return GroupPlan(
        shift=shift,
        num_groups=num_groups,
        group_size=group_size,
        token=compact(token),
        slot=compact(slot),
        window=compact(slot_window),
        number=compact(number),
        member=compact(member),
        tile=slots.tile,
        key_tiles=slots.key_tiles,
        tiles=compact(slots.tiles),
        first_key=compact(slots.first_key),
        window_size=window,
        bias_index=compact(pair_rows(*pairs, masked=masked)),
        masked=masked,
        identity=slots.grouping is not None and num_groups == 1 and group_size == len(slot),
        grouping=slots.grouping,
    )


def pair_rows(number: Any, window: Any, *, masked: int) -> Any:
    """Find the row of the bias table per pair of slots, [G, g, g], from `number` and `window` of a plan as [G, g].

    Both are arrays, or both tensors.
    """
    # index(i, j) = (h_i - h_j + rows - 1) * (2 cols - 1) + w_i - w_j + cols - 1: a difference of one number per slot
    index = number[:, :, None] - number[:, None, :] + masked // 2
    together = window[:, :, None] == window[:, None, :]
    return (index - masked) * together + masked
