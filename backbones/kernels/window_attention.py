"""Attention inside windows by Triton kernels that read and write tokens where they lie.

What backward keeps: ``qkv``, the output (which the projection after it keeps anyway) and 4 bytes per token and head.
The first import of Triton is here and in the kernels' file, so nothing else needs it. Compilers see one operator, so
that nothing breaks their graphs; elsewhere operators would cost time, and the same functions are called by an ordinary
one of autograd.

Legend: b images, s masks of as many images each, n tokens, h heads, d channels per head, t rows of a bias table.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from backbones.kernels import window_attention_triton as fused_attention_kernels
from backbones.kernels.rows import DTYPES, tile_options
from backbones.visible.window_layout import GroupPlan
from engine.errors import UserError

kernels: Any = fused_attention_kernels
"""Launches take a grid and options, which type checkers do not see."""
INTERPRETED = not isinstance(kernels.forward, triton.JITFunction)
"""Whether the kernels are run by Triton's interpreter, as decided when they were imported."""
PROGRAMS = 1024
"""Programs that keep a GPU busy.

Where there would be more, each takes several images, and the gradients of scores take less memory.
"""
SLOTS_PER_SUM = 512
"""Slots that one program of the table's gradient goes through."""


def fused_attention(
    qkv: Float[Tensor, "b n 3 h d"], table: Float[Tensor, "t h"], plan: GroupPlan, scale: float
) -> Float[Tensor, "b n h d"]:
    """Attend inside windows: softmax(scale q k^T + bias) v over the tokens of each token's window.

    The arrays of ``plan`` may have a first axis of s masks, for one equal part of the images each
    (``backbones.visible.stacking``).

    Raises:
        UserError: the tensors are not on a GPU, or not of 16 or 32 bits.
    """
    if qkv.dtype not in DTYPES:
        raise UserError(f"fused attention computes in {', '.join(map(str, DTYPES))}, got {qkv.dtype}; use sdpa")
    if not qkv.is_cuda and not INTERPRETED:
        raise UserError(f"fused attention needs a GPU, got tensors on {qkv.device}; use sdpa or reference there")
    indices = [plan.token, plan.window, plan.number, plan.first_key, plan.member, plan.tiles]
    sizes = [plan.tile, plan.key_tiles, *plan.window_size]
    qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
    if torch.compiler.is_compiling():
        return _operator(qkv, table, indices, sizes, scale)[0]
    out: Any = _FusedAttention.apply(qkv, table, indices, sizes, scale)
    return out


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, table: Tensor, indices: list[Tensor], sizes: list[int], scale: float) -> Tensor:
        out, lse = _attend(qkv, table, indices, sizes, scale)
        ctx.save_for_backward(qkv, table, out, lse)
        ctx.indices, ctx.sizes, ctx.scale = indices, sizes, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] # as the decorator types it
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        (qkv, table, out, lse), with_table = ctx.saved_tensors, ctx.needs_input_grad[1]
        dqkv, dtable = _gradients(grads[0], qkv, table, out, lse, ctx.indices, ctx.sizes, ctx.scale, with_table)
        return dqkv, dtable if with_table else None, None, None, None


def _attend(
    qkv: Tensor, table: Tensor, indices: Sequence[Tensor], sizes: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel: the output [b, n, h, d] and the logarithms of the sums of exponentials [b, h, n]."""
    images, num_tokens, _, num_heads, dim = qkv.shape
    plan = _Indices(*indices)
    out = qkv.new_empty(images, num_tokens, num_heads, dim)
    lse = qkv.new_empty(images, num_heads, num_tokens, dtype=torch.float32)
    with torch.cuda.device_of(qkv):  # whichever GPU is the current one
        kernels.forward[num_heads * plan.num_tiles, images](
            qkv, table.detach().contiguous(), out, lse, plan.token, plan.window, plan.number, plan.tiles,
            *_strides(qkv), num_tokens, num_heads, plan.num_slots, plan.num_tiles, images // plan.num_masks,
            _middle(table), scale, **tile_options(qkv.dtype, dim=dim, block=sizes[0]),
        )  # fmt: skip
    return out, lse


def _gradients(
    grad: Tensor,
    qkv: Tensor,
    table: Tensor,
    out: Tensor,
    lse: Tensor,
    indices: Sequence[Tensor],
    sizes: Sequence[int],
    scale: float,
    with_table: bool,
) -> tuple[Tensor, Tensor]:
    """Run the backward kernels, for the gradients of ``qkv`` and, ``with_table``, of ``table``."""
    images, num_tokens, _, num_heads, dim = qkv.shape
    plan, (tile, key_tiles, *window) = _Indices(*indices), sizes
    per_mask = images // plan.num_masks
    assert per_mask * plan.num_masks == images, "a stack has equally many images of each mask"
    share_size = _share_size(per_mask, images=images, programs_per_image=num_heads * plan.num_tiles * key_tiles)
    shares = plan.num_masks * triton.cdiv(per_mask, share_size)
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    # every score's gradient, summed over the images of a share: what the table's gradient is collected from
    pairs = lse.new_empty(shares, num_heads, plan.num_slots if with_table else 0, key_tiles * tile)
    read = (qkv, table.detach().contiguous(), out, lse, grad.contiguous())
    slot = (plan.token, plan.window, plan.number, plan.tiles)
    num_programs, around = num_heads * plan.num_tiles, (_middle(table), scale)
    lengths = (*_strides(qkv), num_tokens, num_heads, plan.num_slots, plan.num_tiles, per_mask)
    constants = tile_options(qkv.dtype, dim=dim, block=tile)
    with torch.cuda.device_of(qkv):
        # a tile that meets itself only has all that it meets at hand: one kernel reads it once for all gradients
        if key_tiles == 1:
            kernels.backward_of_lone_tiles[num_programs, shares](
                *read, dqkv, pairs, *slot, *lengths, share_size, *around, WITH_TABLE=with_table, **constants
            )
        else:
            kernels.backward_of_queries[num_programs, images](*read, dqkv, *slot, *lengths, *around, **constants)
            kernels.backward_of_keys[num_programs, images](*read, dqkv, *slot, *lengths, *around, **constants)
            if with_table:
                kernels.backward_of_pairs[num_programs * key_tiles, shares](
                    *read, pairs, *slot, *lengths, share_size, key_tiles, *around, **constants
                )
        dtable = _table_gradient(pairs, table, plan, window) if with_table else torch.empty_like(table)
    return dqkv, dtable


def _table_gradient(pairs: Tensor, table: Tensor, plan: "_Indices", window: Sequence[int]) -> Tensor:
    """Sum the gradients of scores [s * p, h, S, keys] per relative position, into the table's gradient [t, h]."""
    pairs = pairs.unflatten(0, (plan.num_masks, -1))
    pairs = pairs[:, 0] if pairs.shape[1] == 1 else pairs.sum(1)
    num_rows, num_heads = table.shape
    chunks = triton.cdiv(plan.num_slots, SLOTS_PER_SUM)
    parts = pairs.new_empty(plan.num_masks * chunks, num_rows, num_heads)
    rows = 32
    kernels.table_gradient[triton.cdiv(num_rows, rows), num_heads, plan.num_masks * chunks](
        pairs, plan.window, plan.number, plan.first_key, plan.member, parts,
        plan.num_slots, pairs.shape[-1], chunks, plan.member.shape[-2], num_rows, num_heads, *window,
        BLOCK_T=rows, BLOCK=32, CHUNK=SLOTS_PER_SUM, enable_fp_fusion=True,
    )  # fmt: skip
    return parts.sum(0).to(table.dtype)


class _Indices(NamedTuple):
    """What the kernels read of a plan, of one mask or of several."""

    token: Tensor
    window: Tensor
    number: Tensor
    first_key: Tensor
    member: Tensor
    tiles: Tensor

    @property
    def num_slots(self) -> int:
        return self.token.shape[-1]

    @property
    def num_tiles(self) -> int:
        return self.tiles.shape[-2]

    @property
    def num_masks(self) -> int:
        return self.token.numel() // self.num_slots


def _share_size(per_mask: int, *, images: int, programs_per_image: int) -> int:
    """Images for one program to go through, a function of sizes alone: sums have the same order everywhere."""
    return min(per_mask, max(1, images * programs_per_image // PROGRAMS))


def _middle(table: Tensor) -> int:
    """Row of the table that stands for no difference."""
    return table.shape[0] // 2


def _strides(qkv: Tensor) -> tuple[int, ...]:
    return qkv.stride()[:-1]


_operator: Any = torch.library.custom_op("green_pretrain::window_attention", _attend, mutates_args=())
_backward_operator: Any = torch.library.custom_op(
    "green_pretrain::window_attention_backward", _gradients, mutates_args=()
)


@_operator.register_fake
def _(qkv: Tensor, table: Tensor, indices: list[Tensor], sizes: list[int], scale: float) -> tuple[Tensor, Tensor]:
    images, num_tokens, _, num_heads, dim = qkv.shape
    return qkv.new_empty(images, num_tokens, num_heads, dim), qkv.new_empty(
        images, num_heads, num_tokens, dtype=torch.float32
    )


@_backward_operator.register_fake
def _(grad: Tensor, qkv: Tensor, table: Tensor, out: Tensor, lse: Tensor, *plan: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), torch.empty_like(table)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, table, ctx.indices, ctx.sizes, ctx.scale = inputs
    ctx.save_for_backward(qkv, table, *output)


def _operator_gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    with_table = ctx.needs_input_grad[1]
    dqkv, dtable = _backward_operator(grad, *ctx.saved_tensors, ctx.indices, ctx.sizes, ctx.scale, with_table)
    return dqkv, dtable if with_table else None, [None] * len(ctx.indices), None, None


_operator.register_autograd(_operator_gradients, setup_context=_keep)
