"""Semantic FPN's decoder (Panoptic Feature Pyramid Networks, arXiv 1901.02446, section 3.2).

Each level of an FPN goes through 3x3 convolutions, GroupNorm, ReLU and twofold bilinear enlargements up to the finest
level's size, at least one convolution each; their sum is classified.

Legend: b images, c channels or classes, h w rows and columns of the finest map.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

MOST_GROUPS = 32


class SemanticFpn(nn.Module):
    """Maps, each of half the size of the one before, to logits at the finest's size."""

    def __init__(self, channels: Sequence[int], *, dim: int, num_classes: int) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(channels), dim)
        self.branches = nn.ModuleList(_branch(dim, num_enlargements=level) for level in range(len(channels)))
        self.classifier = nn.Conv2d(dim // 2, num_classes, kernel_size=1)

    def forward(self, features: Sequence[Tensor]) -> Float[Tensor, "b c h w"]:
        """Compute the logits."""
        levels: Any = self.fpn(OrderedDict((str(number), level) for number, level in enumerate(features)))
        size = features[0].shape[2:]
        branches = [branch(level) for branch, level in zip(self.branches, levels.values(), strict=True)]
        same = [x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear") for x in branches]
        return self.classifier(torch.stack(same).sum(0))


def _branch(dim: int, *, num_enlargements: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(max(num_enlargements, 1)):
        width = dim if number == 0 else dim // 2
        layers += [
            nn.Conv2d(width, dim // 2, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(min(MOST_GROUPS, dim // 4), dim // 2),
            nn.ReLU(),
        ]
        if num_enlargements:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)
