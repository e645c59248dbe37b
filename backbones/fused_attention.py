"""Attention inside windows by Triton kernels that read and write tokens where they lie.

What backward keeps: ``qkv``, the output (which the projection after it keeps anyway, unless several micro-batches are joined) and 4 bytes per token and head. The
first import of Triton is here and in the kernels' file, so nothing else needs it.

Legend: b images, n tokens, h heads, d channels per head, t rows of a bias table, G groups, g slots per group.
"""

from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import knobs

from backbones import fused_attention_kernels
from backbones.cost_models import LARGEST_TILE, Tiles
from backbones.window_layout import GroupPlan

kernels: Any = fused_attention_kernels
"""Launches take a grid and options, which type checkers do not see."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROGRAMS = 1024
"""Programs that keep a GPU busy: where there would be more, each takes several images, and the gradients of scores take less memory."""
SLOTS_PER_SUM = 512
"""Slots that one program of the table's gradient goes through."""


@torch.compiler.disable(recursive=True)  # one clean break instead of several inside
def fused_attention(
    qkv: Float[Tensor, "b n 3 h d"], table: Float[Tensor, "t h"], plan: GroupPlan, scale: float
) -> Float[Tensor, "b n h d"]:
    """Return softmax(scale q k^T + bias) v over the tokens of each token's window.

    Raises:
        ValueError: the tensors are not on a GPU, or not of 16 or 32 bits.
    """
    if qkv.dtype not in DTYPES:
        raise ValueError(f"fused attention computes in {', '.join(map(str, DTYPES))}, got {qkv.dtype}; use sdpa")
    if not qkv.is_cuda and not knobs.runtime.interpret:
        raise ValueError(f"fused attention needs a GPU, got tensors on {qkv.device}; use sdpa or reference there")
    out: Any = _FusedAttention.apply(qkv if qkv.stride(-1) == 1 else qkv.contiguous(), table, plan, scale)
    return out


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, table: Tensor, plan: GroupPlan, scale: float) -> Tensor:
        images, num_tokens, _, num_heads, dim = qkv.shape
        table = table.detach().contiguous()
        out = qkv.new_empty(images, num_tokens, num_heads, dim)
        lse = qkv.new_empty(images, num_heads, num_tokens, dtype=torch.float32)
        num_tiles = _tiles(plan)
        with torch.cuda.device_of(qkv):  # whichever GPU is the current one
            kernels.forward[num_heads * num_tiles * plan.num_groups, images](
                qkv, table, out, lse, plan.token, plan.window, plan.number,
                *_strides(qkv), num_tokens, num_heads, plan.group_size, num_tiles, plan.masked // 2, scale,
                **_constants(qkv, plan),
            )  # fmt: skip
        ctx.save_for_backward(qkv, table, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] # as the decorator types it
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None]:
        qkv, table, out, lse = ctx.saved_tensors
        plan: GroupPlan = ctx.plan
        images, num_tokens, _, num_heads, _ = qkv.shape
        num_tiles, with_table = _tiles(plan), ctx.needs_input_grad[1]
        share_size = _share_size(images, num_heads * num_tiles**2 * plan.num_groups)
        shares = triton.cdiv(images, share_size)
        dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        slots = plan.num_groups * plan.group_size if with_table else 0
        pairs = lse.new_empty(shares, num_heads, slots, plan.group_size)
        read = (qkv, table, out, lse, grads[0].contiguous())
        slot = (plan.token, plan.window, plan.number)
        sizes = (*_strides(qkv), num_tokens, num_heads, plan.group_size)
        last = (plan.masked // 2, ctx.scale)
        constants = _constants(qkv, plan)
        if num_tiles == 1:
            kernels.backward_of_small_groups[num_heads * plan.num_groups, shares](
                *read, dqkv, pairs, *slot, *sizes, images, share_size, *last, WITH_TABLE=with_table, **constants
            )
        else:
            grid = (num_heads * num_tiles * plan.num_groups, images)
            kernels.backward_of_queries[grid](*read, dqkv, *slot, *sizes, num_tiles, *last, **constants)
            kernels.backward_of_keys[grid](*read, dqkv, *slot, *sizes, num_tiles, *last, **constants)
            if with_table:
                kernels.backward_of_pairs[num_heads * num_tiles**2 * plan.num_groups, shares](
                    *read, pairs, *slot, *sizes, num_tiles, images, share_size, *last, **constants
                )
        return dqkv, _table_gradient(pairs, table, plan) if with_table else None, None, None


def _table_gradient(pairs: Tensor, table: Tensor, plan: GroupPlan) -> Tensor:
    """Return [t, h], the sum per relative position of the gradients of scores [s, h, G*g, g]."""
    pairs = pairs[0] if len(pairs) == 1 else pairs.sum(0)
    num_rows, num_heads = table.shape
    num_slots = plan.num_groups * plan.group_size
    chunks = triton.cdiv(num_slots, SLOTS_PER_SUM)
    parts = pairs.new_empty(chunks, num_rows, num_heads)
    rows = 32
    kernels.table_gradient[triton.cdiv(num_rows, rows), num_heads, chunks](
        pairs, plan.window, plan.number, plan.member, parts,
        plan.group_size, num_slots, num_rows, num_heads, *plan.window_size,
        BLOCK_T=rows, BLOCK=32, CHUNK=SLOTS_PER_SUM, enable_fp_fusion=True,
    )  # fmt: skip
    return parts.sum(0).to(table.dtype)


def _tiles(plan: GroupPlan) -> int:
    """Return how many tiles a group takes."""
    return triton.cdiv(plan.group_size, LARGEST_TILE)


def _share_size(images: int, programs_per_image: int) -> int:
    """Return the images that a program goes through, a function of sizes alone: sums have the same order everywhere."""
    return min(images, max(1, images * programs_per_image // PROGRAMS))


def _strides(qkv: Tensor) -> tuple[int, ...]:
    return qkv.stride()[:-1]


def _constants(qkv: Tensor, plan: GroupPlan) -> dict[str, Any]:
    """Return what kernels are compiled for and how.

    fp32 is multiplied as torch's matmul does it. Exact fp32 products run on no tensor core, where twice the warps halve a
    thread's registers (no spills); with tensor cores more warps than 16 rows each would only repeat work.
    """
    block = min(Tiles().padded(plan.group_size), LARGEST_TILE)
    exact = qkv.dtype == torch.float32
    return {
        "DIM": qkv.shape[-1],
        "BLOCK": block,
        "BLOCK_D": max(16, triton.next_power_of_2(qkv.shape[-1])),
        "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        "num_warps": block // 8 if exact else block // 16,
        "num_stages": 1 if exact else 2,
        "enable_fp_fusion": True,
    }
