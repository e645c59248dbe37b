"""What the kernels of attention share.

The rows of tokens, read and written where they lie, the gradient of scores, and how kernels are compiled.

Legend: BLOCK tokens of a tile, d (DIM) channels per head, BLOCK_D channels of a tile's rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl

constexpr = tl.constexpr
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What kernels compute in."""


def tile_options(dtype: torch.dtype, *, dim: int, block: int) -> dict[str, Any]:
    """Compile options of kernels on tiles of ``block`` tokens.

    fp32 is multiplied as torch's matmul does it. Exact fp32 products run on no tensor core, where twice the warps halve
    a thread's registers (no spills); with tensor cores more warps than 16 rows each would only repeat work.
    """
    exact = dtype == torch.float32
    return {
        "DIM": dim,
        "BLOCK": block,
        "BLOCK_D": padded_dim(dim),
        "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        "num_warps": block // 8 if exact else block // 16,
        "num_stages": 1 if exact else 2,
        "enable_fp_fusion": True,
    }


def padded_dim(dim: int) -> int:
    """Round channels up to the width of a tile's rows: a tensor core's product wants 16, and Triton a power of 2."""
    return max(16, triton.next_power_of_2(dim))


@triton.jit
def read_rows(rows, tokens, present, stride, DIM: constexpr, BLOCK_D: constexpr):
    """Read the tokens' rows [BLOCK, BLOCK_D]; zero where ``present`` is negative, and beyond the channels."""
    channel = tl.arange(0, BLOCK_D)
    mask = (present >= 0)[:, None] & (channel < DIM)[None, :]
    return tl.load(rows + tokens[:, None] * stride + channel[None, :], mask=mask, other=0.0)


@triton.jit
def write_rows(rows, values, tokens, present, stride, DIM: constexpr, BLOCK_D: constexpr):
    """Store ``values`` [BLOCK, BLOCK_D] as the tokens' rows, where ``present`` is not negative."""
    channel = tl.arange(0, BLOCK_D)
    mask = (present >= 0)[:, None] & (channel < DIM)[None, :]
    values = values.to(rows.dtype.element_ty)
    tl.store(rows + tokens[:, None] * stride + channel[None, :], values, mask=mask)


@triton.jit
def score_gradient(q, k, v, out, grad, lse, bias, scale, PRECISION: constexpr):
    """Recompute the weights and from them the gradient of the scores (bias added), both [BLOCK, BLOCK] in fp32.

    Softmax: d score = weight * (d weight - sum of weight * d weight), and that sum is the product of a row of ``out``
    with its gradient.
    """
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias
    weights = tl.exp(scores - lse[:, None])
    dweights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), axis=1)
    return weights, weights * (dweights - tl.expand_dims(delta, 1))
