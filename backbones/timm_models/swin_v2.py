"""timm's Swin V2 on visible tokens only: cosine attention, a continuous position bias, norms after the branches.

Legend: b batch (of all micro-batches), s micro-batches of a stack, n visible tokens, k visible units, c channels,
t rows of a bias table, h heads, d channels per head.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.mlp import Mlp
from timm.models.swin_transformer_v2 import PatchMerging, SwinTransformerV2, SwinTransformerV2Block, WindowAttention
from torch import Tensor

from backbones.ops.window_attention import Implementation, Plan, window_attention
from backbones.timm_models import swin
from backbones.visible.stacking import Layout

MAX_LOGIT_SCALE = math.log(1 / 0.01)


def forward_visible_swin_v2(
    model: SwinTransformerV2, images: Float[Tensor, "*s b 3 h w"], layout: Layout, *, attention: Implementation
) -> Float[Tensor, "sb k c"]:
    """Encode the visible units, in raster order, up to the final norm."""
    return swin.run_stages(model, images, layout, merge=_merge, block=partial(_block, attention=attention))


def _block(
    block: SwinTransformerV2Block,
    x: Float[Tensor, "b n c"],
    plan: Plan,
    *,
    mlp: Callable[[Mlp, Tensor], Tensor],
    attention: Implementation,
) -> Float[Tensor, "b n c"]:
    x = x + block.drop_path1(block.norm1(_attention(block.attn, x, plan, attention)))
    return x + block.drop_path2(block.norm2(mlp(block.mlp, x)))


def _attention(
    attn: WindowAttention, x: Float[Tensor, "b n c"], plan: Plan, implementation: Implementation
) -> Float[Tensor, "b n c"]:
    qkv = _cosine_qkv(attn, x)
    return attn.proj_drop(
        attn.proj(window_attention(qkv, _bias_table(attn), plan, scale=1.0, implementation=implementation))
    )


def _cosine_qkv(attn: Any, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n 3 h d"]:
    """Project to what cosine attention takes: queries as long as the clamped logit scale, keys of length 1, values."""
    bias = None if attn.q_bias is None else torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    qkv = F.linear(x, attn.qkv.weight, bias).unflatten(-1, (3, attn.num_heads, -1))
    q, k, v = qkv.unbind(2)
    scale = attn.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp().squeeze(-1)  # h 1
    return torch.stack([(F.normalize(q, dim=-1) * scale).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype), v], dim=2)


def _bias_table(attn: WindowAttention) -> Float[Tensor, "t h"]:
    """Compute the bias per relative position from its log-spaced coordinates."""
    rows = attn.cpb_mlp(attn.relative_coords_table).view(-1, attn.num_heads)
    return 16 * rows.sigmoid()


def _merge(merging: PatchMerging, cells: Float[Tensor, "b n four_c"]) -> Float[Tensor, "b n c2"]:
    return merging.norm(merging.reduction(cells))


def _first_weights(model: Any) -> None:
    """Start the norms after the branches at 0, as timm does: every branch then starts as nothing."""
    for stage in model.layers:
        stage._init_respostnorm()


BACKBONE = replace(
    swin.BACKBONE,
    network=SwinTransformerV2,
    forward=forward_visible_swin_v2,
    first_weights=_first_weights,
)
