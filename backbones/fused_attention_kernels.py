"""Triton kernels of attention inside windows, on tokens where they lie: no copy into groups, no bias per pair in memory.

A program computes one *tile*: BLOCK query slots of a group against BLOCK key slots. It finds the tile's tokens through the
plan, reads their rows of ``qkv`` and writes rows of results. Which row of the bias table a pair takes is a difference
of one number per slot; pairs of different windows score minus infinity.

The gradient of the bias table needs the gradient of each score summed over images. That sum stays in registers while a
program goes from image to image and is written once per program (``pairs``); a last kernel collects per relative
position. Nothing is added atomically and each sum has a fixed order, so equal inputs give bit-equal gradients.

Legend: b images, n tokens, h heads, d (DIM) channels per head, G groups, g (group_size) slots per group, B tiles that a
group takes, t rows of the bias table, W windows, s (shares) programs that share the images of a tile.

    qkv, dqkv [b, n, 3, h, d]   out, grad [b, n, h, d]   lse [b, h, n]: log of the sum of exponentials, fp32   table [t, h]
    token, window, number [G*g] of each slot, member [W, rows*cols]: see GroupPlan   pairs [s, h, G*g, g]: fp32
    qkv may have any strides but one channel after the other; all else is contiguous.
"""

from typing import Any

import triton
import triton.language as tl

constexpr = tl.constexpr
VARYING: Any = ["group_size", "num_tiles", "images", "share_size"]
"""Numbers that change from mask to mask: compiling for those that 16 divides, too, would compile in the middle of training."""
INDICES: Any = ["token", "window", "number", "member"]
"""Parts of one packed tensor, whose alignment changes with the mask."""


@triton.jit
def _place(num_heads, num_tiles):
    """Return head, group, tile of the group and image of a program in the grid (h * B * G, b)."""
    tiles = tl.program_id(0) // num_heads
    return tl.program_id(0) % num_heads, tiles // num_tiles, tiles % num_tiles, tl.program_id(1).to(tl.int64)


@triton.jit
def _slots(token, window, number, group, tile, group_size, BLOCK: constexpr):
    """Return the tokens, windows and numbers of a tile's slots; the window of what is no token is negative."""
    local = tile * BLOCK + tl.arange(0, BLOCK)
    slot = group * group_size + local
    inside = local < group_size
    tokens = tl.load(token + slot, mask=inside, other=0).to(tl.int64)
    windows = tl.load(window + slot, mask=inside, other=-1).to(tl.int32)
    numbers = tl.load(number + slot, mask=inside, other=0).to(tl.int32)
    return tokens, windows, numbers


@triton.jit
def _bias(table, head, num_heads, windows_q, numbers_q, windows_k, numbers_k, middle):
    """Return the bias of each pair [BLOCK, BLOCK] in fp32."""
    together = windows_q[:, None] == windows_k[None, :]
    row = numbers_q[:, None] - numbers_k[None, :] + middle
    bias = tl.load(table + row * num_heads + head, mask=together & (windows_q >= 0)[:, None], other=0.0)
    return tl.where(together, bias.to(tl.float32), float("-inf"))


@triton.jit
def _read(rows, tokens, windows, stride, DIM: constexpr, BLOCK_D: constexpr):
    """Return the tokens' rows [BLOCK, BLOCK_D]; what is no token and no channel is zero."""
    channel = tl.arange(0, BLOCK_D)
    mask = (windows >= 0)[:, None] & (channel < DIM)[None, :]
    return tl.load(rows + tokens[:, None] * stride + channel[None, :], mask=mask, other=0.0)


@triton.jit
def _write(rows, values, tokens, windows, stride, DIM: constexpr, BLOCK_D: constexpr):
    """Store ``values`` [BLOCK, BLOCK_D] as the tokens' rows."""
    channel = tl.arange(0, BLOCK_D)
    mask = (windows >= 0)[:, None] & (channel < DIM)[None, :]
    values = values.to(rows.dtype.element_ty)
    tl.store(rows + tokens[:, None] * stride + channel[None, :], values, mask=mask)


@triton.jit
def _score_gradient(q, k, v, out, grad, lse, bias, scale, PRECISION: constexpr):
    """Return the weights and the gradient of the scores (bias added), both [BLOCK, BLOCK] in fp32.

    Softmax: d score = weight * (d weight - sum of weight * d weight), and that sum is the product of a row of ``out`` with
    its gradient.
    """
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias
    weights = tl.exp(scores - lse[:, None])
    dweights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), axis=1)
    return weights, weights * (dweights - tl.expand_dims(delta, 1))


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def forward(
    qkv, table, out, lse, token, window, number,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, group_size, num_tiles, middle, scale,
    DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """Softmax over the key tiles of a group, piece by piece. Grid: (h * B * G, b)."""
    head, group, tile, image = _place(num_heads, num_tiles)
    tokens_q, windows_q, numbers_q = _slots(token, window, number, group, tile, group_size, BLOCK)
    rows = qkv + image * stride_b + head * stride_h
    q = _read(rows, tokens_q, windows_q, stride_n, DIM, BLOCK_D)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for key_tile in range(num_tiles):
        tokens_k, windows_k, numbers_k = _slots(token, window, number, group, key_tile, group_size, BLOCK)
        k = _read(rows + stride_part, tokens_k, windows_k, stride_n, DIM, BLOCK_D)
        v = _read(rows + 2 * stride_part, tokens_k, windows_k, stride_n, DIM, BLOCK_D)
        bias = _bias(table, head, num_heads, windows_q, numbers_q, windows_k, numbers_k, middle)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))
        shift = tl.where(new_highest == float("-inf"), 0.0, new_highest)  # no key of the query's window so far
        weights = tl.exp(scores - shift[:, None])
        shrunk = tl.exp(highest - shift)
        total = total * shrunk + tl.sum(weights, axis=1)
        mixed = mixed * shrunk[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        highest = new_highest
    seen = windows_q >= 0
    total = tl.where(seen, total, 1.0)
    out += (image * num_tokens * num_heads + head) * DIM
    _write(out, mixed / total[:, None], tokens_q, windows_q, num_heads * DIM, DIM, BLOCK_D)
    tl.store(lse + (image * num_heads + head) * num_tokens + tokens_q, highest + tl.log(total), mask=seen)


@triton.jit
def _read_query(
    qkv, out, grad, lse, tokens, windows, image, head,
    stride_b, stride_n, stride_h, num_tokens, num_heads,
    DIM: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """Return what the backward needs of query slots; a weight of what is no token is exp(-inf) = 0."""
    q = _read(qkv + image * stride_b + head * stride_h, tokens, windows, stride_n, DIM, BLOCK_D)
    first = (image * num_tokens * num_heads + head) * DIM
    o = _read(out + first, tokens, windows, num_heads * DIM, DIM, BLOCK_D)
    do = _read(grad + first, tokens, windows, num_heads * DIM, DIM, BLOCK_D)
    l = tl.load(lse + (image * num_heads + head) * num_tokens + tokens, mask=windows >= 0, other=float("inf"))
    return q, o, do, l


@triton.jit
def _read_key(
    qkv, tokens, windows, image, head, stride_b, stride_n, stride_part, stride_h,
    DIM: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    rows = qkv + image * stride_b + head * stride_h
    k = _read(rows + stride_part, tokens, windows, stride_n, DIM, BLOCK_D)
    v = _read(rows + 2 * stride_part, tokens, windows, stride_n, DIM, BLOCK_D)
    return k, v


@triton.jit
def _write_pairs(
    pairs, values, share, head, group, tile_q, tile_k, num_groups, num_heads, group_size, BLOCK: constexpr
):
    """Store a tile's gradients of scores."""
    i = tile_q * BLOCK + tl.arange(0, BLOCK)
    j = tile_k * BLOCK + tl.arange(0, BLOCK)
    slot = ((share * num_heads + head).to(tl.int64) * num_groups + group) * group_size + i
    mask = (i < group_size)[:, None] & (j < group_size)[None, :]
    tl.store(pairs + slot[:, None] * group_size + j[None, :], values, mask=mask)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def backward_of_small_groups(
    qkv, table, out, lse, grad, dqkv, pairs, token, window, number,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, group_size, images, share_size, middle, scale,
    WITH_TABLE: constexpr, DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """All gradients of a group that is one tile, for ``share_size`` images. Grid: (h * G, s)."""
    head = tl.program_id(0) % num_heads
    group = tl.program_id(0) // num_heads
    share = tl.program_id(1)
    tokens, windows, numbers = _slots(token, window, number, group, 0, group_size, BLOCK)
    bias = _bias(table, head, num_heads, windows, numbers, windows, numbers, middle)
    summed = tl.zeros([BLOCK, BLOCK], tl.float32)
    for i in range(share * share_size, tl.minimum(share * share_size + share_size, images)):
        image = tl.cast(i, tl.int64)
        q, o, do, l = _read_query(
            qkv, out, grad, lse, tokens, windows, image, head,
            stride_b, stride_n, stride_h, num_tokens, num_heads, DIM, BLOCK_D,
        )  # fmt: skip
        k, v = _read_key(qkv, tokens, windows, image, head, stride_b, stride_n, stride_part, stride_h, DIM, BLOCK_D)
        weights, dscores = _score_gradient(q, k, v, o, do, l, bias, scale, PRECISION)
        summed += dscores
        dscores = dscores.to(q.dtype)
        dq = tl.dot(dscores, k, input_precision=PRECISION) * scale
        dk = tl.dot(tl.trans(dscores), q, input_precision=PRECISION) * scale
        dv = tl.dot(tl.trans(weights.to(do.dtype)), do, input_precision=PRECISION)
        rows = dqkv + (image * num_tokens * 3 * num_heads + head) * DIM
        part = num_heads * DIM
        _write(rows, dq, tokens, windows, 3 * part, DIM, BLOCK_D)
        _write(rows + part, dk, tokens, windows, 3 * part, DIM, BLOCK_D)
        _write(rows + 2 * part, dv, tokens, windows, 3 * part, DIM, BLOCK_D)
    if WITH_TABLE:
        num_groups = tl.num_programs(0) // num_heads
        _write_pairs(pairs, summed, share, head, group, 0, 0, num_groups, num_heads, group_size, BLOCK)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def backward_of_queries(
    qkv, table, out, lse, grad, dqkv, token, window, number,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, group_size, num_tiles, middle, scale,
    DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """Gradients of a tile of queries, over the key tiles of its group. Grid: (h * B * G, b)."""
    head, group, tile, image = _place(num_heads, num_tiles)
    tokens_q, windows_q, numbers_q = _slots(token, window, number, group, tile, group_size, BLOCK)
    q, o, do, l = _read_query(
        qkv, out, grad, lse, tokens_q, windows_q, image, head,
        stride_b, stride_n, stride_h, num_tokens, num_heads, DIM, BLOCK_D,
    )  # fmt: skip
    dq = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for key_tile in range(num_tiles):
        tokens_k, windows_k, numbers_k = _slots(token, window, number, group, key_tile, group_size, BLOCK)
        k, v = _read_key(qkv, tokens_k, windows_k, image, head, stride_b, stride_n, stride_part, stride_h, DIM, BLOCK_D)
        bias = _bias(table, head, num_heads, windows_q, numbers_q, windows_k, numbers_k, middle)
        _, dscores = _score_gradient(q, k, v, o, do, l, bias, scale, PRECISION)
        dq += tl.dot(dscores.to(k.dtype), k, input_precision=PRECISION)
    rows = dqkv + (image * num_tokens * 3 * num_heads + head) * DIM
    _write(rows, dq * scale, tokens_q, windows_q, 3 * num_heads * DIM, DIM, BLOCK_D)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def backward_of_keys(
    qkv, table, out, lse, grad, dqkv, token, window, number,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, group_size, num_tiles, middle, scale,
    DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values, over the query tiles of its group. Grid: (h * B * G, b)."""
    head, group, tile, image = _place(num_heads, num_tiles)
    tokens_k, windows_k, numbers_k = _slots(token, window, number, group, tile, group_size, BLOCK)
    k, v = _read_key(qkv, tokens_k, windows_k, image, head, stride_b, stride_n, stride_part, stride_h, DIM, BLOCK_D)
    dk = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for query_tile in range(num_tiles):
        tokens_q, windows_q, numbers_q = _slots(token, window, number, group, query_tile, group_size, BLOCK)
        q, o, do, l = _read_query(
            qkv, out, grad, lse, tokens_q, windows_q, image, head,
            stride_b, stride_n, stride_h, num_tokens, num_heads, DIM, BLOCK_D,
        )  # fmt: skip
        bias = _bias(table, head, num_heads, windows_q, numbers_q, windows_k, numbers_k, middle)
        weights, dscores = _score_gradient(q, k, v, o, do, l, bias, scale, PRECISION)
        dk += tl.dot(tl.trans(dscores.to(q.dtype)), q, input_precision=PRECISION)
        dv += tl.dot(tl.trans(weights.to(do.dtype)), do, input_precision=PRECISION)
    part = num_heads * DIM
    rows = dqkv + (image * num_tokens * 3 * num_heads + head) * DIM
    _write(rows + part, dk * scale, tokens_k, windows_k, 3 * part, DIM, BLOCK_D)
    _write(rows + 2 * part, dv, tokens_k, windows_k, 3 * part, DIM, BLOCK_D)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def backward_of_pairs(
    qkv, table, out, lse, grad, pairs, token, window, number,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, group_size, num_tiles, images, share_size,
    middle, scale,
    DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """Gradients of a tile of scores, summed over ``share_size`` images. Grid: (h * B * B * G, s)."""
    head = tl.program_id(0) % num_heads
    both = tl.program_id(0) // num_heads
    group = both // (num_tiles * num_tiles)
    tile_q = both // num_tiles % num_tiles
    tile_k = both % num_tiles
    share = tl.program_id(1)
    tokens_q, windows_q, numbers_q = _slots(token, window, number, group, tile_q, group_size, BLOCK)
    tokens_k, windows_k, numbers_k = _slots(token, window, number, group, tile_k, group_size, BLOCK)
    bias = _bias(table, head, num_heads, windows_q, numbers_q, windows_k, numbers_k, middle)
    summed = tl.zeros([BLOCK, BLOCK], tl.float32)
    for i in range(share * share_size, tl.minimum(share * share_size + share_size, images)):
        image = tl.cast(i, tl.int64)
        q, o, do, l = _read_query(
            qkv, out, grad, lse, tokens_q, windows_q, image, head,
            stride_b, stride_n, stride_h, num_tokens, num_heads, DIM, BLOCK_D,
        )  # fmt: skip
        k, v = _read_key(qkv, tokens_k, windows_k, image, head, stride_b, stride_n, stride_part, stride_h, DIM, BLOCK_D)
        _, dscores = _score_gradient(q, k, v, o, do, l, bias, scale, PRECISION)
        summed += dscores
    num_groups = tl.num_programs(0) // (num_heads * num_tiles * num_tiles)
    _write_pairs(pairs, summed, share, head, group, tile_q, tile_k, num_groups, num_heads, group_size, BLOCK)


@triton.jit(do_not_specialize=[*VARYING, "num_slots"], do_not_specialize_on_alignment=INDICES)
def table_gradient(
    pairs, window, number, member, dtable,
    group_size, num_slots, num_rows, num_heads, window_rows, window_cols,
    BLOCK_T: constexpr, BLOCK: constexpr, CHUNK: constexpr,
):  # fmt: skip
    """Sum ``pairs`` [h, G*g, g] over CHUNK slots per row of the table. Grid: (rows of the table / BLOCK_T, h, chunks).

    A slot has at most one partner at each relative position, and `member` knows where it is: a gather, no scatter.
    ``dtable`` is [chunks, t, h] in fp32.
    """
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    head = tl.program_id(1)
    chunk = tl.program_id(2)
    width = 2 * window_cols - 1
    total = tl.zeros([BLOCK_T], tl.float32)
    for first in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, num_slots), BLOCK):
        slot = first + tl.arange(0, BLOCK)
        own_window = tl.load(window + slot, mask=slot < num_slots, other=-1)
        own_number = tl.load(number + slot, mask=slot < num_slots, other=0).to(tl.int32)
        partner = own_number[None, :] + num_rows // 2 - row[:, None]  # its number, as row = own - partner + middle
        r = partner // width
        c = partner % width
        real = (partner >= 0) & (r < window_rows) & (c < window_cols) & (own_window >= 0)[None, :]
        real = real & (row < num_rows)[:, None]
        place = own_window[None, :] * (window_rows * window_cols) + r * window_cols + c
        partner_slot = tl.load(member + place, mask=real, other=-1)
        offset = head.to(tl.int64) * num_slots * group_size + slot.to(tl.int64)[None, :] * group_size
        found = tl.load(pairs + offset + partner_slot % group_size, mask=real & (partner_slot >= 0), other=0.0)
        total += tl.sum(found, axis=1)
    tl.store(dtable + (chunk * num_rows + row) * num_heads + head, total, mask=row < num_rows)
