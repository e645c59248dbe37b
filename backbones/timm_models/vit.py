"""timm's plain ViT on visible patches only, as in MAE (arXiv 2111.06377): the same modules and parameters.

A mask unit is one patch. The class token and registers are kept, each visible patch has its own position's embedding,
and attention is between all tokens there are: nothing is grouped and nothing padded.

Legend: b batch, k visible patches, l patches, t tokens with those before the patches, c channels.
"""

from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from backbones.ops.positions import sine_cosine_position
from backbones.ops.window_attention import Implementation
from backbones.recompute.blocks import run_block
from backbones.registry.backbone import Arguments, Backbone, DenseForward
from backbones.registry.sizes import refuse_size
from backbones.visible.layout import Indices, LayoutSpec, Rule, VisibleLayout, compact
from backbones.visible.tokens import embed_visible
from engine.errors import UserError
from engine.terms import Size


@dataclass(frozen=True, kw_only=True)
class VitStage:
    """What a layout needs to know about a ViT."""

    grid: Size
    """Rows and columns of patches."""
    channels: int
    """Width."""


@dataclass(frozen=True, kw_only=True)
class VitPatches(Generic[Indices]):
    """The visible patches."""

    coords: Indices
    """[k, 2] row and column of each patch."""


def forward_visible_vit(
    model: Any, images: Float[Tensor, "b 3 h w"], layout: VisibleLayout, *, attention: Implementation
) -> Float[Tensor, "b k c"]:
    """Encode the visible patches, in raster order, up to the final norm; where timm pools first, up to the norm after.

    ``attention`` changes nothing: without windows there is no bias, and timm's own blocks run.
    """
    x = embed_visible(model.patch_embed, images, layout)
    return _encode(model, _with_positions(model, x, layout.units))


def _with_positions(model: Any, x: Float[Tensor, "b k c"], patches: Int[Tensor, " k"] | None) -> Float[Tensor, "b t c"]:
    """Add the positions of ``patches`` (None: of all), and put the class token and registers before them."""
    before = [token.expand(len(x), -1, -1) for token in (model.cls_token, model.reg_token) if token is not None]
    if model.pos_embed is not None:
        first = 0 if model.no_embed_class else model.num_prefix_tokens
        positions = model.pos_embed[:, first:]
        x = x + (positions if patches is None else positions.index_select(1, patches))
        if before and first:
            before = [torch.cat(before, dim=1) + model.pos_embed[:, :first]]
    return model.norm_pre(model.pos_drop(torch.cat([*before, x], dim=1)))


def _encode(model: Any, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b k c"]:
    for block in model.blocks:
        x = run_block(block, x, recompute=model.grad_checkpointing)
    return model.fc_norm(model.norm(x)[:, model.num_prefix_tokens :])  # one of the two does nothing


def _forward_masked(
    model: Any,
    images: Float[Tensor, "b 3 h w"],
    visible: Bool[Tensor, "rows cols"],
    mask_token: Float[Tensor, "1 1 1 c"],
) -> Float[Tensor, "b l c"]:
    x = model.patch_embed(images).flatten(1, -2)  # b l c, also where timm keeps rows and columns
    x = torch.where(visible.view(1, -1, 1), x, mask_token.view(1, 1, -1).to(x.dtype))
    return _encode(model, _with_positions(model, x, None))


def _spec(model: Any) -> LayoutSpec:
    _check_plain(model)
    embed = model.patch_embed
    patch: Size = tuple(embed.patch_size)
    stage = VitStage(grid=tuple(embed.grid_size), channels=model.embed_dim)
    return LayoutSpec(img_size=tuple(embed.img_size), patch=patch, unit=patch, stages=(stage,), build=_stages)


def _check_plain(model: Any) -> None:
    cut = isinstance(model.patch_embed, PatchEmbed) and isinstance(model.patch_drop, nn.Identity)
    if not cut or model.attn_pool is not None or hasattr(model, "dist_token"):
        raise UserError(
            f"{type(model).__name__} with {type(model.patch_embed).__name__} is no plain ViT: expected patches cut by "
            f"one convolution, no distillation token, no attention pooling and patch_drop_rate 0; choose another, "
            f"such as vit_base_patch16_224"
        )


def _stages(spec: LayoutSpec, units: Int[np.ndarray, "k 2"], *, rule: Rule) -> tuple[VitPatches]:
    return (VitPatches(coords=compact(units)),)


@torch.no_grad()
def _first_weights(model: Any) -> None:
    """Set tokens before the patches normal 0.02, their positions 0, and those of patches to MAE's sines and cosines.

    MAE keeps its positions; here they learn.
    """
    for token in (model.cls_token, model.reg_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)
    if model.pos_embed is not None:
        patches = sine_cosine_position(model.patch_embed.grid_size, model.embed_dim)
        before = model.pos_embed.shape[1] - patches.shape[1]
        model.pos_embed.copy_(torch.cat([patches.new_zeros(1, before, model.embed_dim), patches], dim=1))


def _arguments(sizes: Arguments) -> Arguments:
    refuse_size(sizes, "window_size", family="a plain ViT")
    arguments = dict(sizes)
    for key, name in (("depths", "depth"), ("num_heads", "num_heads")):
        if key in arguments:
            values = arguments.pop(key)
            if len(values) != 1:
                option = f"backbone.{key.replace('_', '-')}"
                raise UserError(f"{option}: a plain ViT has one stage, so one number is expected, got {values}")
            arguments[name] = values[0]
    return arguments


BACKBONE = Backbone(
    network=VisionTransformer,
    spec=_spec,
    forward=forward_visible_vit,
    dense=DenseForward(token_dim=lambda model: model.embed_dim, forward=_forward_masked),
    first_weights=_first_weights,
    arguments=_arguments,
    maps="single",
    any_size={"dynamic_img_size": True},
)
