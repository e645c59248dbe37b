"""How the processes of a run start: the way they work together, their device, their group, deterministic kernels."""

import datetime
import os
import socket
from typing import Literal

import torch
import torch.distributed as dist

from engine.config import DistributedConfig
from engine.distributed.cpu import keep_freed_memory
from engine.distributed.launched import Launched, local_number
from engine.distributed.meeting import said_while_waiting
from engine.errors import PassingError, UserError

EngineKind = Literal["deepspeed", "ddp", "single"]
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)


def engine_kind(config: DistributedConfig, *, world_size: int) -> EngineKind:
    """Choose how the processes work together; ``auto`` follows the launcher.

    Raises:
        UserError: the choice does not go with the number of processes or with the precision.
    """
    kind = config.engine
    if kind == "auto":
        use_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1")
        kind = "deepspeed" if use_deepspeed else "ddp" if world_size > 1 else "single"
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


def local_device() -> torch.device:
    """Choose this process's GPU, or the CPU where there is none or the launcher asked for it."""
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
    use_cpu |= os.environ.get("ACCELERATE_TORCH_DEVICE", "").startswith("cpu")
    if use_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_number("LOCAL_RANK", os.environ))
    torch.cuda.set_device(device)
    return device


def join_processes(device: torch.device, *, launched: Launched | None) -> None:
    """Join the process group, or make one of this process alone where no launcher did."""
    if launched is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
        launched = Launched(rank=0, world_size=1, meeting_place=f"127.0.0.1:{port}")
    if not dist.is_initialized():
        on_gpu = device.type == "cuda"
        try:
            with said_while_waiting(launched):
                dist.init_process_group(
                    "nccl" if on_gpu else "gloo", timeout=COLLECTIVE_TIMEOUT, device_id=device if on_gpu else None
                )
        except (ValueError, dist.DistError) as error:
            may_pass = isinstance(error, dist.DistError)  # a port in use, a node that is late or gone
            raise (PassingError if may_pass else UserError)(
                f"the processes cannot meet: {error}; start them with `accelerate launch` or `torchrun`, which set "
                "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
            ) from error


def set_determinism(device: torch.device, *, deterministic: bool) -> None:
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
