"""The visible layout of backbones with windows: tokens in nested order and windows in groups.

The tokens of a stage are in *nested* order: unit by unit, and inside a unit by
its 2x2 cells from the coarsest to the finest, each cell's four children in timm's merging order (0,0), (1,0),
(0,1), (1,1). So merging 2x2 cells is a reshape of neighbouring rows, at every stage, without a gather; in the
last stage, where a unit is one token, nested order is raster order. ``StageLayout.coords`` says where each token is.

Legend: k visible units, n tokens of a stage, G groups, g slots per group, W windows with visible tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from backbones.cost_models import Tiles
from backbones.grouping import Grouping, group_windows
from backbones.visible import Indices, LayoutSpec, Pair, Rule, compact

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
    """Width."""


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
    window: Indices
    """[G*g] number of each slot's window among those with visible tokens; padding slots have negative ones of their own."""
    number: Indices
    """[G*g] ``row * (2 cols - 1) + col`` of each slot's place in its window: for two slots of a window the row of the
    bias table is the difference of their numbers plus that of the table's middle row; 0 for padding."""
    member: Indices
    """[W, rows*cols] slot at each place of each window; -1 where no token is visible."""
    window_size: Pair
    """Rows and columns of a window."""
    bias_index: Indices
    """[G, g, g] row of the relative position bias table per pair of slots; `masked` where there is no attention. Empty by
    the rule "tiles", whose kernel finds the row itself."""
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


def window_stages(spec: LayoutSpec, units: Int[np.ndarray, "k 2"], *, rule: Rule) -> tuple[StageLayout, ...]:
    """Return the stages of a layout whose visible units have these rows and columns."""
    return tuple(_stage_layout(spec, stage, units, rule=rule) for stage in spec.stages)


def nested_offsets(side: int) -> Int[np.ndarray, "_ 2"]:
    """Return the rows and columns of a square of ``side`` tokens (a power of two) in nested order."""
    if side == 1:
        return np.zeros((1, 2), dtype=np.int64)
    inner = nested_offsets(side // 2)
    return (np.array(CHILDREN)[:, None] * (side // 2) + inner).reshape(-1, 2)


def window_ids(coords: Int[np.ndarray, "n 2"], *, window: Pair, shift: Pair) -> Int[np.ndarray, "n 2"]:
    """Return the row and column of the window of each token; with a shift the first windows are cut short."""
    before = (np.array(window) - np.array(shift)) % np.array(window)
    return (coords + before) // np.array(window)


def _stage_layout(spec: LayoutSpec, stage: StageSpec, units: Int[np.ndarray, "k 2"], *, rule: Rule) -> StageLayout:
    side = stage.grid[0] // spec.units[0]
    coords = (units[:, None] * side + nested_offsets(side)).reshape(-1, 2)
    plans = (group_plan(coords, window=stage.window, shift=shift, rule=rule) for shift in stage.shifts)
    return StageLayout(coords=compact(coords), plans=tuple(plans))


def group_plan(coords: Int[np.ndarray, "n 2"], *, window: Pair, shift: Pair, rule: Rule) -> GroupPlan:
    """Return the plan for tokens with these rows and columns, in any order."""
    ids = window_ids(coords, window=window, shift=shift) @ (1 << 20, 1)
    _, window_of_token, counts = np.unique(ids, return_inverse=True, return_counts=True)
    sizes = counts.tolist()
    grouping = group_windows(sizes, cost=Tiles()) if rule == "tiles" else group_windows(sizes, rule=rule)
    num_groups, group_size = grouping.num_groups, grouping.group_size
    slot = _slots(window_of_token, grouping)
    token = np.zeros(num_groups * group_size, dtype=np.int64)
    token[slot] = np.arange(len(slot))
    slot_window = -1 - np.arange(len(token)) % group_size
    slot_window[slot] = window_of_token
    place = (coords - np.array(shift)) % np.array(window)  # row and column in the window
    number = np.zeros(len(token), dtype=np.int64)
    number[slot] = place @ np.array([2 * window[1] - 1, 1])
    member = np.full((len(counts), window[0] * window[1]), -1)
    member[window_of_token, place @ np.array([window[1], 1])] = slot
    masked = (2 * window[0] - 1) * (2 * window[1] - 1)
    slots = (0 if rule == "tiles" else num_groups, group_size)
    listed = slots[0] * group_size
    bias_index = pair_rows(number[:listed].reshape(slots), slot_window[:listed].reshape(slots), masked=masked)
    return GroupPlan(
        shift=shift,
        num_groups=num_groups,
        group_size=group_size,
        token=compact(token),
        slot=compact(slot),
        window=compact(slot_window),
        number=compact(number),
        member=compact(member),
        window_size=window,
        bias_index=compact(bias_index),
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


def pair_rows(number: Any, window: Any, *, masked: int) -> Any:
    """Return [G, g, g], the row of the bias table per pair of slots, from `number` and `window` of a plan as [G, g].

    Both are arrays, or both tensors.
    """
    # index(i, j) = (h_i - h_j + rows - 1) * (2 cols - 1) + w_i - w_j + cols - 1: a difference of one number per slot
    index = number[:, :, None] - number[:, None, :] + masked // 2
    together = window[:, :, None] == window[:, None, :]
    return (index - masked) * together + masked
