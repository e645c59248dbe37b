"""What each block keeps for the backward pass and what it costs to compute it again, measured in a forward pass.

A storage belongs to a block if nothing else saves it: then it is free as soon as the block is recomputed. What several
parts save, and the inputs of blocks, stay whatever is chosen.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from backbones.recompute.blocks import Forward, set_way
from backbones.recompute.saved_bytes import saved_storages


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """One block in one forward and backward pass, in bytes and floating-point operations."""

    name: str
    """Of the module in the model."""
    before: int
    """Bytes that stay whatever is chosen and are there when the block has run."""
    kept: int
    """Bytes that are kept for it alone if it is not recomputed."""
    inputs: int
    """Bytes of inputs that are kept only if it is recomputed."""
    again: int
    """Bytes that it needs once more while it is recomputed."""
    flops: int
    """Operations that are computed again: those up to the last that the backward pass needs something of."""


@dataclass(frozen=True, kw_only=True)
class ForwardCost:
    """A whole forward pass."""

    blocks: tuple[BlockCost, ...]
    """Those that can be recomputed, in the order in which they run."""
    rest: int
    """Bytes that stay whatever is chosen."""
    flops: int
    """All operations."""

    @property
    def bytes(self) -> int:
        """Bytes that are kept if nothing is recomputed."""
        return self.rest + sum(block.kept for block in self.blocks)


def measure_blocks(model: nn.Module, forward: Callable[[], object]) -> ForwardCost:
    """Measure what blocks keep and cost in ``forward``, in which ``model`` runs once; every block runs twice here."""
    meter = _Meter(model)
    for module in model.modules():
        set_way(module, meter.run)
    try:
        with saved_storages(model, meter.note), meter.counter:
            forward()
            return meter.cost()
    finally:
        for module in model.modules():
            set_way(module, None)


def joined(costs: Sequence[ForwardCost], join: Callable[[list[int]], int]) -> ForwardCost:
    """Make one cost of several of the same blocks: ``join`` makes each number of the same numbers of ``costs``."""
    blocks = tuple(_joined(parts, join) for parts in zip(*(cost.blocks for cost in costs), strict=True))
    return dataclasses.replace(_joined([dataclasses.replace(cost, blocks=()) for cost in costs], join), blocks=blocks)


def _joined(values: Sequence[Any], join: Callable[[list[int]], int]) -> Any:
    first = values[0]
    numbers = [name for name in vars(first) if isinstance(getattr(first, name), int)]
    return dataclasses.replace(first, **{name: join([getattr(value, name) for value in values]) for name in numbers})


@dataclass(kw_only=True)
class _Storage:
    """What is saved, and by whom: the number of a block, or None for what lies outside of all."""

    size: int
    first: int
    """Number of blocks begun when it was saved first."""
    savers: set[int | None] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One run of a block."""

    name: str
    inputs: dict[int, int]
    """Bytes of its inputs' storages, by address."""
    again: int
    flops: int


class _Meter:
    """Watches one forward pass; ``run`` is the way that every block runs in it."""

    def __init__(self, model: nn.Module) -> None:
        self.counter = FlopCounterMode(display=False)
        self._model = model
        self._names = {id(module): name for name, module in model.named_modules()}
        self._storages: dict[int, _Storage] = {}
        self._calls: list[_Call] = []
        self._inside: int | None = None
        self._tried: dict[int, int] = {}
        self._tried_flops = 0

    def note(self, address: int, size: int) -> None:
        """Remember that a storage is saved here."""
        storage = self._storages.setdefault(address, _Storage(size=size, first=len(self._calls)))
        # what a block saves in both of its runs outlives them: autocast keeps its casts of weights
        storage.savers.add(None if address in self._tried else self._inside)

    def run(self, block: nn.Module, *args: Any, forward: Forward, lean: Forward) -> Tensor:
        """Run a block as if it were recomputed, and then as it is kept."""
        inputs = {_address(x): x.untyped_storage().nbytes() for x in args if isinstance(x, Tensor)}
        started = needed = self.counter.get_total_flops()

        def note(address: int, size: int) -> None:
            nonlocal needed
            needed = self.counter.get_total_flops()
            if address not in inputs and address not in self._storages:
                self._tried[address] = size

        with saved_storages(self._model, note) as alive:
            forward(block, *args)
        self._tried_flops += self.counter.get_total_flops() - started
        again = sum(self._tried.values())
        self._calls.append(_Call(name=self._names[id(block)], inputs=inputs, again=again, flops=needed - started))
        self._inside = len(self._calls) - 1
        try:
            return lean(block, *args)
        finally:
            self._inside = None
            self._tried.clear()
            alive.clear()

    def cost(self) -> ForwardCost:
        """Sum up what was seen: what each block alone keeps, and what stays whatever is chosen."""
        inputs = {address: size for call in self._calls for address, size in call.inputs.items()}
        own = [0] * len(self._calls)
        staying = []
        for address, storage in self._storages.items():
            (first, *others) = storage.savers
            # recomputing a block frees only what nothing else saves, and it needs its inputs to run again
            if first is None or others or address in inputs:
                staying.append(storage)
            else:
                own[first] += storage.size
        return ForwardCost(
            blocks=tuple(
                BlockCost(
                    name=call.name,
                    before=sum(storage.size for storage in staying if storage.first <= number + 1),
                    kept=own[number],
                    inputs=sum(size for address, size in call.inputs.items() if address not in self._storages),
                    again=call.again,
                    flops=call.flops,
                )
                for number, call in enumerate(self._calls)
            ),
            rest=sum(storage.size for storage in staying),
            flops=self.counter.get_total_flops() - self._tried_flops,
        )


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
