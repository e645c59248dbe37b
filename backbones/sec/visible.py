"""The SEC backbones on visible tokens only: the same modules, on grids whose tiles are the visible mask units.

Only the pixels of visible units enter. Convolutions are submanifold in every layer, the stem's too: what is masked
counts as zero, like what lies outside the image. BatchNorm sees visible positions, clusters are of visible tokens.

Legend: b batch, n tokens, k visible units, l units, e channels of the first stage, c of the last.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from backbones.registry.backbone import Arguments, Backbone, DenseForward
from backbones.registry.sizes import refuse_size
from backbones.sec.network import SecNetwork, dense_levels, dense_pixels
from backbones.visible.layout import LayoutSpec, VisibleLayout
from backbones.visible.token_grid import UNIT, GridSpec, tile_levels
from backbones.visible.tokens import token_map

STEM_REACH, STAGE_REACH = 1, 2
"""Tokens around a tile that 3x3 and 5x5 convolutions read."""


def sec_spec(model: SecNetwork) -> LayoutSpec:
    """Sizes that the layouts of a SEC backbone follow from: pixels, the stem's half resolution and the stages."""
    height, width = model.img_size
    dims = [info["num_chs"] for info in model.feature_info]
    channels = (3, dims[0] // 2, *dims)
    levels = tuple(
        GridSpec(grid=(height // 2**i, width // 2**i), channels=c, reach=STEM_REACH if i < 2 else STAGE_REACH)
        for i, c in enumerate(channels)
    )
    return LayoutSpec(img_size=(height, width), patch=(4, 4), unit=(UNIT, UNIT), stages=levels, build=tile_levels)


def forward_visible_sec(
    model: SecNetwork, images: Float[Tensor, "b 3 h w"], layout: VisibleLayout, *, attention: str = "auto"
) -> Float[Tensor, "b k c"]:
    """Encode visible units into the last stage's tokens, in raster order; ``attention`` has one way here."""
    del attention
    return model.features(visible_pixels(images, layout), layout.stages)


def visible_pixels(images: Float[Tensor, "b 3 h w"], layout: VisibleLayout) -> Float[Tensor, "b n 3"]:
    """Cut the pixels of the visible units out of the images, unit by unit."""
    (rows, cols), (height, width) = layout.spec.units, layout.spec.unit
    units = images.unflatten(3, (cols, width)).unflatten(2, (rows, height))  # b 3 rows height cols width
    row, col = layout.stages[-1].coords.unbind(1)  # a unit is one token of the last stage
    return units[:, :, row, :, col].permute(1, 0, 3, 4, 2).flatten(1, 3)  # k b 3 height width -> b (k height width) 3


def _forward_masked(
    model: SecNetwork,
    images: Float[Tensor, "b 3 h w"],
    visible: Bool[Tensor, "rows cols"],
    mask_token: Float[Tensor, "1 1 1 e"],
) -> Float[Tensor, "b l c"]:
    """Run everything, without the masked pixels, and with the mask token after the stem.

    The stem's BatchNorm counts the zeros in the place of masked pixels, as dense masked pretraining does; only the way
    on visible tokens has statistics that fit whole images.
    """
    levels = dense_levels(images)
    pixels = torch.where(token_map(visible, levels[0].tile), images, 0)
    tokens = model.patch_embed(dense_pixels(pixels), levels)
    seen = token_map(visible, levels[2].tile).flatten()[:, None]
    tokens = torch.where(seen, tokens, mask_token.flatten(1, 2).to(tokens.dtype))
    return model.final(model.stage_tokens(tokens, levels)[-1])


def without_windows(sizes: Arguments) -> Arguments:
    """Pass a config's sizes on but refuse windows, which clusters stand in the place of."""
    refuse_size(sizes, "window_size", family="a backbone with attention in clusters")
    return sizes


SEC = Backbone(
    network=SecNetwork,
    spec=sec_spec,
    forward=forward_visible_sec,
    dense=DenseForward(token_dim=lambda model: model.feature_info[0]["num_chs"], forward=_forward_masked),
    ends_in_norm=lambda model: isinstance(model.norm, nn.LayerNorm),
    arguments=without_windows,
    sec_options=frozenset({"cpe", "lce", "rope", "clusters", "global_token"}),
)
"""What SEC-Swin and SEC-FasterViT are; SecViT has more options."""
