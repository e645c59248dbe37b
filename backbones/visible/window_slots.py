"""Where windows lie among the slots that attention is computed in, and the tiles that the fused kernel cuts slots into.

A tile is a run of slots that the kernel computes at once, against those keys that its queries can meet. Under the rules
for groups a group is cut into tiles, and each meets its whole group. The rule "tiles" is made for the kernel: slots and
tiles are as many for every mask with as many visible units, so nothing is compiled or recorded again from mask to mask.

* Where every window fits into a tile, windows are packed into few tiles (the fewest, nearly always), and each meets
  itself only.
* Larger windows lie one after the other, and each tile meets the windows that reach into it.

Legend: n tokens, W windows with tokens, S slots, T tiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from backbones.visible.cost_models import LARGEST_TILE, OneSize, Tiles
from backbones.visible.grouping import Grouping, group_windows

_NODES = 10
"""Search nodes for a packing into fewer tiles: one tile more or less costs a GPU next to nothing, but a worker's time
counts."""


@dataclass(frozen=True, kw_only=True)
class WindowSlots:
    """Windows at their slots, in groups of equal size, and the tiles over these."""

    num_groups: int
    group_size: int
    slot: Int[np.ndarray, " n"]
    """Slot of each token."""
    tile: int
    """Slots of the largest tile."""
    key_tiles: int
    """The most tiles of keys that a tile meets."""
    tiles: Int[np.ndarray, "T 4"]
    """First slot and end of each tile, one after the other, and of the keys that it meets: none where no token is in
    it."""
    grouping: Grouping | None
    """Which windows share a group; None where all lie one after the other."""

    @property
    def first_key(self) -> Int[np.ndarray, " S"]:
        """The first of the keys that each slot's tile meets."""
        first, end, first_key, _ = self.tiles.T
        return np.repeat(first_key, end - first)


def slots_in_groups(window: Int[np.ndarray, " n"], grouping: Grouping) -> WindowSlots:
    """Place the tokens of these windows in slots: groups one after the other, tokens of a group in their own order."""
    num_groups, group_size = grouping.num_groups, grouping.group_size
    tile = min(Tiles().padded(group_size), LARGEST_TILE)
    tiles_of_group = -(-group_size // tile)
    group = np.repeat(np.arange(num_groups) * group_size, tiles_of_group)
    first = group + np.tile(np.arange(tiles_of_group) * tile, num_groups)
    end = group + group_size
    return WindowSlots(
        num_groups=num_groups,
        group_size=group_size,
        slot=_grouped(window, grouping),
        tile=tile,
        key_tiles=tiles_of_group,
        tiles=np.stack([first, np.minimum(first + tile, end), group, end], axis=1),
        grouping=grouping,
    )


def slots_in_tiles(
    window: Int[np.ndarray, " n"], counts: Sequence[int], *, largest: int, num_windows: int
) -> WindowSlots:
    """Place the tokens of these windows in slots by the rule "tiles".

    Args:
        window: of each token, among those with tokens.
        counts: tokens of each of these.
        largest: places of a window.
        num_windows: all that there are, with tokens or without.
    """
    largest = min(largest, len(window))
    if largest > LARGEST_TILE:
        return _in_a_row(window, np.array(counts), largest=largest)
    tile = Tiles().padded(largest)
    grouping = group_windows(counts, cost=OneSize(tile), max_nodes=_NODES)
    num_tiles = most_tiles(tile=tile, num_tokens=len(window), num_windows=num_windows)
    first = np.arange(num_tiles) * tile
    end = first + tile
    return WindowSlots(
        num_groups=num_tiles,
        group_size=tile,
        slot=_grouped(window, grouping),
        tile=tile,
        key_tiles=1,
        tiles=np.stack([first, end, first, np.where(first < grouping.num_groups * tile, end, first)], axis=1),
        grouping=grouping,
    )


def most_tiles(*, tile: int, num_tokens: int, num_windows: int) -> int:
    """Count the tiles that are enough for any ``num_windows`` windows with ``num_tokens`` tokens in all.

    In the best packing no two tiles would fit into one: the tokens of T > 1 tiles are at least T (tile + 1) / 2.
    """
    return min(num_windows, max(1, 2 * num_tokens // (tile + 1)))


def _in_a_row(window: Int[np.ndarray, " n"], counts: Int[np.ndarray, " W"], *, largest: int) -> WindowSlots:
    tile, num_tokens = LARGEST_TILE, len(window)
    first = np.arange(0, num_tokens, tile)
    last = np.minimum(first + tile, num_tokens) - 1
    end_of_window = np.cumsum(counts)
    from_window, to_window = (np.searchsorted(end_of_window, at, side="right") for at in (first, last))
    keys = ((end_of_window - counts)[from_window], end_of_window[to_window])
    most_keys = min(num_tokens, tile - 2 + 2 * largest)  # all of two windows with a token each in the tile
    slot = np.empty(num_tokens, dtype=np.int64)
    slot[np.argsort(window, kind="stable")] = np.arange(num_tokens)
    return WindowSlots(
        num_groups=1,
        group_size=len(first) * tile,
        slot=slot,
        tile=tile,
        key_tiles=-(-most_keys // tile),
        tiles=np.stack([first, first + tile, *keys], axis=1),
        grouping=None,
    )


def _grouped(window: Int[np.ndarray, " n"], grouping: Grouping) -> Int[np.ndarray, " n"]:
    """Number the slot of each token: groups one after the other, tokens of a group in their own order."""
    group_of_window = np.empty(sum(map(len, grouping.groups)), dtype=np.int64)
    for group, windows in enumerate(grouping.groups):
        group_of_window[list(windows)] = group
    group = group_of_window[window]
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], np.arange(grouping.num_groups))
    slot = np.empty(len(window), dtype=np.int64)
    slot[order] = np.arange(len(window)) - first[group[order]] + group[order] * grouping.group_size
    return slot
