"""timm's ConvNeXt (arXiv 2201.03545) and ConvNeXt V2 on visible tokens only: the same modules and parameters.

The stem and the downsampling cut whole squares, which lie inside mask units. The 7x7 convolutions see a masked
neighbour as zero, like the border of the image, and V2's response norm is over the visible tokens.

Legend: b batch, n visible tokens, k visible units, l units, c channels.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from backbones.ops.submanifold import depthwise
from backbones.ops.window_attention import Implementation
from backbones.recompute.blocks import run_block
from backbones.registry.backbone import Arguments, Backbone, DenseForward
from backbones.registry.sizes import check_lengths, doubled, refuse_size
from backbones.visible.layout import LayoutSpec, VisibleLayout
from backbones.visible.token_grid import GridSpec, TokenGrid, tile_levels
from backbones.visible.tokens import token_map, unit_maps
from engine.errors import UserError
from engine.terms import Size


def forward_visible_convnext(
    model: Any, images: Float[Tensor, "b 3 h w"], layout: VisibleLayout, *, attention: Implementation
) -> Float[Tensor, "b k c"]:
    """Encode the visible units, in raster order, up to the norm that timm applies after pooling.

    There is no ``attention``.
    """
    maps = model.stem(unit_maps(images, layout))
    x = images.new_empty(0)
    for stage, grid in zip(model.stages, layout.stages, strict=True):
        x = grid.tokens(stage.downsample(maps), len(images))
        for block in stage.blocks:
            x = run_block(block, x, grid, forward=_block, recompute=stage.grad_checkpointing)
        maps = grid.maps(x)
    return _as_map(_norms(model), x)


def _block(block: Any, x: Float[Tensor, "b n c"], grid: TokenGrid) -> Float[Tensor, "b n c"]:
    y = depthwise(block.conv_dw, x, grid)
    if block.use_conv_mlp:
        y = _as_map(nn.Sequential(block.norm, block.mlp), y)
    else:
        y = block.mlp(block.norm(y).unsqueeze(1)).squeeze(1)  # one row of tokens: V2's response norm is over a map
    if block.gamma is not None:
        y = y * block.gamma
    return x + block.drop_path(y)


def _norms(model: Any) -> nn.Module:
    """Join the norms before and after pooling, of which one does nothing."""
    return nn.Sequential(model.norm_pre, getattr(model.head, "norm", nn.Identity()))


def _as_map(module: nn.Module, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
    """Run a module that expects a map, and mixes no places of it, on tokens."""
    return module(x.mT.unsqueeze(2)).squeeze(2).mT


def _forward_masked(
    model: Any,
    images: Float[Tensor, "b 3 h w"],
    visible: Bool[Tensor, "rows cols"],
    mask_token: Float[Tensor, "1 1 1 c"],
) -> Float[Tensor, "b l c2"]:
    x = model.stem(images)
    seen = token_map(visible, (x.shape[2], x.shape[3]))
    x = torch.where(seen, x, mask_token.view(1, -1, 1, 1).to(x.dtype))
    return _norms(model)(model.stages(x)).flatten(2).mT


def _spec(model: Any) -> LayoutSpec:
    patch, strides = _patch(model), [info["reduction"] for info in model.feature_info]
    if any(stride != patch[0] * 2**i for i, stride in enumerate(strides)):
        raise UserError(f"{type(model).__name__}: expected strides that double from stage to stage, got {strides}")
    img_size: Size = tuple(getattr(model, "img_size", model.pretrained_cfg["input_size"][1:]))
    return LayoutSpec(
        img_size=img_size,
        patch=patch,
        unit=(strides[-1], strides[-1]),
        stages=tuple(
            GridSpec(
                grid=(img_size[0] // info["reduction"], img_size[1] // info["reduction"]),
                channels=info["num_chs"],
                reach=stage.blocks[0].conv_dw.kernel_size[0] // 2,
            )
            for info, stage in zip(model.feature_info, model.stages, strict=True)
        ),
        build=tile_levels,
    )


def _patch(model: Any) -> Size:
    stem = model.stem[0]
    if stem.kernel_size != stem.stride:
        raise UserError(
            f"{type(model).__name__}'s stem overlaps its patches (kernel {stem.kernel_size}, stride {stem.stride}) and "
            f"would see masked pixels; choose one whose stem cuts patches, such as convnext_tiny"
        )
    return stem.kernel_size


def _arguments(sizes: Arguments) -> Arguments:
    refuse_size(sizes, "window_size", family="a ConvNeXt")
    refuse_size(sizes, "num_heads", family="a ConvNeXt")
    check_lengths(sizes, family="a ConvNeXt")
    arguments = dict(sizes)
    arguments.pop("img_size")  # it takes any, and no such argument
    if "embed_dim" in arguments:
        arguments["dims"] = doubled(arguments.pop("embed_dim"))
    return arguments


BACKBONE = Backbone(
    network=ConvNeXt,
    spec=_spec,
    forward=forward_visible_convnext,
    dense=DenseForward(token_dim=lambda model: model.stem[0].out_channels, forward=_forward_masked),
    arguments=_arguments,
)
