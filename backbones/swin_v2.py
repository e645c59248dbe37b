"""timm's Swin V2 on visible tokens only: cosine attention, a continuous position bias, norms after the branches.

Legend: b batch, n visible tokens, k visible units, c channels, t rows of a bias table, h heads.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.swin_transformer_v2 import PatchMerging, SwinTransformerV2, SwinTransformerV2Block, WindowAttention
from torch import Tensor

from backbones.swin import run_stages
from backbones.visible import GroupPlan, VisibleLayout
from backbones.visible_tokens import into_groups, out_of_groups
from backbones.window_attention import group_attention, pair_bias

MAX_LOGIT_SCALE = math.log(1 / 0.01)


def forward_visible_swin_v2(
    model: SwinTransformerV2, images: Float[Tensor, "b 3 h w"], layout: VisibleLayout
) -> Float[Tensor, "b k c"]:
    """Return the final norm's features of the visible units, in raster order."""
    return run_stages(model, images, layout, merge=_merge, block=_block)


def _block(block: SwinTransformerV2Block, x: Float[Tensor, "b n c"], plan: GroupPlan) -> Float[Tensor, "b n c"]:
    x = x + block.drop_path1(block.norm1(_attention(block.attn, x, plan)))
    return x + block.drop_path2(block.norm2(block.mlp(x)))


def _attention(attn: WindowAttention, x: Float[Tensor, "b n c"], plan: GroupPlan) -> Float[Tensor, "b n c"]:
    q, k, v = into_groups(_qkv(attn, x), plan, num_heads=attn.num_heads)
    scale = attn.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
    q = (F.normalize(q, dim=-1) * scale).to(v.dtype)
    k = F.normalize(k, dim=-1).to(v.dtype)
    bias = pair_bias(_bias_table(attn), plan.bias_index)
    x = out_of_groups(group_attention(q, k, v, bias, scale=1.0), plan)
    return attn.proj_drop(attn.proj(x))


def _qkv(attn: Any, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n 3*c"]:
    if attn.q_bias is None:
        return attn.qkv(x)
    bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    return F.linear(x, attn.qkv.weight, bias)


def _bias_table(attn: WindowAttention) -> Float[Tensor, "t h"]:
    """Return the bias per relative position from its log-spaced coordinates."""
    rows = attn.cpb_mlp(attn.relative_coords_table).view(-1, attn.num_heads)
    return 16 * rows.sigmoid()


def _merge(merging: PatchMerging, cells: Float[Tensor, "b n 4*c"]) -> Float[Tensor, "b n c2"]:
    return merging.norm(merging.reduction(cells))
