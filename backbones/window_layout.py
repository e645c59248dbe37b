"""The visible layout of backbones with windows: tokens in nested order and windows in groups.

The tokens of a stage are in *nested* order: unit by unit, and inside a unit by
its 2x2 cells from the coarsest to the finest, each cell's four children in timm's merging order (0,0), (1,0),
(0,1), (1,1). So merging 2x2 cells is a reshape of neighbouring rows, at every stage, without a gather; in the
last stage, where a unit is one token, nested order is raster order. ``StageLayout.coords`` says where each token is.

Legend: k visible units, n tokens of a stage, G groups, g slots per group.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

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
    grouping = group_windows(counts.tolist(), rule=rule)
    num_groups, group_size = grouping.num_groups, grouping.group_size
    slot = _slots(window_of_token, grouping)
    token = np.zeros(num_groups * group_size, dtype=np.int64)
    token[slot] = np.arange(len(slot))
    slot_window = np.full(len(token), -1)
    slot_window[slot] = window_of_token
    masked = (2 * window[0] - 1) * (2 * window[1] - 1)
    shape = (num_groups, group_size)
    bias_index = _bias_index(coords[token].reshape(*shape, 2), slot_window.reshape(shape), window=window)
    return GroupPlan(
        shift=shift,
        num_groups=num_groups,
        group_size=group_size,
        token=compact(token),
        slot=compact(slot),
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
