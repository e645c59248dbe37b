"""What this project must know of DeepSpeed's inside: its configuration, and where each ZeRO stage keeps what.

By parameter name, and without gathering whole tensors, DeepSpeed 0.19.8 gives access at stage 3 only
(``deepspeed.utils.safe_get_local_*``), which is used here. At stages 1 and 2 it has ``safe_get_full_*``, which reduce a
whole tensor on every process: too much for saving, so the flat partitions are taken apart, here and nowhere else.
``tests/integration/test_distributed.py`` fails where another version moves something. The model given to DeepSpeed is a
plain fp32 module that enters autocast by itself, so DeepSpeed accumulates, reduces and updates in fp32 throughout.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.distributed.sharding import ParamSlice, Replicated, StateSharding, adam_state, part_of, share_evenly

MAX_BUCKET_ELEMENTS = 50_000_000
PERSISTENT_ELEMENTS = 10_000  # ZeRO-3 keeps smaller parameters gathered


def zero_config(*, stage: int, micro_batches: int, micro_batch_size: int, num_elements: int) -> dict[str, Any]:
    """Configure DeepSpeed: plain fp32, no clipping (the engine clips), nothing that waits for the device."""
    bucket = max(1, min(num_elements, MAX_BUCKET_ELEMENTS))
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": stage == 3,  # at stages 1 and 2 overlapping costs a device synchronisation per backward pass
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": MAX_BUCKET_ELEMENTS,
    }
    if stage in (1, 2):
        zero["compute_grad_norm"] = False
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = PERSISTENT_ELEMENTS
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        "wall_clock_breakdown": False,
    }


def start_deepspeed(
    module: nn.Module, optimizer: torch.optim.Optimizer, *, config: dict[str, Any], device: torch.device
) -> Any:
    """Let accelerate put DeepSpeed's engine around ``module`` and ``optimizer``; the launcher's stage is ignored."""
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_CONFIG_DS_FIELDS", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
        os.environ.pop(name, None)
    if device.type == "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: PLC0415  (importing it takes seconds and reads DS_ACCELERATOR)
    from accelerate import Accelerator  # noqa: PLC0415
    from accelerate.state import AcceleratorState  # noqa: PLC0415
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs  # noqa: PLC0415
    from deepspeed.utils import logger as deepspeed_logger  # noqa: PLC0415

    deepspeed_logger.setLevel(logging.WARNING)
    # DeepSpeed 0.19 calls what torch 2.14 has renamed
    warnings.filterwarnings("ignore", r".*torch\.distributed\.\w+. is deprecated", FutureWarning)
    if device.type == "cpu":  # no compiling of CPU kernels at start-up: gloo does the communication
        deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue]
    AcceleratorState._reset_state(reset_partial_state=True)  # pyright: ignore[reportPrivateUsage]
    accelerator = Accelerator(
        mixed_precision="no",
        gradient_accumulation_steps=config["gradient_accumulation_steps"],
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=False),
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo" if device.type == "cpu" else "nccl")],
    )
    return accelerator.prepare(module, optimizer)[0]


def deepspeed_sharding(
    engine: Any, module: nn.Module, optimizer: torch.optim.Optimizer, *, stage: int, rank: int, world_size: int
) -> StateSharding:
    """Find where the state of ``module`` lies at this ZeRO stage."""
    if stage == 0:
        return Replicated(module, optimizer, rank=rank, world_size=world_size)
    if stage == 3:
        return Zero3(engine.optimizer, module, rank=rank)
    return Zero12(engine.optimizer, module, rank=rank, world_size=world_size)


class Zero12:
    """Stages 1 and 2: each group's parameters lie one after another in a flat buffer, cut into one part per process."""

    shards_gradients = True

    def __init__(self, zero: Any, module: nn.Module, *, rank: int, world_size: int) -> None:
        self._zero = zero
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.owned: list[ParamSlice] = []
        self.steps: list[Tensor] = []
        for group, master in enumerate(zero.single_partition_of_fp32_groups):
            state = adam_state(zero.optimizer, master)
            self.steps.append(state["step"])
            # Positions in the group's buffer: this process's part begins at `first`, a parameter at `start`. DeepSpeed
            # deals parameters out in turn, so the buffer's order is not the module's.
            first = rank * zero.partition_size[group]
            parameters, starts = zero.round_robin_bit16_groups[group], zero.round_robin_bit16_offsets[group]
            for parameter, start in zip(parameters, starts, strict=True):
                name = names.pop(id(parameter))
                begin, end = max(first - start, 0), min(first + master.numel() - start, parameter.numel())
                if begin < end:
                    own = start + begin - first, start + end - first
                    self.owned.append(
                        ParamSlice(
                            name=name,
                            shape=tuple(parameter.shape),
                            offset=begin,
                            weight=master.detach().view(-1)[slice(*own)],
                            exp_avg=part_of(state["exp_avg"], *own),
                            exp_avg_sq=part_of(state["exp_avg_sq"], *own),
                        )
                    )
        self.held = list(self.owned)
        # Frozen parameters are in no group: every process has them whole, and saves an even share.
        frozen = [(name, p) for name, p in module.named_parameters() if id(p) in names]
        self.owned += share_evenly(iter(frozen), {}, rank=rank, world_size=world_size)

    def gradients(self) -> list[Tensor]:
        """List the gradients of this process's partitions."""
        return [gradient for group in self._zero.averaged_gradients.values() for gradient in group]

    def sync_weights(self) -> None:
        """Gather the partitions' master weights into every process's module."""
        self._zero.update_lp_params()

    @contextlib.contextmanager
    def gathered(self, parameter: nn.Parameter) -> Iterator[None]:
        """Do nothing: every parameter is whole everywhere."""
        yield


class Zero3:
    """Stage 3: each parameter is cut into one part per process."""

    shards_gradients = True

    def __init__(self, zero: Any, module: nn.Module, *, rank: int) -> None:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state  # noqa: PLC0415

        self._zero = zero
        zero._get_norm_groups = lambda: [torch.zeros(())]  # the engine clips; DeepSpeed's own norm waits for the device
        # AdamW makes its state in the first step, which is too late to load a saved one.
        self.steps = [adam_state(zero.optimizer, master)["step"] for master in zero.fp32_partitioned_groups_flat]
        self._master: list[tuple[Any, Tensor]] = []
        self.held: list[ParamSlice] = []
        frozen: list[ParamSlice] = []
        parameters: Iterator[tuple[str, Any]] = module.named_parameters()
        for name, parameter in parameters:
            size = int(parameter.partition_numel())  # padded, so that all parts of a parameter are as long
            first, length = rank * size, max(0, min(size, int(parameter.ds_numel) - rank * size))
            shape = tuple(parameter.ds_shape)
            if not parameter.requires_grad:
                weight = parameter.ds_tensor.detach().view(-1)[:length]
                frozen.append(ParamSlice(name=name, shape=shape, offset=first, weight=weight))
                continue
            master = safe_get_local_fp32_param(parameter)
            assert master is not None
            self._master.append((parameter, master))
            self.held.append(
                ParamSlice(
                    name=name,
                    shape=shape,
                    offset=first,
                    weight=master.detach()[:length],
                    exp_avg=part_of(safe_get_local_optimizer_state(parameter, "exp_avg"), 0, length),
                    exp_avg_sq=part_of(safe_get_local_optimizer_state(parameter, "exp_avg_sq"), 0, length),
                )
            )
        self.held = [own for own in self.held if own.weight.numel()]
        self.owned = self.held + [own for own in frozen if own.weight.numel()]

    def gradients(self) -> list[Tensor]:
        """List the gradients of this process's parts; ``safe_get_local_grad`` would wait for the device at each."""
        return [gradient for group in self._zero.averaged_gradients.values() for gradient in group]

    def sync_weights(self) -> None:
        """Copy the master weights into the parts that the module gathers from, and refresh what stays gathered."""
        for parameter, master in self._master:
            parameter.ds_tensor.data.copy_(master)
        persistent = self._zero.persistent_parameters
        if persistent:
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)

    @contextlib.contextmanager
    def gathered(self, parameter: nn.Parameter) -> Iterator[None]:
        """Gather ``parameter`` on every process for as long as the context lasts."""
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters  # noqa: PLC0415

        with GatheredParameters([parameter]):
            yield
