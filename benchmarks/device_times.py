"""How long a piece of work takes: CUDA events on a GPU, process CPU time elsewhere."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

WARM_UP = 3


def median_ms(run: Callable[[], object], *, device: torch.device, rounds: int) -> float:
    """Time ``run`` in milliseconds (median), which may compile at first: the first calls do not count."""
    for _ in range(WARM_UP):
        run()
    return 1000 * median(seconds_of(run, device=device) for _ in range(rounds))


def forward_backward_ms(
    run: Callable[[], Tensor], inputs: Sequence[Tensor], *, device: torch.device, rounds: int
) -> dict[str, float]:
    """Time ``run`` alone, and with its gradients for ``wanted``, in milliseconds (medians)."""
    weight = torch.randn_like(run())
    return {
        "forward": median_ms(run, device=device, rounds=rounds),
        "forward_backward": median_ms(lambda: torch.autograd.grad(run(), inputs, weight), device=device, rounds=rounds),
    }


def seconds_of(run: Callable[[], object], *, device: torch.device) -> float:
    """Time one call of ``run``, in seconds."""
    if device.type == "cpu":
        started = time.process_time()
        run()
        return time.process_time() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
