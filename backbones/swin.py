"""timm's Swin on visible tokens only: the same modules and parameters, with attention inside groups of windows.

Legend: b batch, n visible tokens, k visible units, c channels.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.visible import GroupPlan, VisibleLayout
from backbones.visible_tokens import embed_visible, into_groups, out_of_groups
from backbones.window_attention import group_attention, pair_bias

Block = Callable[[nn.Module, Tensor, GroupPlan], Tensor]


def forward_visible_swin(
    model: SwinTransformer, images: Float[Tensor, "b 3 h w"], layout: VisibleLayout
) -> Float[Tensor, "b k c"]:
    """Return the final norm's features of the visible units, in raster order."""
    x = embed_visible(model.patch_embed, images, layout)
    for stage, stage_layout in zip(model.layers, layout.stages, strict=True):
        x = _merge(stage.downsample, x) if isinstance(stage.downsample, PatchMerging) else x
        for block in stage.blocks:
            x = run_block(_block, block, x, stage_layout.plan(block.shift_size), recompute=stage.grad_checkpointing)
    return model.norm(x)


def run_block(forward: Block, block: nn.Module, x: Tensor, plan: GroupPlan, *, recompute: bool) -> Tensor:
    """Return ``forward(block, x, plan)``, computed again in the backward pass instead of saved if ``recompute``."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(forward, block, x, plan, use_reentrant=False)  # pyright: ignore[reportReturnType]
    return forward(block, x, plan)


def _block(block: SwinTransformerBlock, x: Float[Tensor, "b n c"], plan: GroupPlan) -> Float[Tensor, "b n c"]:
    x = x + block.drop_path1(_attention(block.attn, block.norm1(x), plan))
    return x + block.drop_path2(block.mlp(block.norm2(x)))


def _attention(attn: WindowAttention, x: Float[Tensor, "b n c"], plan: GroupPlan) -> Float[Tensor, "b n c"]:
    q, k, v = into_groups(attn.qkv(x), plan, num_heads=attn.num_heads)
    bias = pair_bias(attn.relative_position_bias_table, plan.bias_index)
    x = out_of_groups(group_attention(q, k, v, bias, scale=attn.scale), plan)
    return attn.proj_drop(attn.proj(x))


def _merge(merging: PatchMerging, x: Float[Tensor, "b n c"]) -> Tensor:
    cells = x.unflatten(1, (-1, 4)).flatten(2)  # in nested order a cell's four tokens are neighbours
    return merging.reduction(merging.norm(cells))
