"""Which process owns which elements of the training state, where every process holds all of it.

A checkpoint, an average of the weights and a resume with another number of processes need the state by parameter name.
A ``ParamSlice`` is a run of elements of one parameter with its moments; over all processes the runs hold each element of
each parameter exactly once. ``engine/distributed/deepspeed_zero.py`` finds the runs in DeepSpeed's partitions; here they are an even,
contiguous share of all elements.
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
    """A run of elements of one parameter that this process saves and averages; the tensors are views of the live state."""

    name: str
    """The parameter's name in the unwrapped model."""
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    offset: int
    """Index of the run's first element in the flattened parameter."""
    weight: Tensor
    """Master weights, one-dimensional."""
    exp_avg: Tensor | None = None
    """First AdamW moment; None for a frozen parameter."""
    exp_avg_sq: Tensor | None = None
    """Second AdamW moment; None for a frozen parameter."""


class StateSharding(Protocol):
    """How the training state lies over the processes."""

    owned: list[ParamSlice]
    """What this process owns: it saves and averages it."""
    held: list[ParamSlice]
    """What this process holds moments of: it loads them."""
    steps: list[Tensor]
    """AdamW's step counts."""
    shards_gradients: bool
    """Whether each process holds other gradients; otherwise all hold the same ones."""

    def gradients(self) -> list[Tensor]:
        """Return this step's summed gradients, as the optimizer will use them."""
        ...

    def sync_weights(self) -> None:
        """Make every process's module agree with the master weights in the runs (collective)."""
        ...

    def gathered(self, parameter: nn.Parameter) -> AbstractContextManager[None]:
        """Within it, ``parameter`` holds all of its elements (collective)."""
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
        """Return the gradients of all parameters, the same on every process."""
        return [parameter.grad for parameter in self._optimized if parameter.grad is not None]

    def sync_weights(self) -> None:
        """Send every process's share of the weights to all others."""
        if self._world_size == 1:
            return
        for owner in range(self._world_size):
            runs = self._share_of(owner)
            if not runs:
                continue
            flat = torch.cat([run.weight for run in runs])
            dist.broadcast(flat, src=owner)
            if owner != self._rank:
                for run, values in zip(runs, flat.split([run.weight.numel() for run in runs]), strict=True):
                    run.weight.copy_(values)

    def _share_of(self, owner: int) -> list[ParamSlice]:
        return share_evenly(iter(self._named), self._states, rank=owner, world_size=self._world_size)

    @contextlib.contextmanager
    def gathered(self, parameter: nn.Parameter) -> Iterator[None]:
        """Do nothing: every parameter is whole everywhere."""
        yield


def adam_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    """Return AdamW's state of ``parameter``, created as AdamW itself creates it where it does not exist yet."""
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
    """Return the share of ``rank`` in an even, contiguous division of all elements of ``parameters``."""
    named = list(parameters)
    total = sum(parameter.numel() for _, parameter in named)
    first, last = rank * total // world_size, (rank + 1) * total // world_size
    runs: list[ParamSlice] = []
    start = 0
    for name, parameter in named:
        begin, end = max(first - start, 0), min(last - start, parameter.numel())
        start += parameter.numel()
        if begin < end:
            state = states.get(id(parameter), {})
            views = {key: flat_view(state[key])[begin:end] for key in ("exp_avg", "exp_avg_sq") if key in state}
            weight = flat_view(parameter.detach())[begin:end]
            runs.append(ParamSlice(name=name, shape=tuple(parameter.shape), offset=begin, weight=weight, **views))
    return runs


def flat_view(x: Tensor) -> Tensor:
    """Return ``x`` flattened, sharing its memory."""
    return x.view(-1)


def clip_gradients(sharding: StateSharding, *, max_norm: float | None, device: torch.device) -> Tensor:
    """Scale all gradients so that their global norm is at most ``max_norm``; return the norm before, a 0-d tensor.

    Not finite gradients are kept: the returned norm says so, and no process skips a step that others take.
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
    """Return the norms of pieces that make up all gradients.

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
