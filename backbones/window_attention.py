"""Attention inside groups of slots with a bias per pair of slots: one function, several implementations that agree.

Legend: b batch, G groups, g slots per group, h heads, d channels per head, t rows of a bias table.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Implementation = Literal["reference", "sdpa"]
Core = Callable[..., Tensor]


def group_attention(
    q: Float[Tensor, "b G h g d"],
    k: Float[Tensor, "b G h g d"],
    v: Float[Tensor, "b G h g d"],
    bias: Float[Tensor, "G h g g"],
    *,
    scale: float,
    implementation: Implementation = "reference",
) -> Float[Tensor, "b G h g d"]:
    """Return softmax(scale q k^T + bias) v, with a bias of minus infinity where a slot does not see another.

    Every slot must see at least one.
    """
    return IMPLEMENTATIONS[implementation](q, k, v, bias, scale)


def pair_bias(table: Float[Tensor, "t h"], index: Int[Tensor, "G g g"]) -> Float[Tensor, "G h g g"]:
    """Return the bias of every pair of slots: a row of ``table``, or minus infinity for index t."""
    rows = torch.cat([table, table.new_full((1, table.shape[1]), -torch.inf)])
    return F.embedding(index, rows).permute(0, 3, 1, 2)


def _reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    scores = (q * scale) @ k.transpose(-2, -1) + bias
    return scores.softmax(dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    batch = q.shape[0]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    bias = bias.to(q.dtype).expand(batch, *bias.shape).flatten(0, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return out.unflatten(0, (batch, -1))


IMPLEMENTATIONS: dict[str, Core] = {"reference": _reference, "sdpa": _sdpa}
