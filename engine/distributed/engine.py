"""The processes of a run and the model that they train: one interface over DeepSpeed, DDP and a single process.

In every mode the gradient of a step is the mean over all micro-batches of all processes; weights, gradient sums,
reductions and the optimizer are fp32 (fp64 on request, without DeepSpeed), and only the forward pass runs under bf16
autocast. The optimizer is torch's, as given. Nothing in forward, backward and step waits for the device, except what
ZeRO-3 itself waits for.
"""

import contextlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.checkpoint.slices import Kind, TensorSlice
from engine.config import DistributedConfig
from engine.distributed.batch_norm import commit_step_statistics, step_batch_norm
from engine.distributed.cpu import capabilities, precision_advice
from engine.distributed.deepspeed_zero import deepspeed_sharding, start_deepspeed, zero_config
from engine.distributed.float8 import check_float8, use_float8
from engine.distributed.launched import read_launched
from engine.distributed.processes import EngineKind, engine_kind, join_processes, local_device, set_determinism
from engine.distributed.sharding import ParamSlice, Replicated, StateSharding, clip_gradients

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)
ReadSlice = Callable[[Kind, str, int, int], Tensor]
"""Reads saved elements: kind, name, first element, number of elements."""


class Engine:
    """The processes of this run and the model that they train."""

    def __init__(self, config: DistributedConfig) -> None:
        """Join the processes that the launcher started, choose the device, and make kernels deterministic if asked."""
        self._config = config
        launched = read_launched(os.environ)
        self.world_size = 1 if launched is None else launched.world_size
        self.rank = 0 if launched is None else launched.rank
        self.device = local_device()
        self.kind: EngineKind = engine_kind(config, world_size=self.world_size)
        check_float8(config, is_sharded=self.is_sharded, device=self.device)
        set_determinism(self.device, deterministic=config.deterministic)
        if self.is_main and self.device.type == "cpu":
            advice = precision_advice(config.precision, capabilities())
            if advice:
                logger.info(advice)
        if self.kind != "single":
            join_processes(self.device, launched=launched)
        elif config.engine == "auto":
            logger.info(
                "one process on %s, without DeepSpeed; `accelerate launch --config_file "
                "pretrain/cpu_two_processes.yaml ...` starts two under DeepSpeed, `accelerate launch --use_deepspeed "
                "--num_processes N ...` N",
                self.device,
            )

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether no process holds the module's weights as a whole (ZeRO 3)."""
        return self.kind == "deepspeed" and self._config.zero_stage == 3

    @property
    def module(self) -> nn.Module:
        """The model as it was given, for names and evaluation."""
        return self._module

    def place(self, model: M) -> M:
        """Move ``model`` to the device, in the type that its weights are trained in; call it before loading weights."""
        return model.to(self.device, torch.float64 if self._config.precision == "fp64" else torch.float32)

    def prepare(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        micro_batches: int,
        micro_batch_size: int,
        clip_grad_norm: float | None,
    ) -> None:
        """Hand over the model, its weights already loaded, and its optimizer to train.

        Args:
            model: placed if it is not yet; its BatchNorm layers are converted (``engine/distributed/batch_norm.py``).
            optimizer: an AdamW over the model's parameters; its param groups keep their order.
            micro_batches: micro-batches of this process per step.
            micro_batch_size: images in each.
            clip_grad_norm: bound on the global gradient norm, None for none.
        """
        self._module = step_batch_norm(self.place(model))
        if self._config.fp8:
            use_float8(self._module)
        self._optimizer, self._groups = optimizer, list(optimizer.param_groups)
        self._micro_batches, self._clip_grad_norm = micro_batches, clip_grad_norm
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()
        if self._config.compile:
            model.compile()
        wrapped = _Autocast(model, precision=self._config.precision, device_type=self.device.type)
        if self.kind == "deepspeed":
            stage = self._config.zero_stage
            zero = zero_config(
                stage=stage,
                micro_batches=micro_batches,
                micro_batch_size=micro_batch_size,
                num_elements=sum(parameter.numel() for parameter in model.parameters()),
            )
            self._wrapped: Any = start_deepspeed(wrapped, optimizer, config=zero, device=self.device)
            self._sharding: StateSharding = deepspeed_sharding(
                self._wrapped, model, optimizer, stage=stage, rank=self.rank, world_size=self.world_size
            )
            return
        self._wrapped = _data_parallel(wrapped, self.device) if self.kind == "ddp" else wrapped
        self._sharding = Replicated(model, optimizer, rank=self.rank, world_size=self.world_size)

    def forward(self, *args: Any, last: bool = True, **kwargs: Any) -> Any:
        """Run the model in the config's precision; floating-point outputs come back in the type of the weights.

        ``last`` marks the pass with the step's last micro-batch: DDP decides here whether the backward pass will sum
        over processes.
        """
        with contextlib.nullcontext() if last or self.kind != "ddp" else self._wrapped.no_sync():
            return self._wrapped(*args, **kwargs)

    def autocast(self) -> torch.autocast:
        """Give the precision of ``forward`` as a context, for evaluating ``module`` or parts of it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._config.precision == "bf16")

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a loss, of one micro-batch or summed over several, to the step's mean gradient.

        ``last`` marks the step's last one, after which processes sum their gradients.
        """
        loss = loss / self._micro_batches
        if self.kind == "deepspeed":
            self._wrapped.set_gradient_accumulation_boundary(last)
            self._wrapped.backward(loss, scale_wrt_gas=False)
        else:
            loss.backward()

    def step(self, lrs: Sequence[float], *, skipped: Sequence[int] = ()) -> Tensor:
        """Clip, update with one learning rate per param group, forget the gradients; return their norm, a 0-d tensor.

        ``skipped`` are the numbers of the micro-batches, over all processes, whose BatchNorm statistics do not count.
        """
        for group, lr in zip(self._groups, lrs, strict=True):
            group["lr"] = lr
        norm = clip_gradients(self._sharding, max_norm=self._clip_grad_norm, device=self.device)
        if self.kind == "deepspeed":
            self._wrapped.step()
        else:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        commit_step_statistics(self._module, world_size=self.world_size, skipped=skipped)
        return norm

    def param_slices(self) -> list[ParamSlice]:
        """List the parts of parameters that this process owns; over all processes each element exactly once."""
        return self._sharding.owned

    def sync_weights(self) -> None:
        """Make every process's module agree with the master weights in ``param_slices`` (collective)."""
        with torch.no_grad():
            self._sharding.sync_weights()

    def state_slices(self) -> list[TensorSlice]:
        """List what this process must save: its share of weights and moments, and on rank 0 the buffers."""
        slices: list[TensorSlice] = []
        for own in self._sharding.owned:
            state: dict[Kind, Tensor | None] = {
                "weight": own.weight,
                "exp_avg": own.exp_avg,
                "exp_avg_sq": own.exp_avg_sq,
            }
            for kind, x in state.items():
                if x is not None:
                    slices.append(TensorSlice(kind=kind, name=own.name, shape=own.shape, offset=own.offset, values=x))
        if self.is_main:
            for name, buffer in self.buffers().items():
                values = buffer.detach().reshape(-1)
                slices.append(TensorSlice(kind="buffer", name=name, shape=tuple(buffer.shape), offset=0, values=values))
        return slices

    @torch.no_grad()
    def load_optimizer(self, read: ReadSlice, *, optimizer_steps: int) -> None:
        """Fill the optimizer's moments and step counts; the weights were in the model before ``prepare``."""
        for held in self._sharding.held:
            if held.exp_avg is not None and held.exp_avg_sq is not None:
                length = held.weight.numel()
                held.exp_avg.copy_(read("exp_avg", held.name, held.offset, length))
                held.exp_avg_sq.copy_(read("exp_avg_sq", held.name, held.offset, length))
        for step in self._sharding.steps:
            step.fill_(optimizer_steps)

    @torch.no_grad()
    def load_state(self, read: ReadSlice, *, optimizer_steps: int) -> None:
        """Put weights, buffers and the optimizer of a prepared model back to what was saved (collective)."""
        for own in self._sharding.owned:
            own.weight.copy_(read("weight", own.name, own.offset, own.weight.numel()))
        self._sharding.sync_weights()
        for name, buffer in self.buffers().items():
            buffer.copy_(read("buffer", name, 0, buffer.numel()).view(buffer.shape))
        self.load_optimizer(read, optimizer_steps=optimizer_steps)

    def buffers(self) -> dict[str, Tensor]:
        """Name the buffers that belong to the model's state; the same on every process."""
        return _saved_buffers(self._module)

    @torch.no_grad()
    def full_state_dict(self) -> dict[str, Tensor]:
        """Copy all weights and buffers to rank 0's CPU, gathering one at a time; others get nothing (collective)."""
        weights: dict[str, Tensor] = {}
        for name, parameter in self._module.named_parameters():
            with self._sharding.gathered(parameter):
                if self.is_main:
                    weights[name] = parameter.detach().to("cpu", copy=True)
        if self.is_main:
            weights |= {name: buffer.detach().to("cpu", copy=True) for name, buffer in self.buffers().items()}
        return weights

    def average(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Average each value over the processes (collective; waits for the device)."""
        return self.collect(values, own=0.0)[0] if values else {}

    def collect(self, values: Mapping[str, Tensor | float], *, own: float) -> tuple[dict[str, float], list[float]]:
        """Average values over the processes, and list every process's ``own`` (collective; waits for the device)."""
        numbers = [torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values.values()]
        each = torch.zeros(self.world_size, dtype=torch.float64, device=self.device)
        each[self.rank] = own
        sums = torch.cat([*(number.detach().view(1) for number in numbers), each])
        if self.world_size > 1:
            dist.all_reduce(sums)
        means, owns = (sums[: len(numbers)] / self.world_size).tolist(), sums[len(numbers) :].tolist()
        return dict(zip(values, means, strict=True)), owns

    def gather(self, x: Tensor) -> Tensor:
        """Join the processes' tensors along the first axis, whose length may differ among them (collective)."""
        if self.world_size == 1:
            return x
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world_size)]
        dist.all_gather(lengths, torch.tensor([len(x)], device=self.device))
        counts = [int(length) for length in lengths]
        padded = x.new_zeros((max(counts), *x.shape[1:]), device=self.device)
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def gather_lines(self, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Join all processes' lines of JSON values, in the order of the processes (collective)."""
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        texts = self.gather(torch.from_numpy(np.frombuffer(text, np.uint8).copy()))
        return [json.loads(line) for line in bytes(texts.tolist()).splitlines()]

    def any(self, flag: bool) -> bool:
        """Whether any process says yes (collective; waits for the device)."""
        if self.world_size == 1:
            return flag
        answer = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(answer, op=dist.ReduceOp.MAX)
        return bool(answer)

    def broadcast_object(self, value: Any) -> Any:
        """Give rank 0's ``value``, a small picklable object, to every process (collective)."""
        if self.world_size == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, src=0, device=self.device)
        return holder[0]

    def barrier(self) -> None:
        """Wait for all processes (collective)."""
        if self.world_size > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def close(self) -> None:
        """Leave the other processes; nothing else may be called afterwards.

        While an exception is on its way nothing is waited for: the others may be waiting for this process elsewhere,
        and the launcher ends them as soon as this one has said what is wrong.
        """
        if dist.is_initialized() and sys.exc_info()[0] is None:
            self.barrier()
            dist.destroy_process_group()


class _Autocast(nn.Module):
    """A module whose forward pass runs in the config's precision, whoever calls it."""

    def __init__(self, module: nn.Module, *, precision: str, device_type: str) -> None:
        super().__init__()
        self.module, self._precision, self._device_type = module, precision, device_type

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._precision == "fp64":
            args, kwargs = _cast(args, torch.float64), _cast(kwargs, torch.float64)
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._precision == "bf16"):
            outputs = self.module(*args, **kwargs)
        return _cast(outputs, torch.float32) if self._precision == "bf16" else outputs


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Convert the floating-point tensors in ``value``, also those in lists, tuples and dicts, to ``dtype``."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return type(value)((key, _cast(item, dtype)) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_cast(item, dtype) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _data_parallel(wrapped: nn.Module, device: torch.device) -> nn.Module:
    """Put ``wrapped`` under DDP; buffers are not broadcast, since every process moves them alike."""
    parameters = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    sync_buffers = (
        "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    )  # before 2.15
    options: dict[str, Any] = {sync_buffers: False}
    return nn.parallel.DistributedDataParallel(
        wrapped,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **options,
    )


def _saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Name the buffers that belong to the module's state."""
    buffers: dict[str, Tensor] = {}
    for prefix, owner in module.named_modules():
        transient = owner._non_persistent_buffers_set  # pyright: ignore[reportPrivateUsage]
        for name, buffer in owner.named_buffers(recurse=False):
            if name not in transient:
                buffers[f"{prefix}.{name}" if prefix else name] = buffer
    return buffers
