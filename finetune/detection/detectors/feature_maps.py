"""The feature pyramid that torchvision's heads stand on: backbone, lateral connections, and levels above them.

Everything that slides over maps runs once per rounded size (``MapGroup``), so padding reaches no convolution; what is
per image or per region comes back in the images' order.

Legend: b images, r regions, c channels.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from engine.terms import Size
from finetune.network.pyramid import MapGroup, Pyramid

ROI_LEVELS = 4
SAMPLING_RATIO = 2


class FeatureMaps(nn.Module):
    """Maps of one width at rising strides.

    Args:
        pyramid: the backbone's maps.
        width: channels of all maps.
        above: ``pool`` adds one level by taking every second cell, ``convolutions`` two by strided convolutions.
    """

    def __init__(self, pyramid: Pyramid, *, width: int, above: Literal["pool", "convolutions"]) -> None:
        super().__init__()
        self.pyramid = pyramid
        more = 1 if above == "pool" else 2
        self.strides = (*pyramid.strides, *(pyramid.strides[-1] * 2**i for i in range(1, more + 1)))
        extra = LastLevelMaxPool() if above == "pool" else LastLevelP6P7(width, width)
        self.fpn = FeaturePyramidNetwork(list(pyramid.channels), width, extra_blocks=extra)

    def forward(self, images: Tensor, sizes: Sequence[Size] | None = None) -> list[MapGroup]:
        """Compute the maps of normalised ``images`` [b, 3, h, w] with these true sizes, by rounded size."""
        groups = self.pyramid.groups(images, sizes)
        return [replace(group, maps=self._levels(group.maps)) for group in groups]

    def _levels(self, maps: list[Tensor]) -> list[Tensor]:
        named = OrderedDict((str(number), x) for number, x in enumerate(maps))
        return [in_full(x) for x in self.fpn(named).values()]


class RegionPool(nn.Module):
    """RoIAlign on the four finest maps, region by region from the level that fits its size (FPN, eq. 1).

    Takes the place of torchvision's own in its RoI heads; there the features are what :class:`FeatureMaps` returns.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.names = [str(number) for number in range(ROI_LEVELS)]
        self.align = MultiScaleRoIAlign(self.names, side, SAMPLING_RATIO)

    def forward(self, groups: list[MapGroup], boxes: list[Tensor], _image_shapes: Sequence[Size]) -> Tensor:
        """Pool the regions' features [r, c, side, side], image by image."""
        features: dict[int, Tensor] = {}
        for group in groups:
            inside = [boxes[row] for row in group.rows]
            maps = dict(zip(self.names, group.maps, strict=False))
            pooled = self.align(maps, inside, [group.size] * len(inside))
            parts = pooled.split([len(x) for x in inside])
            features |= dict(zip(group.rows, parts, strict=True))
        return torch.cat([features[row] for row in range(len(boxes))])


def in_full(x: Tensor) -> Tensor:
    """Convert what autocast made bf16 to fp32, in which losses and boxes are computed."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
