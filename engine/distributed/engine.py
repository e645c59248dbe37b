"""The processes of a run and the model that they train: one interface over DeepSpeed, DDP and a single process.

In every mode the gradient of a step is the mean over all micro-batches of all processes; weights, gradient sums,
reductions and the optimizer are fp32 (fp64 on request, without DeepSpeed), and only the forward pass runs under bf16
autocast. The optimizer is torch's, as given. Nothing in forward, backward and step waits for the device, except what
ZeRO-3 itself waits for.
"""

import contextlib
import datetime
import inspect
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.checkpoint.slices import Kind, TensorSlice
from engine.config import DistributedConfig
from engine.distributed.batch_norm import commit_step_statistics, step_batch_norm
from engine.distributed.cpu import capabilities, keep_freed_memory, precision_advice
from engine.distributed.deepspeed_zero import deepspeed_sharding, start_deepspeed, zero_config
from engine.distributed.float8 import check_float8, use_float8
from engine.distributed.sharding import ParamSlice, Replicated, StateSharding, clip_gradients
from engine.errors import UserError

logger = logging.getLogger(__name__)

EngineKind = Literal["deepspeed", "ddp", "single"]
M = TypeVar("M", bound=nn.Module)
Read = Callable[[Kind, str, int, int], Tensor]
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)


class Engine:
    """The processes of this run and the model that they train."""

    def __init__(self, config: DistributedConfig) -> None:
        """Join the other processes that the launcher started, choose the device, and make kernels deterministic if asked."""
        self._config = config
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = _device()
        self.kind: EngineKind = _kind(config, world_size=self.world_size)
        check_float8(config, is_sharded=self.is_sharded, device=self.device)
        _set_determinism(self.device, deterministic=config.deterministic)
        if (
            self.is_main
            and self.device.type == "cpu"
            and (advice := precision_advice(config.precision, capabilities()))
        ):
            logger.info(advice)
        if self.kind != "single":
            _join(self.device)
        elif config.engine == "auto":
            logger.info(
                "one process on %s, without DeepSpeed; `accelerate launch --config_file pretrain/cpu_two_processes.yaml ...` "
                "starts two under DeepSpeed, `accelerate launch --use_deepspeed --num_processes N ...` N",
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
        """Move ``model`` to the device and its weights to the type they are trained in; call it before loading weights."""
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
            sizes = {"micro_batches": micro_batches, "micro_batch_size": micro_batch_size}
            num_elements = sum(parameter.numel() for parameter in model.parameters())
            zero = zero_config(stage=self._config.zero_stage, num_elements=num_elements, **sizes)
            self._wrapped: Any = start_deepspeed(wrapped, optimizer, config=zero, device=self.device)
            where = {"stage": self._config.zero_stage, "rank": self.rank, "world_size": self.world_size}
            self._sharding: StateSharding = deepspeed_sharding(self._wrapped, model, optimizer, **where)
            return
        self._wrapped = _data_parallel(wrapped, self.device) if self.kind == "ddp" else wrapped
        self._sharding = Replicated(model, optimizer, rank=self.rank, world_size=self.world_size)

    def forward(self, *args: Any, last: bool = True, **kwargs: Any) -> Any:
        """Run the model in the config's precision; floating-point outputs come back in the type of the weights.

        ``last`` marks the pass with the step's last micro-batch: DDP decides here whether the backward pass will sum over processes.
        """
        with contextlib.nullcontext() if last or self.kind != "ddp" else self._wrapped.no_sync():
            return self._wrapped(*args, **kwargs)

    def autocast(self) -> torch.autocast:
        """Return the precision of ``forward`` as a context, for evaluating ``module`` or parts of it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._config.precision == "bf16")

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the share of a micro-batch, or of the sum of several, in the step's mean gradient; ``last`` marks the step's last one."""
        loss = loss / self._micro_batches
        if self.kind == "deepspeed":
            self._wrapped.set_gradient_accumulation_boundary(last)
            self._wrapped.backward(loss, scale_wrt_gas=False)
        else:
            loss.backward()

    def step(self, lrs: Sequence[float], *, skipped: Sequence[int] = ()) -> Tensor:
        """Clip, update with one learning rate per param group, forget the gradients; return their norm, a 0-d tensor.

        ``skipped`` are the numbers of the step's micro-batches, over all processes, whose BatchNorm statistics do not count.
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
        """Return the runs of elements that this process owns; over all processes each element exactly once."""
        return self._sharding.owned

    def sync_weights(self) -> None:
        """Make every process's module agree with the master weights in ``param_slices`` (collective)."""
        with torch.no_grad():
            self._sharding.sync_weights()

    def state_slices(self) -> list[TensorSlice]:
        """Return what this process must save: its runs' weights and moments, and on rank 0 the buffers."""
        slices: list[TensorSlice] = []
        for run in self._sharding.owned:
            kinds: dict[Kind, Tensor | None] = {
                "weight": run.weight,
                "exp_avg": run.exp_avg,
                "exp_avg_sq": run.exp_avg_sq,
            }
            where = {"name": run.name, "shape": run.shape, "offset": run.offset}
            slices += [TensorSlice(kind=kind, values=x, **where) for kind, x in kinds.items() if x is not None]
        if self.is_main:
            for name, buffer in self.buffers().items():
                values = buffer.detach().reshape(-1)
                slices.append(TensorSlice(kind="buffer", name=name, shape=tuple(buffer.shape), offset=0, values=values))
        return slices

    @torch.no_grad()
    def load_optimizer(self, read: Read, *, optimizer_steps: int) -> None:
        """Fill the optimizer's moments and step counts; the weights were in the model before ``prepare``."""
        for run in self._sharding.held:
            if run.exp_avg is not None and run.exp_avg_sq is not None:
                length = run.weight.numel()
                run.exp_avg.copy_(read("exp_avg", run.name, run.offset, length))
                run.exp_avg_sq.copy_(read("exp_avg_sq", run.name, run.offset, length))
        for step in self._sharding.steps:
            step.fill_(optimizer_steps)

    @torch.no_grad()
    def load_state(self, read: Read, *, optimizer_steps: int) -> None:
        """Put weights, buffers and the optimizer of a prepared model back to what was saved (collective)."""
        for run in self._sharding.owned:
            run.weight.copy_(read("weight", run.name, run.offset, run.weight.numel()))
        self._sharding.sync_weights()
        for name, buffer in self.buffers().items():
            buffer.copy_(read("buffer", name, 0, buffer.numel()).view(buffer.shape))
        self.load_optimizer(read, optimizer_steps=optimizer_steps)

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers that belong to the model's state, by name; the same on every process."""
        return _saved_buffers(self._module)

    @torch.no_grad()
    def full_state_dict(self) -> dict[str, Tensor]:
        """Return CPU copies of all weights and buffers on rank 0 and nothing elsewhere, gathering one at a time (collective)."""
        weights: dict[str, Tensor] = {}
        for name, parameter in self._module.named_parameters():
            with self._sharding.gathered(parameter):
                if self.is_main:
                    weights[name] = parameter.detach().to("cpu", copy=True)
        if self.is_main:
            weights |= {name: buffer.detach().to("cpu", copy=True) for name, buffer in self.buffers().items()}
        return weights

    def average(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Return the mean of each value over the processes (collective; waits for the device)."""
        return self.collect(values, own=0.0)[0] if values else {}

    def collect(self, values: Mapping[str, Tensor | float], *, own: float) -> tuple[dict[str, float], list[float]]:
        """Return the mean of each value over the processes, and every process's ``own`` (one collective; waits for the device)."""
        numbers = [torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values.values()]
        each = torch.zeros(self.world_size, dtype=torch.float64, device=self.device)
        each[self.rank] = own
        sums = torch.cat([*(number.detach().view(1) for number in numbers), each])
        if self.world_size > 1:
            dist.all_reduce(sums)
        means, every = (sums[: len(numbers)] / self.world_size).tolist(), sums[len(numbers) :].tolist()
        return dict(zip(values, means, strict=True)), every

    def gather(self, x: Tensor) -> Tensor:
        """Return the processes' tensors joined along the first axis, whose length may differ among them (collective)."""
        if self.world_size == 1:
            return x
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world_size)]
        dist.all_gather(lengths, torch.tensor([len(x)], device=self.device))
        counts = [int(length) for length in lengths]
        padded = x.new_zeros((max(counts), *x.shape[1:]), device=self.device)
        padded[: len(x)] = x
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded)
        return torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])

    def gather_lines(self, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return all processes' lines of JSON values, in the order of the processes (collective)."""
        words = "".join(json.dumps(line) + "\n" for line in lines).encode()
        everything = self.gather(torch.from_numpy(np.frombuffer(words, np.uint8).copy()))
        return [json.loads(line) for line in bytes(everything.tolist()).splitlines()]

    def any(self, flag: bool) -> bool:
        """Return whether any process says yes (collective; waits for the device)."""
        if self.world_size == 1:
            return flag
        answer = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(answer, op=dist.ReduceOp.MAX)
        return bool(answer)

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's ``value``, a small picklable object, on every process (collective)."""
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

        While an exception is on its way nothing is waited for: the others may be waiting for this process elsewhere, and
        the launcher ends them as soon as this one has said what is wrong.
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
    """Return ``value`` with the floating-point tensors in it, also in lists, tuples and dicts, as ``dtype``."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return type(value)((key, _cast(item, dtype)) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_cast(item, dtype) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _kind(config: DistributedConfig, *, world_size: int) -> EngineKind:
    """Return how the processes work together; ``auto`` follows the launcher."""
    kind = config.engine
    if kind == "auto":
        asked = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1")
        kind = "deepspeed" if asked else "ddp" if world_size > 1 else "single"
    if kind == "single" and world_size > 1:
        raise UserError(
            f"distributed.engine single is for one process, but {world_size} were started; use auto, ddp or deepspeed, "
            "or start one process"
        )
    if kind == "deepspeed" and config.precision == "fp64":
        raise UserError(
            "distributed.precision fp64 does not work under DeepSpeed, which keeps fp32 weights; use "
            "--distributed.engine ddp (or single), or precision bf16 or fp32"
        )
    return kind


def _device() -> torch.device:
    """Return this process's GPU, or the CPU where there is none or the launcher asked for it."""
    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
    if (
        asked_for_cpu
        or os.environ.get("ACCELERATE_TORCH_DEVICE", "").startswith("cpu")
        or not torch.cuda.is_available()
    ):
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _join(device: torch.device) -> None:
    """Join the process group, or make one of this process alone where no launcher did."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
    if not dist.is_initialized():
        on_gpu = device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", timeout=COLLECTIVE_TIMEOUT, device_id=device if on_gpu else None
        )


def _set_determinism(device: torch.device, *, deterministic: bool) -> None:
    """Choose deterministic kernels: always on a CPU, where they cost nothing, else on request."""
    deterministic = deterministic or device.type == "cpu"
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # subnormal numbers slow a CPU down by half where they are many
        keep_freed_memory()
    if device.type == "cuda" and deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False


def _data_parallel(wrapped: nn.Module, device: torch.device) -> nn.Module:
    """Return ``wrapped`` under DDP; buffers are not broadcast, since every process moves them alike."""
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # renamed in 2.15
    options: dict[str, Any] = {"gradient_as_bucket_view": True, sync_buffers: False}
    device_ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(wrapped, device_ids=device_ids, **options)


def _saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that belong to the module's state, by name."""
    buffers: dict[str, Tensor] = {}
    for prefix, owner in module.named_modules():
        passing = owner._non_persistent_buffers_set  # pyright: ignore[reportPrivateUsage]
        for name, buffer in owner.named_buffers(recurse=False):
            if name not in passing:
                buffers[f"{prefix}.{name}" if prefix else name] = buffer
    return buffers
