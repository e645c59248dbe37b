"""timm's Twins (arXiv 2104.13840) on visible tokens only: the same modules and parameters.

Attention inside windows runs in groups of windows. Attention to the whole image has one key per square of tokens, and
squares lie inside mask units, so its keys are those of the visible units (one per unit in the published sizes). The
positional 3x3 convolution sees a masked neighbour as zero, and keeps its residual as in the published Twins.

Legend: b batch, n visible tokens, k visible units, l units, c channels, h heads, d channels per head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers.mlp import Mlp
from timm.models.twins import GlobalSubSampleAttn, Twins
from torch import Tensor

from backbones.ops.lean_mlp import lean_mlp
from backbones.ops.submanifold import depthwise
from backbones.ops.window_attention import Implementation, window_attention
from backbones.recompute.blocks import run_block
from backbones.registry.backbone import Arguments, Backbone, DenseForward
from backbones.registry.sizes import NUM_STAGES, check_lengths, doubled
from backbones.visible.layout import Indices, LayoutSpec, Rule, VisibleLayout
from backbones.visible.token_grid import TokenGrid, tile_levels
from backbones.visible.tokens import token_map, unit_maps
from backbones.visible.window_layout import GroupPlan, group_plan
from engine.errors import UserError
from engine.terms import Size


@dataclass(frozen=True, kw_only=True)
class TwinsSpec:
    """What a layout needs to know about one stage."""

    grid: Size
    """Rows and columns of tokens."""
    window: Size | None
    """Rows and columns of an attention window; None without windows (PCPVT)."""
    channels: int
    """Width."""
    reach: int = 1
    """Tokens that the positional convolution reads around a tile."""


@dataclass(frozen=True, kw_only=True)
class TwinsStage(Generic[Indices]):
    """The visible tokens of one stage."""

    tokens: TokenGrid[Indices]
    """Where they lie, unit by unit."""
    plan: GroupPlan[Indices] | None
    """Their windows in groups."""

    @property
    def coords(self) -> Indices:
        """[n, 2] row and column of each token."""
        return self.tokens.coords


def forward_visible_twins(
    model: Any, images: Float[Tensor, "b 3 h w"], layout: VisibleLayout, *, attention: Implementation
) -> Float[Tensor, "b k c"]:
    """Encode the visible units: the final norm's features, in raster order."""
    maps = unit_maps(images, layout)
    x = images.new_empty(0)
    forward, lean = (partial(_block, attention=attention, mlp=mlp) for mlp in (Mlp.__call__, lean_mlp))
    for i, stage in enumerate(layout.stages):
        embed = model.patch_embeds[i]
        x = model.pos_drops[i](embed.norm(stage.tokens.tokens(embed.proj(maps), len(images))))
        for j, block in enumerate(model.blocks[i]):
            x = run_block(block, x, stage, forward=forward, lean=lean)
            if j == 0:
                x = x + depthwise(model.pos_block[i].proj[0], x, stage.tokens)
        maps = stage.tokens.maps(x)
    return model.norm(x)


def _block(
    block: Any,
    x: Float[Tensor, "b n c"],
    stage: TwinsStage,
    *,
    attention: Implementation,
    mlp: Callable[[Mlp, Tensor], Tensor],
) -> Float[Tensor, "b n c"]:
    y = block.norm1(x)
    if _is_global(block.attn):
        y = _global_attention(block.attn, y, stage.tokens)
    else:
        assert stage.plan is not None
        y = _window_attention(block.attn, y, stage.plan, attention)
    x = x + block.drop_path1(y)
    return x + block.drop_path2(mlp(block.mlp, block.norm2(x)))


def _is_global(attn: Any) -> bool:
    return isinstance(attn, GlobalSubSampleAttn)


def _window_attention(
    attn: Any, x: Float[Tensor, "b n c"], plan: GroupPlan, implementation: Implementation
) -> Float[Tensor, "b n c"]:
    qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1))
    no_bias = qkv.new_zeros(plan.masked, attn.num_heads)
    x = window_attention(qkv, no_bias, plan, scale=attn.scale, implementation=implementation)
    return attn.proj_drop(attn.proj(x))


def _global_attention(attn: Any, x: Float[Tensor, "b n c"], tokens: TokenGrid) -> Float[Tensor, "b n c"]:
    q = attn.q(x).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
    if attn.sr is not None:
        x = attn.norm(tokens.tokens(attn.sr(tokens.maps(x)), len(x)))  # one key per square of tokens
    k, v = attn.kv(x).unflatten(-1, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    x = F.scaled_dot_product_attention(q, k, v)
    return attn.proj_drop(attn.proj(x.transpose(1, 2).flatten(2)))


def _forward_masked(
    model: Any,
    images: Float[Tensor, "b 3 h w"],
    visible: Bool[Tensor, "rows cols"],
    mask_token: Float[Tensor, "1 1 1 c"],
) -> Float[Tensor, "b l c2"]:
    x, size = model.patch_embeds[0](images)
    x = torch.where(token_map(visible, size).view(1, -1, 1), x, mask_token.view(1, 1, -1).to(x.dtype))
    for i, blocks in enumerate(model.blocks):
        if i > 0:
            x, size = model.patch_embeds[i](x.mT.unflatten(2, size))
        x = model.pos_drops[i](x)
        for j, block in enumerate(blocks):
            x = block(x, size)
            if j == 0:
                x = model.pos_block[i](x, size)
    return model.norm(x)


def _spec(model: Any) -> LayoutSpec:
    patch: Size = tuple(model.patch_embeds[0].patch_size)
    stride = 2 ** (len(model.blocks) - 1)
    img_size: Size = tuple(model.patch_embeds[0].img_size)
    return LayoutSpec(
        img_size=img_size,
        patch=patch,
        unit=(patch[0] * stride, patch[1] * stride),
        stages=tuple(_stage_spec(model, i, img_size, tile=stride >> i) for i in range(len(model.blocks))),
        build=_stages,
    )


def _stage_spec(model: Any, stage: int, img_size: Size, *, tile: int) -> TwinsSpec:
    attentions = [block.attn for block in model.blocks[stage]]
    for ratio in {getattr(attn, "sr_ratio", 1) for attn in attentions}:
        if tile % ratio:
            raise UserError(
                f"sr_ratios: a key of stage {stage + 1} would cover {ratio}x{ratio} tokens, but a mask unit has "
                f"{tile}x{tile} there, and may be hidden beside a visible one; use ratios that divide {tile}, such as "
                "the published ones"
            )
    side = next((attn.ws for attn in attentions if not _is_global(attn)), None)
    stride = model.feature_info[stage]["reduction"]
    return TwinsSpec(
        grid=(img_size[0] // stride, img_size[1] // stride),
        window=None if side is None else (side, side),
        channels=model.embed_dims[stage],
    )


def _stages(spec: LayoutSpec, units: Int[np.ndarray, "k 2"], *, rule: Rule) -> tuple[TwinsStage, ...]:
    return tuple(
        TwinsStage(tokens=tokens, plan=None if stage.window is None else _plan(tokens, stage, rule))
        for tokens, stage in zip(tile_levels(spec, units, rule=rule), spec.stages, strict=True)
    )


def _plan(tokens: TokenGrid, stage: TwinsSpec, rule: Rule) -> GroupPlan:
    assert stage.window is not None
    return group_plan(tokens.coords, grid=stage.grid, window=stage.window, shift=(0, 0), rule=rule)


def _arguments(sizes: Arguments) -> Arguments:
    check_lengths(sizes, family="a Twins")
    arguments = dict(sizes)
    if "window_size" in arguments:
        arguments["wss"] = (arguments.pop("window_size"),) * NUM_STAGES
    if "embed_dim" in arguments:
        arguments["embed_dims"] = doubled(arguments.pop("embed_dim"))
    return arguments


BACKBONE = Backbone(
    network=Twins,
    spec=_spec,
    forward=forward_visible_twins,
    dense=DenseForward(token_dim=lambda model: model.embed_dims[0], forward=_forward_masked),
    arguments=_arguments,
)
