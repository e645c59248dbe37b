"""Attention inside clusters by Triton kernels that compare, turn, attend and write where the tokens lie.

A *pass* reads or writes queries or keys or values, [b n c] in the type of ``qkv``, from what the linear layer wrote to
the attended tokens and back. Positions, and what is one number per token and head, as the sort is, do not count.

                      forward  backward    in bf16 with rotary positions
    plain                  44        41    what PyTorch's operations read and write, summed
    fused                   6         9    forward: keys for their mean, keys for the cosine, q, k, v, output;
                                           backward: q, k, v, output, its gradient and one of values from elsewhere,
                                           three written
    in several tiles        6        14    queries and keys have a kernel each, which read five alike

In fp32 the plain way takes 23 and 29. The other reader of the values takes them as a part of ``qkv``, without a copy.

What backward keeps: ``qkv``, the output, and 12 bytes per token and head.

Legend: b images, n tokens, c channels, h heads, d channels per head, f = d/2 angles.
"""

from typing import Any, NamedTuple

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from backbones.kernels import cluster_attention_triton as fused_cluster_kernels
from backbones.kernels.rows import DTYPES, padded_dim, tile_options
from backbones.visible.cost_models import LARGEST_TILE, SMALL_TILES
from engine.errors import UserError

kernels: Any = fused_cluster_kernels
"""Launches take a grid and options, which type checkers do not see."""
INTERPRETED = not isinstance(kernels.forward, triton.JITFunction)
"""Whether the kernels are run by Triton's interpreter, as decided when they were imported."""
TILES = (*SMALL_TILES, LARGEST_TILE)
"""Tokens of a tile. Larger ones do not fit registers where there are several to a cluster."""
WHOLE_TILE, WHOLE_TILE_DIM = 128, 32
"""A tile for clusters that fit it whole, and the most channels of its rows: in 16 bits, so that these are read once."""
TOKENS_PER_SUM, TOKENS_PER_TILE, PARTS_PER_READ = 256, 64, 16
"""Tokens that one program sums, tokens read at once, sums read at once."""


def fused_cluster_attention(
    qkv: Float[Tensor, "b n 3 h d"],
    turn: Float[Tensor, "n f 2"] | None,
    *,
    num_clusters: int,
    mean_of_keys: bool = True,
) -> tuple[Float[Tensor, "b n h d"], Float[Tensor, "b n h d"]]:
    """Cluster the tokens by their keys and attend inside clusters, with queries and keys turned by ``turn``.

    The values come out beside the attended ones, for other readers.

    Clusters are intervals of the tokens sorted by :func:`fused_similarity`.

    Raises:
        UserError: the tensors are not on a GPU, or not of 16 or 32 bits.
    """
    order = fused_similarity(qkv, turn, mean_of_keys=mean_of_keys).argsort(dim=-1, stable=True)
    return attention_in_order(qkv, turn, order, num_clusters=num_clusters)


def fused_similarity(
    qkv: Float[Tensor, "b n 3 h d"], turn: Float[Tensor, "n f 2"] | None, *, mean_of_keys: bool = True
) -> Float[Tensor, "b h n"]:
    """Score each token for the sort: the cosine of its turned key to the mean key (or query) of its head, in fp32."""
    qkv = _checked(qkv.detach())
    images, num_tokens, _, num_heads, dim = qkv.shape
    num_parts = triton.cdiv(num_tokens, TOKENS_PER_SUM)
    sums = qkv.new_empty(images, num_heads, num_parts, dim, dtype=torch.float32)
    likeness = qkv.new_empty(images, num_heads, num_tokens, dtype=torch.float32)
    keys = qkv.select(2, 1)
    stride_b, stride_n, _, stride_h, _ = qkv.stride()
    sizes = (stride_b, stride_n, stride_h, num_tokens, num_heads, num_parts)
    options = {"WITH_TURN": turn is not None, "DIM": dim, "BLOCK": TOKENS_PER_TILE, "BLOCK_D": padded_dim(dim)}
    turn = sums if turn is None else turn.contiguous()  # a kernel takes some pointer, and reads none without a turn
    with torch.cuda.device_of(qkv):  # whichever GPU is the current one
        kernels.sum_parts[num_heads * num_parts, images](
            keys if mean_of_keys else qkv, turn, sums, *sizes, CHUNK=TOKENS_PER_SUM, enable_fp_fusion=True, **options
        )
        kernels.likeness_to_mean[num_heads * triton.cdiv(num_tokens, TOKENS_PER_TILE), images](
            keys, turn, sums, likeness, *sizes, PARTS=PARTS_PER_READ, enable_fp_fusion=True, **options
        )
    return likeness


def attention_in_order(
    qkv: Float[Tensor, "b n 3 h d"],
    turn: Float[Tensor, "n f 2"] | None,
    order: Int[Tensor, "b h n"],
    *,
    num_clusters: int,
) -> tuple[Float[Tensor, "b n h d"], Float[Tensor, "b n h d"]]:
    """Attend inside intervals of ``order``, whose lengths differ by one at most; the values come out, too."""
    num_clusters = min(num_clusters, qkv.shape[1])
    turn = None if turn is None else turn.contiguous()
    attended_and_values: Any = _ClusterAttention.apply(_checked(qkv), turn, order.contiguous(), num_clusters)
    return attended_and_values


def _checked(qkv: Tensor) -> Tensor:
    if qkv.dtype not in DTYPES:
        raise UserError(f"fused attention computes in {', '.join(map(str, DTYPES))}, got {qkv.dtype}")
    if not qkv.is_cuda and not INTERPRETED:
        raise UserError(f"fused attention needs a GPU, got tensors on {qkv.device}")
    return qkv if qkv.stride(-1) == 1 else qkv.contiguous()


class _ClusterAttention(torch.autograd.Function):
    """The values come out, too, so that their gradient from elsewhere is added where theirs is written."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, turn: Tensor | None, order: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
        images, num_tokens, _, num_heads, dim = qkv.shape
        out = qkv.new_empty(images, num_tokens, num_heads, dim)
        lse = qkv.new_empty(images, num_heads, num_tokens, dtype=torch.float32)
        grid, sizes, options = _launch(qkv, turn, num_clusters)
        with torch.cuda.device_of(qkv):  # whichever GPU is the current one
            kernels.forward[grid](qkv, lse if turn is None else turn, order, out, lse, *sizes, **options)
        ctx.save_for_backward(qkv, turn, order, out, lse)
        ctx.num_clusters = num_clusters
        ctx.set_materialize_grads(False)
        return out, qkv.select(2, 2)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] # as the decorator types it
        ctx: Any, *grads: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        qkv, turn, order, out, lse = ctx.saved_tensors
        grad = torch.zeros_like(out) if grads[0] is None else grads[0].contiguous()
        beside = grad if grads[1] is None else grads[1].contiguous()
        dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        grid, sizes, options = _launch(qkv, turn, ctx.num_clusters)
        read = (qkv, lse if turn is None else turn, order, out, lse, grad)
        with_beside = grads[1] is not None
        with torch.cuda.device_of(qkv):
            if sizes.num_tiles == 1:
                kernels.backward_of_small_clusters[grid](
                    *read, beside, dqkv, *sizes, WITH_BESIDE=with_beside, **options
                )
            else:
                kernels.backward_of_queries[grid](*read, dqkv, *sizes, **options)
                kernels.backward_of_keys[grid](*read, beside, dqkv, *sizes, WITH_BESIDE=with_beside, **options)
        return dqkv, None, None, None


class _Sizes(NamedTuple):
    """Numbers that the kernels of attention take, in their order."""

    stride_b: int
    stride_n: int
    stride_part: int
    stride_h: int
    num_tokens: int
    num_heads: int
    num_clusters: int
    num_tiles: int
    scale: float


def _launch(qkv: Tensor, turn: Tensor | None, num_clusters: int) -> tuple[tuple[int, int], _Sizes, dict[str, Any]]:
    """Choose tiles for a launch: the grid of programs, their numbers, and what kernels are compiled for and how."""
    images, num_tokens, _, num_heads, dim = qkv.shape
    exact = qkv.dtype == torch.float32
    largest = triton.cdiv(num_tokens, num_clusters)
    sides = TILES if exact or padded_dim(dim) > WHOLE_TILE_DIM else (*TILES, WHOLE_TILE)
    block = next((side for side in sides if largest <= side), TILES[-1])
    num_tiles = triton.cdiv(largest, block)
    options = {"WITH_TURN": turn is not None, **tile_options(qkv.dtype, dim=dim, block=block)}
    stride_b, stride_n, stride_part, stride_h, _ = qkv.stride()
    sizes = _Sizes(
        stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, num_clusters, num_tiles, scale=dim**-0.5
    )
    return (num_heads * num_tiles * num_clusters, images), sizes, options
