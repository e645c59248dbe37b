"""Which implementation of window attention is the fastest on a GPU, from measurements.

``python benchmarks/kernels/compare.py --device cuda`` measures and prints lines of this table.
"""

from typing import Literal

import torch
from torch import Tensor

from backbones.visible.cost_models import Tiles
from backbones.visible.window_layout import GroupPlan

FASTEST: dict[tuple[tuple[int, int], int, int], Literal["sdpa", "fused"]] = {}
"""By (compute capability, channels per head, slots of a group rounded up to tiles). Nothing has been measured yet."""


def fastest(qkv: Tensor, plan: GroupPlan) -> Literal["sdpa", "fused"]:
    """Return the fastest implementation measured for ``qkv`` [b, n, 3, h, d] on its GPU, ``sdpa`` where nothing was."""
    return FASTEST.get((_capability(qkv.device), qkv.shape[-1], Tiles().padded(plan.group_size)), "sdpa")


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
