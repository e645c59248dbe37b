"""A reconstruction target from outside the packages: histograms of gradients (HOG, as in MaskFeat, arXiv 2112.09133).

accelerate launch pretrain/main.py --extension examples/extensions/target.py --mim.target gradients --recipe FILE ...

Legend: b images (after the micro-batches of a stack), h w pixels, l units, d = CELLS * CELLS * 3 * BINS.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from engine.terms import Size
from pretrain.targets.registry import TARGETS

BINS, CELLS = 9, 4
"""Directions of a histogram; cells along each side of a unit, one histogram for each channel of each cell."""


@torch.no_grad()
def gradient_histograms(images: Float[Tensor, "*b 3 h w"], unit: Size) -> Float[Tensor, "*b l d"]:
    """Sum the gradients of each cell by direction, strong ones more, and scale each histogram to length 1."""
    padded = F.pad(images.flatten(0, -4), (1, 1, 1, 1), mode="replicate")
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    # A gradient and its opposite are one direction: angles of a half circle.
    direction = (torch.atan2(down, right) % math.pi / math.pi * BINS).long().clamp(max=BINS - 1)
    strength = torch.hypot(down, right)
    by_direction = torch.stack([strength * (direction == number) for number in range(BINS)], dim=-1)
    histograms = rearrange(
        by_direction,
        "b c (r i p) (s j q) k -> b (r s) (i j c) k (p q)",
        i=CELLS,
        j=CELLS,
        p=unit[0] // CELLS,
        q=unit[1] // CELLS,
    ).sum(-1)
    return F.normalize(histograms, dim=-1).flatten(-2).unflatten(0, images.shape[:-3])


TARGETS["gradients"] = f"{__name__}:gradient_histograms"
