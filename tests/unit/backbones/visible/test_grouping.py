import dataclasses
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.visible import grouping
from backbones.visible.cost_models import Core, OneSize, Tiles
from backbones.visible.grouping import RULES, greedy_groups, group_windows


@dataclasses.dataclass(frozen=True)
class Steps:
    """Another cost model than ours: a few sizes, at prices in no proportion to them."""

    def padded(self, size):
        return next(side for side in PRICES if size <= side)

    def per_group(self, size):
        return PRICES[self.padded(size)]


PRICES = {8: 1.0, 16: 2.5, 24: 5.0, 32: 8.0, 64: 25.0, 2000: 9e3}
COST_MODELS = (Core(), Steps(), Tiles())
window_counts = st.lists(st.integers(1, 12), min_size=1, max_size=9)


def fewest_groups(counts: np.ndarray, capacities: np.ndarray) -> np.ndarray:
    """Fewest groups by dynamic programming over all subsets, for many problems at once.

    counts [problems, windows] (0 pads), capacities [problems, capacities] -> groups [problems, capacities]. The state
    of a subset is (groups, fill of the last one), least first: no bound, no heuristic, nothing in common with ours.
    """
    num_windows = counts.shape[1]
    full = 1 << 16
    state = [np.full(capacities.shape, full, dtype=np.int32)]  # one group, empty
    for subset in range(1, 1 << num_windows):
        best = np.full(capacities.shape, np.iinfo(np.int32).max, dtype=np.int32)
        for window in range(num_windows):
            if subset >> window & 1:
                size = counts[:, window : window + 1]
                before = state[subset ^ 1 << window]
                fits = (before & full - 1) + size <= capacities
                best = np.minimum(best, np.where(fits, before + size, (before // full + 1) * full + size))
        state.append(best)
    return state[-1] // full


def least_costs(problems: list[list[int]], model) -> list[float]:
    """Least cost over every capacity from the largest window to all tokens, by brute force."""
    counts = np.zeros((len(problems), max(map(len, problems))), dtype=np.int32)
    for row, problem in zip(counts, problems, strict=True):
        row[: len(problem)] = problem
    first, last = counts.max(axis=1, keepdims=True), counts.sum(axis=1, keepdims=True)
    capacities = np.minimum(first + np.arange((last - first).max() + 1), last)
    groups = fewest_groups(counts, capacities)
    price = np.vectorize(model.per_group)(capacities)
    return (groups * price).min(axis=1).tolist()


def random_window_counts(rng: np.random.Generator, *, units: int, side: int, window: int, shift: int) -> list[int]:
    """Visible tokens per occupied window of a random mask: `units` x `units` mask units of `side` x `side` tokens."""
    kept = rng.integers(1, units * units + 1)
    visible = np.zeros(units * units, dtype=int)
    visible[rng.permutation(units * units)[:kept]] = 1
    tokens = np.kron(visible.reshape(units, units), np.ones((side, side), dtype=int))
    axis = (np.arange(units * side) + (window - shift) % window) // window
    ids = axis[:, None] * (axis[-1] + 1) + axis[None]
    counts = np.bincount(ids[tokens > 0])
    return counts[counts > 0].tolist()


def mask_problems(num: int) -> list[list[int]]:
    rng = np.random.default_rng(7)
    shapes = [(3, 2, 2, 1), (4, 2, 4, 0), (4, 2, 3, 1), (4, 4, 7, 3), (3, 8, 7, 3), (5, 2, 4, 2), (7, 1, 3, 1)]
    problems: list[list[int]] = []
    while len(problems) < num:
        units, side, window, shift = shapes[len(problems) % len(shapes)]
        counts = random_window_counts(rng, units=units, side=side, window=window, shift=shift)
        if len(counts) <= 9:
            problems.append(counts)
    return problems


def check_cover(counts, plan):
    assert sorted(window for group in plan.groups for window in group) == list(range(len(counts)))
    assert all(sum(counts[window] for window in group) <= plan.group_size for group in plan.groups)


@pytest.mark.slow
def test_optimal_plans_equal_brute_force_on_a_thousand_random_masks():
    problems = mask_problems(1050)
    expected = least_costs(problems, Core())
    plans = [group_windows(problem) for problem in problems]
    assert [plan.cost for plan in plans] == expected
    assert all(plan.proved for plan in plans)


@pytest.mark.parametrize("model", COST_MODELS[1:])
def test_optimal_plans_equal_brute_force_under_every_cost_model(model):
    problems = [problem for problem in mask_problems(150) if len(problem) <= 7]
    plans = [group_windows(problem, cost=model) for problem in problems]
    assert [plan.cost for plan in plans] == least_costs(problems, model)
    assert all(plan.proved for plan in plans)


@given(window_counts)
@settings(deadline=None, max_examples=150)
def test_optimal_plan_equals_brute_force(counts):
    @cache
    def fewest(left: tuple[int, ...], capacity: int) -> int:
        if not left:
            return 0
        rest, best = left[1:], len(left)
        for chosen in range(1 << len(rest)):
            companions = [size for k, size in enumerate(rest) if chosen >> k & 1]
            if left[0] + sum(companions) <= capacity:
                others = tuple(size for k, size in enumerate(rest) if not chosen >> k & 1)
                best = min(best, 1 + fewest(others, capacity))
        return best

    counts = counts[:6]
    sizes = tuple(sorted(counts, reverse=True))
    expected = min(2 * g * g * fewest(sizes, g) for g in range(sizes[0], sum(sizes) + 1))
    plan = group_windows(counts)
    assert (plan.cost, plan.lower_bound, plan.proved) == (expected, expected, True)


@given(window_counts, st.sampled_from(RULES), st.sampled_from(COST_MODELS))
@settings(deadline=None)
def test_every_rule_covers_each_window_once_within_the_capacity(counts, rule, model):
    plan = group_windows(counts, rule=rule, cost=model)
    check_cover(counts, plan)
    assert plan.cost == plan.num_groups * model.per_group(plan.group_size)
    assert plan.lower_bound <= group_windows(counts, cost=model).cost <= plan.cost


@pytest.mark.parametrize(
    ("counts", "capacity", "num_greedy", "num_optimal"),
    [
        ([3, 3, 3, 5, 5, 5], 9, 4, 3),
        ([3, 3, 3, 5, 5, 5, 9], 9, 5, 4),
        ([1, 1, 1, 2, 2, 2], 3, 4, 3),
        ([2, 2, 2, 1, 1, 1], 3, 3, 3),
    ],
)
def test_greedy_subset_sums_miss_the_optimum_where_the_paper_rule_does(counts, capacity, num_greedy, num_optimal):
    assert len(greedy_groups(counts, capacity=capacity)) == num_greedy
    assert fewest_groups(np.array([counts]), np.array([[capacity]])).item() == num_optimal


def test_greedy_subset_sums_break_ties_as_the_table_with_back_trace():
    def table_groups(counts, capacity):
        remaining, groups = list(range(len(counts))), []
        while remaining:
            sizes = [counts[window] for window in remaining]
            table = np.zeros((len(sizes) + 1, capacity + 1), dtype=int)
            for i, size in enumerate(sizes, start=1):
                table[i] = table[i - 1]
                table[i, size:] = np.maximum(table[i, size:], size + table[i - 1, : capacity + 1 - size])
            taken, room = [], capacity
            for i in range(len(sizes), 0, -1):
                if table[i, room] != table[i - 1, room]:
                    taken.append(remaining[i - 1])
                    room -= sizes[i - 1]
            groups.append(taken[::-1])
            remaining = [window for window in remaining if window not in taken]
        return groups

    for counts in mask_problems(100):
        for capacity in (max(counts), max(counts) + 3):
            assert greedy_groups(counts, capacity=capacity) == table_groups(counts, capacity)


def test_rules_are_ordered_by_cost_on_full_size_masks():
    rng = np.random.default_rng(3)
    for _ in range(20):
        counts = random_window_counts(rng, units=7, side=4, window=7, shift=3)
        costs = [group_windows(counts, rule=rule).cost for rule in RULES]
        assert costs == sorted(costs)


def test_plans_do_not_depend_on_the_cache_or_on_what_was_asked_before():
    counts = [8, 8, 24, 6, 30, 42, 36, 5, 5, 48, 20, 18, 7, 9]
    plan = group_windows(counts)
    grouping._optimal.cache_clear()
    assert group_windows(counts) == plan


def test_windows_in_another_order_cost_the_same():
    counts = [8, 8, 24, 6, 30, 42, 36, 5, 5, 48, 20, 18, 7, 9]
    assert group_windows(counts[::-1]).cost == group_windows(counts).cost
    check_cover(counts[::-1], group_windows(counts[::-1]))


def test_cut_short_proof_says_so_and_bounds_the_optimum():
    hard = [8, 12, 12, 12, 13, 16, 16, 20, 23, 23, 37]
    cut = group_windows(hard, max_nodes=0)
    full = group_windows(hard)
    assert full.proved
    assert not cut.proved
    assert (cut.lower_bound, full.cost, cut.cost) == (15210, 16000, 16428)


def test_large_problem_stays_within_its_node_budget():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 145, size=200).tolist()
    plan = group_windows(counts, max_nodes=20)
    check_cover(counts, plan)
    assert plan.lower_bound <= plan.cost <= 1.02 * plan.lower_bound


def test_the_fewest_groups_of_one_size_are_the_best():
    plan = group_windows([3, 5, 6, 9], cost=OneSize(16))
    assert (plan.group_size, plan.num_groups, plan.cost) == (16, 2, 2.0)


def test_tiles_are_of_16_32_and_multiples_of_64():
    assert [Tiles().padded(size) for size in (1, 16, 17, 32, 33, 64, 65, 128, 129)] == [
        16,
        16,
        32,
        32,
        *[64] * 2,
        *[128] * 2,
        192,
    ]
    plan = group_windows([20, 12, 9, 7, 16], cost=Tiles())
    assert (plan.group_size, plan.num_groups, plan.cost) == (32, 2, 2 * 32**2)


def test_grouping_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        group_windows([1, 2]).cost = 0  # pyright: ignore


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: group_windows([]), "at least one visible token"),
        (lambda: group_windows([3, 0]), "at least one visible token"),
        (lambda: group_windows([3], rule="best"), "expected one of optimal, greedy, largest_window"),
        (lambda: group_windows([40], cost=OneSize(16)), "a window of 40 tokens does not fit groups of 16"),
    ],
)
def test_bad_input_names_what_was_expected(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
