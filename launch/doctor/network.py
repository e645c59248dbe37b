"""Whether the processes reach each other, how fast, and whether their clocks agree."""

import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from launch.doctor.findings import Finding, judged

REDUCED_BYTES = 1 << 26
REPEATS = 5
SLOW_GPU_GB_PER_S = 5.0
SKEW_WARN_S, SKEW_FAIL_S = 1.0, 30.0


def join(*, timeout_s: float) -> None:
    """Join the other processes, over NCCL where there are GPUs."""
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout_s))


def everyone(value: Any) -> list[Any]:
    """Gather every process's value (collective); plain data only."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def check_all_reduce(device: torch.device, *, num_bytes: int = REDUCED_BYTES) -> Finding:
    """Sum a gradient's worth of numbers over all processes, a few times (collective)."""
    world_size = dist.get_world_size()
    if world_size == 1:
        return judged("all-reduce", "one process: nothing to measure")
    values = torch.ones(num_bytes // 4, device=device)
    dist.all_reduce(values)
    start = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(values)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - start) / REPEATS
    is_exact = bool((values == float(world_size ** (REPEATS + 1))).all())
    gb_per_s = 2 * (world_size - 1) / world_size * num_bytes / seconds / 1e9
    return judged(
        "all-reduce",
        f"{gb_per_s:.2f} GB/s bus bandwidth over {dist.get_backend()}, {world_size} processes, {num_bytes >> 20} MiB"
        + ("" if is_exact else "; the sums are wrong"),
        fail=not is_exact,
        warn=device.type == "cuda" and gb_per_s < SLOW_GPU_GB_PER_S,
        advice="set NCCL_SOCKET_IFNAME or NCCL_IB_HCA in the cluster's environment, and look at NCCL_DEBUG=INFO for "
        "the transport",
    )


def check_clocks() -> Finding:
    """Compare the clocks right after a barrier (collective); what the barrier itself takes is in the figure."""
    dist.barrier()
    times = everyone(time.time())
    skew_s = max(times) - min(times)
    return judged(
        "clocks",
        f"{skew_s:.3f} s apart at most",
        warn=skew_s > SKEW_WARN_S,
        fail=skew_s > SKEW_FAIL_S,
        advice="have the nodes' clocks set (chrony): logs and stalled-process reports compare times of several nodes",
    )
