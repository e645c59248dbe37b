"""Anchors at the true strides of a pyramid's maps, whatever the image's size.

torchvision divides the image's size by the map's, which is not the stride where a small map was rounded up.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

RATIOS = (0.5, 1.0, 2.0)


def make_anchors(strides: Sequence[int], *, scale: float, octaves: int) -> AnchorGenerator:
    """Make anchors of ``scale`` times the stride, in ``octaves`` sizes up to its double and three shapes, by level."""
    sizes = tuple(tuple(stride * scale * 2 ** (i / octaves) for i in range(octaves)) for stride in strides)
    return AnchorGenerator(sizes, (RATIOS,) * len(strides))  # pyright: ignore[reportArgumentType]


def anchors_on(maps: Sequence[Tensor], generator: AnchorGenerator, *, strides: Sequence[int]) -> list[Tensor]:
    """Lay the anchors [cells * anchors per cell, 4] of each map, as left, top, right, bottom in pixels."""
    like = maps[0]
    generator.set_cell_anchors(torch.float64 if like.dtype == torch.float64 else torch.float32, like.device)
    grids = [[x.shape[2], x.shape[3]] for x in maps]
    steps = [[torch.tensor(stride, device=like.device)] * 2 for stride in strides]
    return generator.grid_anchors(grids, steps)
