"""timm's Swin on visible tokens only: the same modules and parameters, with attention inside groups of windows.

Legend: b batch (of all micro-batches), s micro-batches of a stack, n visible tokens, k visible units, l units,
c channels, e channels of the first tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.layers.mlp import Mlp
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from backbones.ops.lean_mlp import lean_mlp
from backbones.ops.window_attention import Implementation, Plan, window_attention
from backbones.recompute.blocks import run_block
from backbones.registry.backbone import Backbone, DenseForward
from backbones.visible.layout import LayoutSpec
from backbones.visible.stacking import Layout
from backbones.visible.tokens import embed_visible, token_map
from backbones.visible.window_layout import StageSpec, window_stages


def forward_visible_swin(
    model: SwinTransformer, images: Float[Tensor, "*s b 3 h w"], layout: Layout, *, attention: Implementation
) -> Float[Tensor, "sb k c"]:
    """Encode the visible units, in raster order, up to the final norm."""
    return run_stages(model, images, layout, merge=_merge, block=partial(_block, attention=attention))


def run_stages(
    model: Any,
    images: Float[Tensor, "*s b 3 h w"],
    layout: Layout,
    *,
    merge: Callable[[Any, Tensor], Tensor],
    block: Callable[..., Tensor],
) -> Float[Tensor, "sb k c"]:
    """Embed the visible patches and run the stages of either version of Swin, with its ``merge`` and ``block``."""
    x = embed_visible(model.patch_embed, images, layout)
    forwards = {"forward": partial(block, mlp=Mlp.__call__), "lean": partial(block, mlp=lean_mlp)}
    for stage, stage_layout in zip(model.layers, layout.stages, strict=True):
        if not isinstance(stage.downsample, nn.Identity):
            x = merge(
                stage.downsample, x.unflatten(1, (-1, 4)).flatten(2)
            )  # nested order: a cell's tokens are neighbours
        for module in stage.blocks:
            plan = stage_layout.plan(module.shift_size)
            x = run_block(module, x, plan, **forwards, recompute=stage.grad_checkpointing)
    return model.norm(x)


def _block(
    block: SwinTransformerBlock,
    x: Float[Tensor, "b n c"],
    plan: Plan,
    *,
    mlp: Callable[[Mlp, Tensor], Tensor],
    attention: Implementation,
) -> Float[Tensor, "b n c"]:
    x = x + block.drop_path1(_attention(block.attn, block.norm1(x), plan, attention))
    return x + block.drop_path2(mlp(block.mlp, block.norm2(x)))


def _attention(
    attn: WindowAttention, x: Float[Tensor, "b n c"], plan: Plan, implementation: Implementation
) -> Float[Tensor, "b n c"]:
    qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1))
    table = attn.relative_position_bias_table
    return attn.proj_drop(
        attn.proj(window_attention(qkv, table, plan, scale=attn.scale, implementation=implementation))
    )


def _merge(merging: PatchMerging, cells: Float[Tensor, "b n four_c"]) -> Float[Tensor, "b n c2"]:
    return merging.reduction(merging.norm(cells))


def swin_spec(model: Any) -> LayoutSpec:
    """Read off a model the sizes that the layouts of either version of Swin follow from."""
    embed, stages = model.patch_embed, list(model.layers)
    stride = 2 ** (len(stages) - 1)
    return LayoutSpec(
        img_size=tuple(embed.img_size),
        patch=tuple(embed.patch_size),
        unit=(embed.patch_size[0] * stride, embed.patch_size[1] * stride),
        stages=tuple(_stage_spec(stage) for stage in stages),
        build=window_stages,
    )


def _stage_spec(stage: Any) -> StageSpec:
    block = stage.blocks[0]
    return StageSpec(
        grid=tuple(stage.output_resolution),
        window=tuple(block.window_size),
        shifts=tuple(dict.fromkeys(tuple(block.shift_size) for block in stage.blocks)),
        channels=stage.dim if isinstance(stage.downsample, nn.Identity) else stage.downsample.out_dim,
    )


def _forward_masked(
    model: Any,
    images: Float[Tensor, "b 3 h w"],
    visible: Bool[Tensor, "rows cols"],
    mask_token: Float[Tensor, "1 1 1 e"],
) -> Float[Tensor, "b l c"]:
    tokens = model.patch_embed(images)  # b rows cols e
    seen = token_map(visible, tokens.shape[1:3])[None, :, :, None]
    tokens = torch.where(seen, tokens, mask_token.to(tokens.dtype))
    return model.norm(model.layers(tokens)).flatten(1, 2)


BACKBONE = Backbone(
    network=SwinTransformer,
    spec=swin_spec,
    forward=forward_visible_swin,
    dense=DenseForward(token_dim=lambda model: model.patch_embed.proj.out_channels, forward=_forward_masked),
    stacks=True,
    any_size={"strict_img_size": False},
    windows_follow_size=True,
)
