"""From images to the embedded patches of the visible units.

Legend: b batch (images of each micro-batch), s micro-batches of a stack, k visible units, n tokens,
p values of a patch, c channels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor

from backbones.visible.layout import LayoutSpec, VisibleLayout
from backbones.visible.stacking import Layout, VisibleStack
from engine.terms import Size


def embed_visible(embed: PatchEmbed, images: Float[Tensor, "*s b 3 h w"], layout: Layout) -> Float[Tensor, "sb n c"]:
    """Embed the patches of the visible units, in nested order: ``embed``'s convolution as a product."""
    if isinstance(layout, VisibleStack):
        patches = visible_patches(images, layout.unit_coords, layout.spec)
    else:
        patches = visible_patches(images[None], layout.stages[-1].coords[None], layout.spec)
    x = F.linear(patches, embed.proj.weight.flatten(1), embed.proj.bias)
    return embed.norm(x)


def visible_patches(
    images: Float[Tensor, "s b 3 h w"], unit_coords: Int[Tensor, "s k 2"], spec: LayoutSpec
) -> Float[Tensor, "sb n p"]:
    """Cut the patches of the visible units out of images, each as (channel, row, column), in nested order."""
    (rows, cols), (height, width), patch = spec.units, spec.unit, spec.patch
    levels = (height // patch[0]).bit_length() - 1
    units = images.unflatten(4, (cols, width)).unflatten(3, (rows, height))  # s b c rows height cols width
    stack = torch.arange(len(images), device=images.device)[:, None]
    row, col = unit_coords.unbind(2)  # a unit is one token of the last stage
    units = units[stack, :, :, row, :, col]  # s k b c height width
    num_units, batch, channels = units.shape[1:4]
    # s k b c (2 .. 2 ph) (2 .. 2 pw) -> s b k (2 2) .. (2 2) c ph pw: per level the column bit comes first
    units = units.reshape(-1, num_units, batch, channels, *[2] * levels, patch[0], *[2] * levels, patch[1])
    first_row, first_col = 4, 5 + levels
    bits = [axis for level in range(levels) for axis in (first_col + level, first_row + level)]
    units = units.permute(0, 2, 1, *bits, 3, first_row + levels, first_col + levels)
    return units.reshape(len(images) * batch, -1, channels * patch[0] * patch[1])


def unit_maps(images: Float[Tensor, "b c h w"], layout: VisibleLayout) -> Float[Tensor, "bk c height width"]:
    """Cut the visible units out of images, image by image, as small images."""
    (rows, cols), (height, width) = layout.spec.units, layout.spec.unit
    units = images.unflatten(3, (cols, width)).unflatten(2, (rows, height))  # b c rows height cols width
    maps = units[:, :, layout.units // cols, :, layout.units % cols]  # -> k b c height width
    return maps.transpose(0, 1).flatten(0, 1)


def token_map(visible: Bool[Tensor, "rows cols"], grid: Size) -> Bool[Tensor, "height width"]:
    """Spread a mask of units over a grid of tokens: for every token, whether its unit is visible."""
    rows, cols = visible.shape
    return visible.repeat_interleave(grid[0] // rows, 0).repeat_interleave(grid[1] // cols, 1)
