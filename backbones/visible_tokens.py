"""Moving visible tokens: pixels of visible units into patches, tokens into the slots of groups and back.

Legend: b batch, n tokens, G groups, g slots per group, h heads, d channels per head, p values of a patch, c channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor

from backbones.visible import GroupPlan, VisibleLayout


def embed_visible(embed: PatchEmbed, images: Float[Tensor, "b 3 h w"], layout: VisibleLayout) -> Float[Tensor, "b n c"]:
    """Return the embedded patches of the visible units, in nested order: ``embed``'s convolution as a product."""
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


def into_groups(
    qkv: Float[Tensor, "b n 3*h*d"], plan: GroupPlan, *, num_heads: int
) -> tuple[Float[Tensor, "b G h g d"], ...]:
    """Return the queries, keys and values of the tokens in their slots."""
    if not plan.identity:
        qkv = _rearrange_rows(qkv, plan.token, plan.slot)
    # b (G g) (3 h d) -> 3 b G h g d
    qkv = qkv.view(len(qkv), plan.num_groups, plan.group_size, 3, num_heads, -1)
    return qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)


def out_of_groups(x: Float[Tensor, "b G h g d"], plan: GroupPlan) -> Float[Tensor, "b n h*d"]:
    """Return what the slots hold, token by token."""
    x = x.transpose(2, 3).flatten(3).flatten(1, 2)  # b G h g d -> b (G g) (h d)
    return x if plan.identity else _rearrange_rows(x, plan.slot, plan.token)


def _rearrange_rows(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Return rows ``index`` of ``x`` [b, n, c]; its gradient is the other way round, rows ``inverse``.

    The indices are a plan's `token` and `slot`, or the reverse. A padding slot holds a copy of token 0 whose gradient
    is left out: it is zero, since nobody else sees the slot and what it computes is dropped.
    """
    return _RearrangeRows.apply(x, index, inverse)  # pyright: ignore[reportReturnType]


class _RearrangeRows(torch.autograd.Function):
    """A gather in both directions, where autograd's own backward would zero a tensor and add row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        _, inverse = ctx.saved_tensors
        return grads[0].index_select(1, inverse), None, None
