"""Which blocks to recompute so that a forward pass and its backward pass stay within a number of bytes.

The backward pass goes through the blocks from the last to the first. When it comes to a recomputed one, what was kept
for later blocks is free already; so memory peaks at the end of the forward pass or while some block is recomputed on
top of what is kept for those before it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from backbones.recompute.costs import BlockCost, ForwardCost


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Blocks to recompute, and what follows."""

    recomputed: tuple[str, ...]
    """Names of the blocks, in the order in which they run."""
    kept: int
    """Bytes that a forward pass keeps."""
    peak: int
    """Most bytes at any time, what a block needs while it is recomputed included."""
    flops: int
    """Operations that are computed again."""


def choose(cost: ForwardCost, *, budget: int) -> Choice | None:
    """Find the choice with the fewest operations whose peak is at most ``budget`` bytes; None if there is none.

    Exact: after each block all choices are followed but those that keep no less and compute no less than another.
    """
    partials = [_Partial()]
    for block in cost.blocks:
        both = (state for partial in partials for state in (partial.keep(block), partial.recompute(block)))
        partials = _undominated(state for state in both if max(state.peak, cost.rest + state.kept) <= budget)
    if not partials or cost.rest > budget:
        return None
    return min(partials, key=lambda state: (state.flops, state.kept)).choice(cost)


def least_budget(cost: ForwardCost) -> int:
    """Find the smallest budget, in bytes, for which there is a choice."""
    low, high = cost.rest, cost.bytes
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if choose(cost, budget=middle) else (middle + 1, high)
    return low


@dataclass(frozen=True, kw_only=True)
class _Partial:
    """A choice for the blocks so far."""

    kept: int = 0
    """Bytes kept for them, beside what stays anyway."""
    peak: int = 0
    """Most bytes while one of them is recomputed."""
    flops: int = 0
    recomputed: tuple[str, ...] = ()

    def keep(self, block: BlockCost) -> "_Partial":
        kept = self.kept + block.kept
        return _Partial(kept=kept, peak=self.peak, flops=self.flops, recomputed=self.recomputed)

    def recompute(self, block: BlockCost) -> "_Partial":
        kept = self.kept + block.inputs
        return _Partial(
            kept=kept,
            peak=max(self.peak, block.before + kept + block.again),
            flops=self.flops + block.flops,
            recomputed=(*self.recomputed, block.name),
        )

    def choice(self, cost: ForwardCost) -> Choice:
        kept = cost.rest + self.kept
        return Choice(recomputed=self.recomputed, kept=kept, peak=max(kept, self.peak), flops=self.flops)


def _undominated(states: Iterable[_Partial]) -> list[_Partial]:
    """Drop every state than which another keeps and computes less: within the budget so far there is no other merit."""
    best: list[_Partial] = []
    for state in sorted(states, key=lambda state: (state.kept, state.flops)):
        if not best or state.flops < best[-1].flops:
            best.append(state)
    return best
