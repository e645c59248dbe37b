"""BatchNorm whose running statistics do not depend on the number of processes.

A forward pass in training normalises by the statistics of its own micro-batch, as always. The running statistics move
once per optimizer step, by the mean over all micro-batches of all processes in their global order, so a run on 1, 2 or
8 processes keeps the same buffers.

Legend: c channels.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

M = TypeVar("M", bound=nn.Module)


class StepStatistics(nn.Module):
    """A mixin for BatchNorm classes: a training forward records its statistics and leaves the running ones alone."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None
    momentum: float | None
    step_records: list[Float[Tensor, "2 c"]]
    step_counts: list[int]
    """Values a channel that each record is over."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Normalise; in training, with the micro-batch's own statistics, which are recorded."""
        if not self.training:
            return super().forward(*args, **kwargs)
        running = self.running_mean, self.running_var, self.num_batches_tracked, self.momentum
        self.running_mean, self.running_var = torch.zeros_like(running[0]), torch.zeros_like(running[1])
        self.num_batches_tracked, self.momentum = None, 1.0  # the scratch buffers take the batch statistics as they are
        try:
            normalised = super().forward(*args, **kwargs)
            self.step_records.append(torch.stack((self.running_mean, self.running_var)))
            self.step_counts.append(args[0].numel() // self.running_mean.numel())
        finally:
            self.running_mean, self.running_var, self.num_batches_tracked, self.momentum = running
        return normalised


def step_batch_norm(module: M) -> M:
    """Convert every BatchNorm in ``module`` that tracks running statistics, in place; names and buffers stay."""
    layers: list[Any] = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    for layer in layers:
        if layer.running_mean is not None and not isinstance(layer, StepStatistics):
            layer.__class__ = type(f"Step{type(layer).__name__}", (StepStatistics, type(layer)), {})
            layer.step_records, layer.step_counts = [], []
    return module


def join_records(module: nn.Module, *, last: int) -> None:
    """Join the ``last`` records of every layer into one: that of a micro-batch whose images ran in so many groups.

    It is the mean and the variance over the values of all groups. A step thus has as many records on every process.
    """
    for layer in module.modules():
        if isinstance(layer, StepStatistics) and layer.training and layer.step_records:
            joined, count = _joined(layer.step_records[-last:], layer.step_counts[-last:])
            layer.step_records[-last:], layer.step_counts[-last:] = [joined], [count]


@torch.no_grad()
def commit_step_statistics(module: nn.Module, *, world_size: int, skipped: Sequence[int] = ()) -> None:
    """Move all running statistics by the mean over the step's micro-batches; one collective, no wait for the device.

    ``skipped`` are the numbers of those that do not count, over all processes.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, StepStatistics) and layer.step_records]
    if not layers:
        return
    # All layers' records travel as one row a process; the rows in order of rank are the micro-batches in global order.
    records = torch.cat([torch.stack(layer.step_records).flatten() for layer in layers])
    gathered = torch.empty(world_size, records.numel(), dtype=records.dtype, device=records.device)
    if world_size > 1:
        dist.all_gather(list(gathered), records)
    else:
        gathered[0] = records
    sizes = [len(layer.step_records) * 2 * layer.running_mean.numel() for layer in layers]
    for layer, values in zip(layers, gathered.split(sizes, dim=1), strict=True):
        records = values.reshape(-1, 2, layer.running_mean.numel())
        if skipped:
            counted = torch.ones(len(records), dtype=torch.bool)
            counted[list(skipped)] = False
            records = records[counted.to(records.device)]
        means, variances = records.mean(0)
        _move(layer, means, variances)
        layer.step_records.clear()
        layer.step_counts.clear()


@torch.no_grad()
def _joined(records: list[Float[Tensor, "2 c"]], counts: list[int]) -> tuple[Float[Tensor, "2 c"], int]:
    """Compute mean and (unbiased) variance over all values of groups, and their number."""
    total = sum(counts)
    mean = torch.stack([record[0] * (count / total) for record, count in zip(records, counts, strict=True)]).sum(0)
    squares = [
        variance * (count - 1) + (own - mean).square() * count
        for (own, variance), count in zip(records, counts, strict=True)
    ]
    return torch.stack((mean, torch.stack(squares).sum(0) / (total - 1))), total


def _move(layer: StepStatistics, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"]) -> None:
    weight: float | Tensor | None = layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked += 1
        weight = 1.0 / layer.num_batches_tracked if weight is None else weight
    layer.running_mean.lerp_(mean, 1.0 if weight is None else weight)
    layer.running_var.lerp_(variance, 1.0 if weight is None else weight)
