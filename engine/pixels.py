"""Raw pixels to what the network takes.

Legend: b images (on one axis or more), h w height and width in pixels.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

Statistics = tuple[float, float, float]


class Pixels(nn.Module):
    """uint8 images to floats normalised by the statistics that the backbone was trained with, on their device."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Statistics, std: Statistics) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: UInt8[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
        """Subtract the mean and divide by the standard deviation."""
        return (images.to(self.mean.dtype) - self.mean) / self.std
