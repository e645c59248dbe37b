"""What the kernels of attention share: the rows of tokens, read and written where they lie, and the gradient of scores.

Legend: BLOCK tokens of a tile, d (DIM) channels per head, BLOCK_D channels of a tile's rows.
"""

import triton
import triton.language as tl

constexpr = tl.constexpr


@triton.jit
def read_rows(rows, tokens, present, stride, DIM: constexpr, BLOCK_D: constexpr):
    """Return the tokens' rows [BLOCK, BLOCK_D]; zero where ``present`` is negative, and beyond the channels."""
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
    """Return the weights and the gradient of the scores (bias added), both [BLOCK, BLOCK] in fp32.

    Softmax: d score = weight * (d weight - sum of weight * d weight), and that sum is the product of a row of ``out`` with
    its gradient.
    """
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias
    weights = tl.exp(scores - lse[:, None])
    dweights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), axis=1)
    return weights, weights * (dweights - tl.expand_dims(delta, 1))
