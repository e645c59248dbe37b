"""Which windows share an attention group, so that windows with few visible tokens waste little of a dense batch.

Attention over visible tokens puts whole windows into groups of equal capacity ``g`` and pads each group to it. A plan
(capacity, groups) is a pure function of the window counts. The rule ``optimal`` finds the least cost over all
capacities and all ways to pack, and proves it; the two older rules are kept for comparison.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from backbones.visible.bin_packing import Budget, BudgetExceededError, best_fit_decreasing, pack, volume_needs
from backbones.visible.cost_models import Core, CostModel
from engine.errors import UserError

Rule = Literal["optimal", "greedy", "largest_window"]
RULES: tuple[Rule, ...] = ("optimal", "greedy", "largest_window")

_CACHED_PLANS = 4096
_Bins = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Windows put into groups of one size."""

    groups: tuple[tuple[int, ...], ...]
    """Window indices of each group, ascending; groups in the order of their first window."""
    group_size: int
    """Slots of each group, padding included."""
    cost: float
    """Cost of all groups under the cost model asked for."""
    lower_bound: float
    """No plan costs less than this."""

    @property
    def num_groups(self) -> int:
        """Groups, each of `group_size` slots."""
        return len(self.groups)

    @property
    def proved(self) -> bool:
        """Whether the plan is known to be the cheapest; else it is within `cost - lower_bound` of it."""
        return self.cost <= self.lower_bound


@dataclass(frozen=True)
class _Plan:
    """Sizes packed into bins, before they are given back to their windows."""

    bins: _Bins
    capacity: int
    cost: float
    lower_bound: float


def group_windows(
    counts: Sequence[int], *, rule: Rule = "optimal", cost: CostModel | None = None, max_nodes: int = 400
) -> Grouping:
    """Choose which windows share a group, where they hold ``counts`` visible tokens each.

    ``optimal`` minimises ``cost`` (default ``Core()``) over every capacity from the largest window to all tokens in one
    group and over every packing; `proved` says whether the search ended within ``max_nodes`` nodes. ``greedy`` is the
    rule of GreenMIM's paper: for each capacity take the fullest set of windows again and again, keep the cheapest
    capacity. ``largest_window`` is the published code: the same, at the capacity of the largest window only.
    """
    counts = tuple(map(int, counts))
    if not counts or min(counts) < 1:
        raise UserError(f"windows to group must hold at least one visible token each, got counts {list(counts)}")
    model = Core() if cost is None else cost
    model.padded(max(counts))  # refuses a window that no group can hold
    if rule == "optimal":
        # it plans for sizes alone, so that all masks with the same counts share one cached plan
        plan = _optimal(tuple(sorted(counts, reverse=True)), model, max_nodes)
        groups = _give_back(counts, plan.bins)
    elif rule in RULES:
        # as published, its ties depend on the order of the windows
        plan = _greedy_plan(counts, model, rule == "greedy")
        groups = plan.bins
    else:
        raise UserError(f"unknown grouping rule {rule!r}; expected one of {', '.join(RULES)}")
    return Grouping(
        groups=tuple(sorted(tuple(sorted(group)) for group in groups)),
        group_size=model.padded(plan.capacity),
        cost=plan.cost,
        lower_bound=min(plan.lower_bound, plan.cost),
    )


def clear_plans() -> None:
    """Forget all cached plans, so that the next ones can be timed."""
    _optimal.cache_clear()
    _greedy_plan.cache_clear()


def _give_back(counts: Sequence[int], bins: _Bins) -> _Bins:
    """Give the sizes in ``bins`` back to windows of that size: the same bins, of window indices."""
    windows: dict[int, list[int]] = defaultdict(list)
    for window in reversed(range(len(counts))):
        windows[counts[window]].append(window)
    return tuple(tuple(windows[size].pop() for size in group) for group in bins)


@lru_cache(maxsize=_CACHED_PLANS)
def _optimal(sizes: tuple[int, ...], model: CostModel, max_nodes: int) -> _Plan:
    """Find the cheapest plan for ``sizes``, sorted downwards.

    The cost rises with the number of groups G and with the capacity g, so per G only the least capacity matters. Each G
    that could still win is asked at the largest capacity that would: "no packing" there settles all smaller ones too.
    """
    best = _as_plan(best_fit_decreasing(sizes, capacity=sizes[0]), model)
    candidates = _candidates(sizes, model, best)
    for _, num_groups, smallest in candidates:
        best = _improve(sizes, model, best, num_groups=num_groups, smallest=smallest)
    budget = Budget(max_nodes)
    open_bounds: list[float] = []
    for bound, num_groups, smallest in candidates:
        try:
            best = _settle(sizes, model, best, num_groups=num_groups, smallest=smallest, budget=budget)
        except BudgetExceededError:
            open_bounds.append(bound)
    return _Plan(best.bins, best.capacity, best.cost, min([best.cost, *open_bounds]))


def _as_plan(bins: Sequence[Sequence[int]], model: CostModel) -> _Plan:
    capacity = max(map(sum, bins))
    cost = len(bins) * model.per_group(capacity)
    return _Plan(tuple(map(tuple, bins)), capacity, cost, cost)


def _candidates(sizes: tuple[int, ...], model: CostModel, best: _Plan) -> list[tuple[float, int, int]]:
    """List each number of groups that could beat ``best``, cheapest first, as (least cost, G, least capacity)."""
    candidates: list[tuple[float, int, int]] = []
    total = sum(sizes)
    for num_groups in range(1, len(best.bins) + 1):
        capacity = max(sizes[0], -(-total // num_groups))
        while num_groups * model.per_group(capacity) < best.cost:
            if volume_needs(sizes, capacity=capacity) <= num_groups:
                candidates.append((num_groups * model.per_group(capacity), num_groups, capacity))
                break
            capacity += 1
    return sorted(candidates)


def _improve(sizes: tuple[int, ...], model: CostModel, best: _Plan, *, num_groups: int, smallest: int) -> _Plan:
    """Look for a plan better than ``best``: the least capacity at which best-fit decreasing needs ``num_groups``."""
    capacity = smallest
    while num_groups * model.per_group(capacity) < best.cost:
        bins = best_fit_decreasing(sizes, capacity=capacity)
        if len(bins) <= num_groups:
            return _as_plan(bins, model)
        capacity += 1
    return best


def _settle(
    sizes: tuple[int, ...], model: CostModel, best: _Plan, *, num_groups: int, smallest: int, budget: Budget
) -> _Plan:
    """Settle one number of groups: what comes back is the cheapest of ``best`` and every plan of ``num_groups``."""
    while True:
        capacity = smallest
        while capacity < sum(sizes) and num_groups * model.per_group(capacity + 1) < best.cost:
            capacity += 1
        if num_groups * model.per_group(capacity) >= best.cost:
            return best
        bins = pack(sizes, num_bins=num_groups, capacity=capacity, budget=budget)
        if bins is None:
            return best
        best = _as_plan(bins, model)


@lru_cache(maxsize=_CACHED_PLANS)
def _greedy_plan(counts: tuple[int, ...], model: CostModel, search: bool) -> _Plan:
    """Plan by greedy subset sums, at the largest window's capacity or at the cheapest one."""
    total, smallest = sum(counts), max(counts)
    best: _Plan | None = None
    bound = float("inf")
    for capacity in range(smallest, total + 1 if search else smallest + 1):
        least = -(-total // capacity) * model.per_group(capacity)
        bound = min(bound, least)
        if best is None or least < best.cost:
            bins = greedy_groups(counts, capacity=capacity)
            cost = len(bins) * model.per_group(capacity)
            if best is None or cost < best.cost:
                best = _Plan(tuple(map(tuple, bins)), capacity, cost, 0)
    assert best is not None
    return _Plan(best.bins, best.capacity, best.cost, bound if search else 0)


def greedy_groups(counts: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Group window indices by repeated 0-1 subset sums: take the fullest set that fits, then the next.

    Ties fall as in GreenMIM's table ``K[i][c]`` with its back-trace from the last window: a window is left out whenever
    the ones before it reach the same sum, so low indices are preferred. Here row ``i`` is one integer whose bits are
    the reachable sums.
    """
    remaining = list(range(len(counts)))
    groups: list[list[int]] = []
    while remaining:
        rows = [1]
        for window in remaining:
            rows.append(rows[-1] | rows[-1] << counts[window])
        taken: list[int] = []
        room = capacity
        for k in range(len(remaining), 0, -1):
            if _fullest(rows[k], room) != _fullest(rows[k - 1], room):
                taken.append(remaining[k - 1])
                room -= counts[remaining[k - 1]]
        groups.append(taken[::-1])
        remaining = [window for window in remaining if window not in taken]
    return groups


def _fullest(sums: int, room: int) -> int:
    return (sums & ((1 << (room + 1)) - 1)).bit_length()
