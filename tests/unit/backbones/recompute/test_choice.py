"""The choice of blocks to recompute: equals brute force."""

import itertools

import numpy as np
import pytest

from backbones.recompute.choice import choose, least_budget
from backbones.recompute.costs import BlockCost, ForwardCost


def random_cost(seed, *, num_blocks=8, largest=20):
    rng = np.random.default_rng(seed)
    before = np.sort(rng.integers(largest, size=num_blocks + 1))
    blocks = []
    for i in range(num_blocks):
        kept, more = rng.integers(1, largest), rng.integers(largest // 2)
        sizes = {"before": int(before[i]), "kept": int(kept), "again": int(kept + more)}
        blocks.append(
            BlockCost(name=f"b{i}", inputs=int(rng.integers(3)), flops=int(rng.integers(1, largest)), **sizes)
        )
    return ForwardCost(blocks=tuple(blocks), rest=int(before[-1]), flops=1000)


def peak_of(cost, recomputed):
    """Step by step through a forward and a backward pass: what is kept and what comes back."""
    held = {b.name: b.inputs if b.name in recomputed else b.kept for b in cost.blocks}
    peak = cost.rest + sum(held.values())
    for block in reversed(cost.blocks):
        if block.name in recomputed:
            peak = max(peak, block.before + sum(held.values()) + block.again)
        del held[block.name]
    return peak


def subsets(cost):
    names = [block.name for block in cost.blocks]
    return (set(some) for size in range(len(names) + 1) for some in itertools.combinations(names, size))


def flops_of(cost, recomputed):
    return sum(block.flops for block in cost.blocks if block.name in recomputed)


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_the_cheapest_of_all_subsets_that_fit(seed):
    cost = random_cost(seed)
    of_all = [(peak_of(cost, some), flops_of(cost, some)) for some in subsets(cost)]
    least = min(peak for peak, _ in of_all)
    assert least_budget(cost) == least
    assert choose(cost, budget=least - 1) is None
    for budget in np.linspace(least, cost.bytes + 5, 6).astype(int):
        choice = choose(cost, budget=int(budget))
        assert choice is not None
        assert choice.flops == min(flops for peak, flops in of_all if peak <= budget)
        assert (choice.peak, choice.flops) == (peak_of(cost, choice.recomputed), flops_of(cost, choice.recomputed))
        kept = sum(b.inputs if b.name in choice.recomputed else b.kept for b in cost.blocks)
        assert choice.kept == cost.rest + kept


def test_a_budget_for_everything_recomputes_nothing():
    cost = random_cost(0)
    choice = choose(cost, budget=cost.bytes)
    assert choice is not None
    assert (choice.recomputed, choice.kept, choice.peak, choice.flops) == ((), cost.bytes, cost.bytes, 0)


def test_a_large_first_block_is_free_to_recompute_since_all_else_is_gone_by_then():
    blocks = tuple(BlockCost(name=n, before=0, kept=k, inputs=0, again=k, flops=1) for n, k in (("big", 10), ("b", 4)))
    choice = choose(ForwardCost(blocks=blocks, rest=0, flops=2), budget=10)
    assert choice is not None
    assert (choice.recomputed, choice.kept, choice.peak) == (("big",), 4, 10)


def test_blocks_that_all_differ_are_chosen_from_in_a_moment():
    cost = random_cost(1, num_blocks=48, largest=10**9)
    choice = choose(cost, budget=cost.bytes // 2)
    assert choice is not None
    assert choice.peak <= cost.bytes // 2
