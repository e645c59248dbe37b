"""What a GPU can do at most, measured where the figures are: the roofline that steps are held against."""

import torch

from benchmarks.device_times import median_ms

SIDE = 8192
COPIED_BYTES = 2**30


def peak_flops(device: torch.device) -> float:
    """Measure the operations per second of a large bf16 matrix product, two for each multiply-add."""
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * SIDE**3 / (median_ms(lambda: a @ b, device=device, rounds=10) / 1000)


def peak_bandwidth(device: torch.device) -> float:
    """Measure the bytes read and written per second by a large copy."""
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / (median_ms(lambda: target.copy_(source), device=device, rounds=10) / 1000)
