"""How long a piece of work takes: CUDA events on a GPU, process CPU time elsewhere."""

import time
from collections.abc import Callable
from statistics import median

import torch

WARM_UP = 3


def median_ms(run: Callable[[], object], *, device: torch.device, rounds: int) -> float:
    """Return the median milliseconds of ``run``, which may compile at first: the first calls do not count."""
    for _ in range(WARM_UP):
        run()
    return median(_cuda_ms(run) if device.type == "cuda" else _cpu_ms(run) for _ in range(rounds))


def _cuda_ms(run: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _cpu_ms(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start)
