"""From images to the embedded patches of the visible units.

Legend: b batch, s micro-batches of a stack, k visible units, n tokens, p values of a patch, c channels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor

from backbones.stacking import Layout, VisibleStack
from backbones.visible import VisibleLayout


def embed_visible(embed: PatchEmbed, images: Float[Tensor, "*s b 3 h w"], layout: Layout) -> Float[Tensor, "sb n c"]:
    """Return the embedded patches of the visible units, in nested order: ``embed``'s convolution as a product."""
    if isinstance(layout, VisibleStack):
        each = zip(images, layout.layouts, strict=True)
        patches = torch.cat([visible_patches(own, part) for own, part in each])
    else:
        patches = visible_patches(images, layout)
    x = F.linear(patches, embed.proj.weight.flatten(1), embed.proj.bias)
    return embed.norm(x)


def visible_patches(images: Float[Tensor, "b 3 h w"], layout: VisibleLayout) -> Float[Tensor, "b n p"]:
    """Return the pixels of the patches of the visible units, each as (channel, row, column), in nested order."""
    (rows, cols), (height, width), patch = layout.spec.units, layout.spec.unit, layout.spec.patch
    batch, channels = images.shape[:2]
    levels = (height // patch[0]).bit_length() - 1
    units = images.view(batch, channels, rows, height, cols, width)
    # b c rows height cols width -> k b c height width
    row, col = layout.stages[-1].coords.unbind(1)  # a unit is one token of the last stage
    units = units[:, :, row, :, col]
    # k b c (2 .. 2 ph) (2 .. 2 pw) -> b k (2 2) .. (2 2) c ph pw: per level the column bit comes first
    units = units.view(-1, batch, channels, *[2] * levels, patch[0], *[2] * levels, patch[1])
    first_row, first_col = 3, 4 + levels
    bits = [axis for level in range(levels) for axis in (first_col + level, first_row + level)]
    units = units.permute(1, 0, *bits, 2, first_row + levels, first_col + levels)
    return units.reshape(batch, -1, channels * patch[0] * patch[1])


def unit_maps(images: Float[Tensor, "b c h w"], layout: VisibleLayout) -> Float[Tensor, "bk c height width"]:
    """Return the pixels of the visible units, image by image, as small images."""
    (rows, cols), (height, width) = layout.spec.units, layout.spec.unit
    units = images.unflatten(3, (cols, width)).unflatten(2, (rows, height))  # b c rows height cols width
    maps = units[:, :, layout.units // cols, :, layout.units % cols]  # -> k b c height width
    return maps.transpose(0, 1).flatten(0, 1)


def token_map(visible: Bool[Tensor, "rows cols"], grid: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """Return, for every token of a grid, whether its unit is visible."""
    rows, cols = visible.shape
    return visible.repeat_interleave(grid[0] // rows, 0).repeat_interleave(grid[1] // cols, 1)
