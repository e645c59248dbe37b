"""Which process owns which elements of the training state.

A checkpoint, an average of the weights and a resume with another number of processes need the state by parameter name.
A ``ParamSlice`` is a contiguous part of one parameter with its moments; over all processes the slices hold each element
of each parameter exactly once. Here every process holds the whole state and owns an even, contiguous share of it;
``engine/distributed/deepspeed_zero.py`` finds the slices in DeepSpeed's partitions.
"""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

ROW = 4096
"""Elements whose squares are summed in fp32."""


@dataclass(frozen=True, kw_only=True)
class ParamSlice:
    """Consecutive elements of one parameter with their moments; the tensors are views of the live state."""

    name: str
    """The parameter's name in the unwrapped model."""
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    offset: int
    """Index of the slice's first element in the flattened parameter."""
    weight: Tensor
    """Master weights, one-dimensional."""
    exp_avg: Tensor | None = None
    """First AdamW moment; None for a frozen parameter."""
    exp_avg_sq: Tensor | None = None
    """Second AdamW moment; None for a frozen parameter."""


class StateSharding(Protocol):
    """How the training state lies over the processes."""

    owned: list[ParamSlice]
    """What this process saves and averages."""
    held: list[ParamSlice]
    """What this process has moments of, to be loaded."""
    steps: list[Tensor]
    """AdamW's step counts."""
    shards_gradients: bool
    """Whether each process holds the gradients of other elements; otherwise all hold the same ones."""

    def gradients(self) -> list[Tensor]:
        """List this step's summed gradients, as the optimizer will use them."""
        ...

    def sync_weights(self) -> None:
        """Make every process's module agree with the master weights in the slices (collective)."""
        ...

    def gathered(self, parameter: nn.Parameter) -> AbstractContextManager[None]:
        """Let ``parameter`` hold all of its elements within the context (collective)."""
        ...


class Replicated:
    """The sharding of DDP, of one process and of ZeRO stage 0: everyone holds everything and owns an even share."""

    shards_gradients = False

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, *, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size
        self._optimized = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        states = {id(parameter): adam_state(optimizer, parameter) for parameter in self._optimized}
        self.steps = [state["step"] for state in states.values()]
        self._named, self._states = list(module.named_parameters()), states
        self.owned = self._share_of(rank)
        self.held = share_evenly(iter(self._named), states, rank=0, world_size=1)

    def gradients(self) -> list[Tensor]:
        """List the gradients of all parameters, the same on every process."""
        return [parameter.grad for parameter in self._optimized if parameter.grad is not None]

    def sync_weights(self) -> None:
        """Send every process's share of the weights to all others."""
        if self._world_size == 1:
            return
        for owner in range(self._world_size):
            weights = [share.weight for share in self._share_of(owner)]
            if not weights:
                continue
            flat = torch.cat(weights)
            dist.broadcast(flat, src=owner)
            if owner != self._rank:
                for weight, values in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
                    weight.copy_(values)

    def _share_of(self, owner: int) -> list[ParamSlice]:
        return share_evenly(iter(self._named), self._states, rank=owner, world_size=self._world_size)

    @contextlib.contextmanager
    def gathered(self, parameter: nn.Parameter) -> Iterator[None]:
        """Do nothing: every parameter is whole everywhere."""
        yield


def adam_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    """Give AdamW's state of ``parameter``, created as AdamW itself creates it where it does not exist yet."""
    state = optimizer.state[parameter]
    if not state:
        on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
        device = parameter.device if on_device else torch.device("cpu")
        state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
        state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
    return state


def share_evenly(
    parameters: Iterator[tuple[str, nn.Parameter]],
    states: dict[int, dict[str, Any]],
    *,
    rank: int,
    world_size: int,
) -> list[ParamSlice]:
    """Divide all elements of ``parameters`` evenly and contiguously; return the share of ``rank``."""
    named = list(parameters)
    total = sum(parameter.numel() for _, parameter in named)
    first, last = rank * total // world_size, (rank + 1) * total // world_size
    share: list[ParamSlice] = []
    start = 0
    for name, parameter in named:
        begin, end = max(first - start, 0), min(last - start, parameter.numel())
        start += parameter.numel()
        if begin < end:
            state = states.get(id(parameter), {})
            weight = parameter.detach().view(-1)[begin:end]
            share.append(
                ParamSlice(
                    name=name,
                    shape=tuple(parameter.shape),
                    offset=begin,
                    weight=weight,
                    exp_avg=part_of(state.get("exp_avg"), begin, end),
                    exp_avg_sq=part_of(state.get("exp_avg_sq"), begin, end),
                )
            )
    return share


def part_of(x: Tensor | None, begin: int, end: int) -> Tensor | None:
    """View elements ``begin`` to ``end`` of the flattened ``x``; None where there is no moment."""
    return None if x is None else x.view(-1)[begin:end]


def clip_gradients(sharding: StateSharding, *, max_norm: float | None, device: torch.device) -> Tensor:
    """Scale all gradients so that their global norm is at most ``max_norm``; return the norm before, a 0-d tensor.

    Gradients that are not finite are kept: the norm shows them, and no process skips a step that others take.
    """
    gradients = sharding.gradients()
    squared = torch.zeros((), dtype=torch.float64, device=device)
    if gradients:
        squared = _norms(gradients).double().square().sum()
    if sharding.shards_gradients and dist.is_initialized():
        dist.all_reduce(squared)
    norm = squared.sqrt()
    if max_norm is not None and gradients:
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0).to(gradients[0].dtype)
        torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]
    return norm


def _norms(gradients: list[Tensor]) -> Tensor:
    """Compute norms of pieces that make up all gradients.

    On a CPU an fp32 sum of millions of squares is off by 1e-5 and one in fp64 takes 40 times as long; rows of ``ROW``
    elements are as fast and off by 1e-8. Where squares exceed fp32 they are summed in fp64.
    """
    if gradients[0].device.type != "cpu":
        return torch.stack(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage]
    flat = [gradient.flatten() for gradient in gradients]
    rows = [x[: len(x) // ROW * ROW].view(-1, ROW).norm(dim=1) for x in flat if len(x) >= ROW]
    rest = [x[len(x) // ROW * ROW :] for x in flat]
    norms = torch.cat([torch.stack(torch._foreach_norm(rest)), *rows])  # pyright: ignore[reportPrivateImportUsage]
    if norms.isfinite().all():
        return norms
    return torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64) for x in flat])
