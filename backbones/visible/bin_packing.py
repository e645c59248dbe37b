"""Exact bin packing of small integers: can these sizes go into so many bins, and if not, a proof.

A proof of "no" comes from dual feasible functions: a function ``f`` such that any sizes that fit one bin have
``sum f(size) <= f(capacity)``; if the sum over all sizes exceeds ``num_bins * f(capacity)``, no packing exists. The
family used here holds the volume bound, Martello and Toth's L2 (their L1 is its first row) and the rounding function of
mixed-integer cuts, for every divisor, which sees that multiples of 7 never fill a bin of 52. Whatever these leave open
is searched by bin completion: give the largest remaining size every non-dominated set of companions, fullest first,
with the same bounds at each node.
Work is counted in nodes, never in seconds, so that the answer is the same on every machine.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_Companions = list[tuple[int, int]]  # (index of a distinct size, how many of it)
_MAX_DIVISOR = 64  # rounding functions beyond this never decided a case that the smaller ones left open


class BudgetExceededError(Exception):
    """The node budget ran out before the search was exhausted."""


@dataclass
class Budget:
    """Search nodes that may still be visited."""

    nodes: int

    def spend(self) -> None:
        """Count one node, or stop the search."""
        if self.nodes <= 0:
            raise BudgetExceededError
        self.nodes -= 1


def best_fit_decreasing(sizes: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Pack ``sizes`` (sorted downwards) greedily: each goes to the fullest bin that still has room."""
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), sorted
    for size in sizes:
        k = bisect_left(rooms, (size, -1))
        room, target = rooms.pop(k) if k < len(rooms) else (capacity, len(bins))
        if target == len(bins):
            bins.append([])
        bins[target].append(size)
        if room > size:
            insort(rooms, (room - size, target))
    return bins


def volume_needs(sizes: Sequence[int], *, capacity: int) -> int:
    """Bound from below the bins that ``sizes`` (sorted downwards) need: Martello and Toth's L2."""
    num_big = bisect_left(sizes, True, key=lambda size: 2 * size <= capacity)
    bound = max(num_big, -(-sum(sizes) // capacity))
    lone = num_big  # the first so many sizes leave no room for the small ones counted so far
    sharing_volume = small_volume = 0
    for k in range(num_big, len(sizes)):
        small_volume += sizes[k]
        while lone and sizes[lone - 1] <= capacity - sizes[k]:
            lone -= 1
            sharing_volume += sizes[lone]
        excess = small_volume - ((num_big - lone) * capacity - sharing_volume)
        if excess > 0:
            bound = max(bound, num_big - (-excess // capacity))
    return bound


def pack(sizes: Sequence[int], *, num_bins: int, capacity: int, budget: Budget) -> list[list[int]] | None:
    """Pack ``sizes`` (sorted downwards) into ``num_bins`` bins; None proves that it cannot be done.

    Raises:
        BudgetExceededError: neither was found within the budget.
    """
    greedy = best_fit_decreasing(sizes, capacity=capacity)
    if len(greedy) <= num_bins:
        return greedy
    counts = Counter(sizes)
    values = sorted(counts, reverse=True)
    copies = [counts[value] for value in values]
    if _Bounds(values, capacity=capacity, composed=False).refute(copies, num_bins=num_bins):
        return None
    search = _Search(values, capacity=capacity, budget=budget)
    return search.bins if search.fill(copies, num_bins=num_bins, total=sum(sizes)) else None


class _Bounds:
    """The dual feasible functions of one capacity, evaluated at the distinct sizes."""

    def __init__(self, values: Sequence[int], *, capacity: int, composed: bool) -> None:
        s = np.array([*values, capacity], dtype=np.int64)
        cut = np.array([0, *(value for value in values if 2 * value <= capacity)])[:, None]
        cut_off = np.where(s < cut, 0, np.where(s > capacity - cut, capacity, s))
        base = cut_off if composed else s[None]
        divisor = np.arange(2, min(capacity, _MAX_DIVISOR) + 1)[:, None, None]
        rest = capacity % divisor
        rounded = (divisor - rest) * (base // divisor) + np.maximum(0, base % divisor - rest)
        rows = np.concatenate([(2 * s > capacity)[None], cut_off, rounded.reshape(-1, len(s))]).astype(np.float64)
        self._rows, self._limits = np.ascontiguousarray(rows[:, :-1]), rows[:, -1]

    def refute(self, copies: Sequence[int], *, num_bins: int) -> bool:
        """Tell whether some function proves that ``num_bins`` bins are too few."""
        return bool((self._rows @ np.array(copies, dtype=np.float64) > self._limits * num_bins).any())


class _Search:
    """Depth-first bin completion over how many copies of each distinct size are left."""

    def __init__(self, values: Sequence[int], *, capacity: int, budget: Budget) -> None:
        self.bins: list[list[int]] = []
        self._values, self._capacity, self._budget = values, capacity, budget
        self._bounds = _Bounds(values, capacity=capacity, composed=True)
        self._failed: set[tuple[int, ...]] = set()

    def fill(self, copies: list[int], *, num_bins: int, total: int) -> bool:
        """Pack what is left into ``num_bins`` bins, appending to ``bins``; on False nothing has changed."""
        if not total:
            return True
        key = (num_bins, *copies)
        if num_bins * self._capacity < total or key in self._failed:
            return False
        self._budget.spend()
        if not self._bounds.refute(copies, num_bins=num_bins) and self._branch(copies, num_bins=num_bins, total=total):
            return True
        self._failed.add(key)
        return False

    def _branch(self, copies: list[int], *, num_bins: int, total: int) -> bool:
        first = next(k for k, count in enumerate(copies) if count)
        largest = self._values[first]
        copies[first] -= 1
        waste = num_bins * self._capacity - total
        for companions, volume in self._completions(copies, first=first, room=self._capacity - largest, waste=waste):
            for k, count in companions:
                copies[k] -= count
            self.bins.append([largest, *(self._values[k] for k, count in companions for _ in range(count))])
            if self.fill(copies, num_bins=num_bins - 1, total=total - largest - volume):
                return True
            self.bins.pop()
            for k, count in companions:
                copies[k] += count
        copies[first] += 1
        return False

    def _completions(
        self, copies: list[int], *, first: int, room: int, waste: int
    ) -> Iterator[tuple[_Companions, int]]:
        """Yield the sets of sizes that leave at most ``waste`` of ``room``, fullest first, dominated ones left out."""
        reach = self._reachable_sums(copies, first=first, room=room)
        for volume in range(room, max(0, room - waste) - 1, -1):
            if reach[first] >> volume & 1:
                for companions in self._exact_sums(copies, k=first, volume=volume, reach=reach):
                    if volume == room or not self._dominated(copies, companions, first=first, slack=room - volume):
                        yield companions, volume

    def _reachable_sums(self, copies: list[int], *, first: int, room: int) -> list[int]:
        """Find per index the sums, as bits, that the sizes from there on can make within ``room``."""
        within = (1 << (room + 1)) - 1
        reach = [1] * (len(copies) + 1)
        for k in range(len(copies) - 1, first - 1, -1):
            bits = moved = reach[k + 1]
            for _ in range(min(copies[k], room // self._values[k])):
                moved = moved << self._values[k] & within
                bits |= moved
            reach[k] = bits
        return reach

    def _exact_sums(self, copies: list[int], *, k: int, volume: int, reach: list[int]) -> Iterator[_Companions]:
        """Yield the sets of sizes from index ``k`` on that sum to ``volume``, those with large sizes first."""
        if not volume:
            yield []
            return
        while k < len(copies) and (not copies[k] or self._values[k] > volume):
            k += 1
        if k == len(copies):
            return
        value = self._values[k]
        for count in range(min(copies[k], volume // value), -1, -1):
            rest = volume - count * value
            if reach[k + 1] >> rest & 1:
                for others in self._exact_sums(copies, k=k + 1, volume=rest, reach=reach):
                    yield [(k, count), *others] if count else others

    def _dominated(self, copies: list[int], companions: _Companions, *, first: int, slack: int) -> bool:
        """Tell whether a size left over would fit beside the set, or in the place of one of its smaller sizes.

        Whatever packs with such a set also packs with the fuller one, which has been tried before.
        """
        used = dict(companions)
        for k in range(first, len(copies)):
            if copies[k] > used.get(k, 0):
                value = self._values[k]
                if value <= slack or any(0 < value - self._values[j] <= slack for j in used):
                    return True
        return False
