"""The pixels of units as a target, and the normalisation of any target unit by unit (MAE, section 4).

Legend: b images, s micro-batches of a stack, h w pixels, l units, d values of a unit (height * width * 3 for pixels).
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from engine.terms import Size

EPS = 1e-6


def unit_pixels(images: Float[Tensor, "*s b 3 h w"], unit: Size) -> Float[Tensor, "*s b l d"]:
    """Cut images into units in raster order, each flattened as (row, column, channel)."""
    return rearrange(images, "... c (r p) (s q) -> ... (r s) (p q c)", p=unit[0], q=unit[1])


def pixels_to_images(units: Float[Tensor, "b l d"], unit: Size, grid: Size) -> Float[Tensor, "b 3 h w"]:
    """Put units back together: the inverse of :func:`unit_pixels`."""
    return rearrange(units, "b (r s) (p q c) -> b c (r p) (s q)", p=unit[0], q=unit[1], r=grid[0], s=grid[1], c=3)


def normalised(units: Float[Tensor, "*s b l d"]) -> Float[Tensor, "*s b l d"]:
    """Subtract each unit's mean and divide by the root of its unbiased variance plus 1e-6."""
    mean = units.mean(dim=-1, keepdim=True)
    variance = units.var(dim=-1, keepdim=True)
    return (units - mean) / (variance + EPS).sqrt()
