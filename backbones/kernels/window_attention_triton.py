"""Triton kernels of attention inside windows, on tokens where they lie: no copy into groups, no bias per pair stored.

A program computes one *tile* of query slots (``backbones.visible.window_slots``), BLOCK of them against BLOCK keys at a
time, as far as the keys go that the tile can meet. It finds the tile's tokens through the plan, reads their rows of
``qkv`` and writes rows of results. Which row of the bias table a pair takes is a difference of one number per slot;
pairs of different windows score minus infinity.

Images may have several masks, equally many images each and one after the other: a program takes the plan of its own
image's.

The gradient of the bias table needs the gradient of each score summed over images. That sum stays in registers while a
program goes from image to image and is written once per program (``pairs``); a last kernel collects per relative
position. Nothing is added atomically and each sum has a fixed order, so equal inputs give bit-equal gradients.

Legend: b images, s masks, n tokens, h heads, d (DIM) channels per head, S slots, T tiles, B (key_tiles) tiles of keys
that a tile meets at most, t rows of the bias table, W windows, p (shares) programs that share the images of a mask.

    qkv, dqkv [b, n, 3, h, d]   out, grad [b, n, h, d]   table [t, h]
    lse [b, h, n]: log of the sum of exponentials, fp32
    token, window, number, first_key [s, S] of each slot, member [s, W, rows*cols], tiles [s, T, 4]: see GroupPlan
    pairs [s, p, h, S, B*BLOCK]: fp32, a slot's scores with the keys that its tile meets, in their order
    qkv may have any strides but one channel after the other; all else is contiguous.
"""

from typing import Any

import triton
import triton.language as tl

from backbones.kernels.rows import read_rows, score_gradient, write_rows

constexpr = tl.constexpr
VARYING: Any = ["num_slots", "num_tiles", "key_tiles", "images_per_mask", "share_size"]
"""Numbers that may change from mask to mask.

Compiling for those that 16 divides, too, would compile in the middle of training.
"""
INDICES: Any = ["token", "window", "number", "first_key", "member", "tiles"]
"""Parts of one packed tensor, whose alignment changes with the mask."""


@triton.jit
def _tile(tiles, mask, tile, num_tiles):
    """Look up where a tile lies: its first slot and end, and those of the keys that it meets."""
    at = tiles + (mask * num_tiles + tile) * 4
    first = tl.load(at).to(tl.int32)
    end = tl.load(at + 1).to(tl.int32)
    first_key = tl.load(at + 2).to(tl.int32)
    end_key = tl.load(at + 3).to(tl.int32)
    return first, end, first_key, end_key


@triton.jit
def _slots(token, window, number, mask, num_slots, first, end, BLOCK: constexpr):
    """Look up tokens, windows and numbers of slots from ``first`` on; the window of what is no token is negative."""
    local = first + tl.arange(0, BLOCK)
    slot = mask * num_slots + local
    inside = local < end
    tokens = tl.load(token + slot, mask=inside, other=0).to(tl.int64)
    windows = tl.load(window + slot, mask=inside, other=-1).to(tl.int32)
    numbers = tl.load(number + slot, mask=inside, other=0).to(tl.int32)
    return tokens, windows, numbers


@triton.jit
def _share(images_per_mask, share_size):
    """Mask and images (first, end) for a program to go through; its second number counts the shares of all masks."""
    shares = tl.cdiv(images_per_mask, share_size)
    mask = tl.program_id(1) // shares
    first = tl.program_id(1) % shares * share_size
    end = tl.minimum(first + share_size, images_per_mask)
    return mask, mask * images_per_mask + first, mask * images_per_mask + end


@triton.jit
def _bias(table, head, num_heads, windows_q, numbers_q, windows_k, numbers_k, middle):
    """Look up the bias of each pair [BLOCK, BLOCK] in fp32; minus infinity keeps windows apart."""
    together = windows_q[:, None] == windows_k[None, :]
    row = numbers_q[:, None] - numbers_k[None, :] + middle
    bias = tl.load(table + row * num_heads + head, mask=together & (windows_q >= 0)[:, None], other=0.0)
    return tl.where(together, bias.to(tl.float32), float("-inf"))


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def forward(
    qkv, table, out, lse, token, window, number, tiles,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, num_slots, num_tiles, images_per_mask,
    middle, scale,
    DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """Softmax over the keys that a tile meets, piece by piece. Grid: (h * T, b)."""
    # the program's queries: loaded once, compared with all keys
    head, tile = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    mask, image = tl.program_id(1) // images_per_mask, tl.program_id(1).to(tl.int64)
    first, end, first_key, end_key = _tile(tiles, mask, tile, num_tiles)
    tokens_q, windows_q, numbers_q = _slots(token, window, number, mask, num_slots, first, end, BLOCK)
    rows = qkv + image * stride_b + head * stride_h
    q = read_rows(rows, tokens_q, windows_q, stride_n, DIM, BLOCK_D)
    # softmax without all scores at once: sums so far shrink whenever a higher score than the highest turns up
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for key in range(first_key, end_key, BLOCK):
        tokens_k, windows_k, numbers_k = _slots(token, window, number, mask, num_slots, key, end_key, BLOCK)
        k = read_rows(rows + stride_part, tokens_k, windows_k, stride_n, DIM, BLOCK_D)
        v = read_rows(rows + 2 * stride_part, tokens_k, windows_k, stride_n, DIM, BLOCK_D)
        bias = _bias(table, head, num_heads, windows_q, numbers_q, windows_k, numbers_k, middle)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))
        shift = tl.where(new_highest == float("-inf"), 0.0, new_highest)  # no key of the query's window so far
        weights = tl.exp(scores - shift[:, None])
        shrunk = tl.exp(highest - shift)
        total = total * shrunk + tl.sum(weights, axis=1)
        mixed = mixed * shrunk[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        highest = new_highest
    # a row of no token has no key and no sum: 1 avoids a division by zero, and nothing is stored for it
    seen = windows_q >= 0
    total = tl.where(seen, total, 1.0)
    out += (image * num_tokens * num_heads + head) * DIM
    write_rows(out, mixed / total[:, None], tokens_q, windows_q, num_heads * DIM, DIM, BLOCK_D)
    tl.store(lse + (image * num_heads + head) * num_tokens + tokens_q, highest + tl.log(total), mask=seen)


@triton.jit
def _read_query(
    qkv, out, grad, lse, tokens, windows, image, head,
    stride_b, stride_n, stride_h, num_tokens, num_heads,
    DIM: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """Read what the backward needs of query slots; a weight of what is no token is exp(-inf) = 0."""
    q = read_rows(qkv + image * stride_b + head * stride_h, tokens, windows, stride_n, DIM, BLOCK_D)
    first = (image * num_tokens * num_heads + head) * DIM
    o = read_rows(out + first, tokens, windows, num_heads * DIM, DIM, BLOCK_D)
    do = read_rows(grad + first, tokens, windows, num_heads * DIM, DIM, BLOCK_D)
    l = tl.load(lse + (image * num_heads + head) * num_tokens + tokens, mask=windows >= 0, other=float("inf"))
    return q, o, do, l


@triton.jit
def _read_key(
    qkv, tokens, windows, image, head, stride_b, stride_n, stride_part, stride_h,
    DIM: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    rows = qkv + image * stride_b + head * stride_h
    k = read_rows(rows + stride_part, tokens, windows, stride_n, DIM, BLOCK_D)
    v = read_rows(rows + 2 * stride_part, tokens, windows, stride_n, DIM, BLOCK_D)
    return k, v


@triton.jit
def _write_pairs(
    pairs, values, head, num_heads, num_slots, width, first, end, column, BLOCK: constexpr
):  # fmt: skip
    """Store the gradients of a tile's scores with BLOCK keys, from ``column`` of those that it meets on."""
    i = first + tl.arange(0, BLOCK)
    j = column + tl.arange(0, BLOCK)
    slot = (tl.program_id(1) * num_heads + head).to(tl.int64) * num_slots + i
    tl.store(pairs + slot[:, None] * width + j[None, :], values, mask=(i < end)[:, None])


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def backward_of_lone_tiles(
    qkv, table, out, lse, grad, dqkv, pairs, token, window, number, tiles,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, num_slots, num_tiles, images_per_mask, share_size,
    middle, scale,
    WITH_TABLE: constexpr, DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """All gradients of a tile that meets itself only, for ``share_size`` images. Grid: (h * T, s * p)."""
    head, tile = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    mask, first_image, end_image = _share(images_per_mask, share_size)
    first, end, first_key, end_key = _tile(tiles, mask, tile, num_tiles)
    end_image = tl.where(first_key < end_key, end_image, first_image)  # nothing to do for a tile without tokens
    tokens, windows, numbers = _slots(token, window, number, mask, num_slots, first, end, BLOCK)
    # images of one mask share tokens and bias, and the gradients of their scores add up in registers
    bias = _bias(table, head, num_heads, windows, numbers, windows, numbers, middle)
    summed = tl.zeros([BLOCK, BLOCK], tl.float32)
    for i in range(first_image, end_image):
        image = tl.cast(i, tl.int64)
        q, o, do, l = _read_query(
            qkv, out, grad, lse, tokens, windows, image, head,
            stride_b, stride_n, stride_h, num_tokens, num_heads, DIM, BLOCK_D,
        )  # fmt: skip
        k, v = _read_key(qkv, tokens, windows, image, head, stride_b, stride_n, stride_part, stride_h, DIM, BLOCK_D)
        weights, dscores = score_gradient(q, k, v, o, do, l, bias, scale, PRECISION)
        summed += dscores
        dscores = dscores.to(q.dtype)
        dq = tl.dot(dscores, k, input_precision=PRECISION) * scale
        dk = tl.dot(tl.trans(dscores), q, input_precision=PRECISION) * scale
        dv = tl.dot(tl.trans(weights.to(do.dtype)), do, input_precision=PRECISION)
        rows = dqkv + (image * num_tokens * 3 * num_heads + head) * DIM
        part = num_heads * DIM
        write_rows(rows, dq, tokens, windows, 3 * part, DIM, BLOCK_D)
        write_rows(rows + part, dk, tokens, windows, 3 * part, DIM, BLOCK_D)
        write_rows(rows + 2 * part, dv, tokens, windows, 3 * part, DIM, BLOCK_D)
    if WITH_TABLE:
        _write_pairs(pairs, summed, head, num_heads, num_slots, BLOCK, first, end, 0, BLOCK)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def backward_of_queries(
    qkv, table, out, lse, grad, dqkv, token, window, number, tiles,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, num_slots, num_tiles, images_per_mask,
    middle, scale,
    DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """Gradients of a tile of queries, over the keys that it meets. Grid: (h * T, b)."""
    head, tile = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    mask, image = tl.program_id(1) // images_per_mask, tl.program_id(1).to(tl.int64)
    first, end, first_key, end_key = _tile(tiles, mask, tile, num_tiles)
    tokens_q, windows_q, numbers_q = _slots(token, window, number, mask, num_slots, first, end, BLOCK)
    q, o, do, l = _read_query(
        qkv, out, grad, lse, tokens_q, windows_q, image, head,
        stride_b, stride_n, stride_h, num_tokens, num_heads, DIM, BLOCK_D,
    )  # fmt: skip
    dq = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for key in range(first_key, end_key, BLOCK):
        tokens_k, windows_k, numbers_k = _slots(token, window, number, mask, num_slots, key, end_key, BLOCK)
        k, v = _read_key(qkv, tokens_k, windows_k, image, head, stride_b, stride_n, stride_part, stride_h, DIM, BLOCK_D)
        bias = _bias(table, head, num_heads, windows_q, numbers_q, windows_k, numbers_k, middle)
        _, dscores = score_gradient(q, k, v, o, do, l, bias, scale, PRECISION)
        dq += tl.dot(dscores.to(k.dtype), k, input_precision=PRECISION)
    rows = dqkv + (image * num_tokens * 3 * num_heads + head) * DIM
    write_rows(rows, dq * scale, tokens_q, windows_q, 3 * num_heads * DIM, DIM, BLOCK_D)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def backward_of_keys(
    qkv, table, out, lse, grad, dqkv, token, window, number, tiles,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, num_slots, num_tiles, images_per_mask,
    middle, scale,
    DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values, over the queries that meet it: those that it meets. Grid: (h * T, b)."""
    # who meets whom is mutual, so the range of keys of a tile is its range of queries, too
    head, tile = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    mask, image = tl.program_id(1) // images_per_mask, tl.program_id(1).to(tl.int64)
    first, end, first_query, end_query = _tile(tiles, mask, tile, num_tiles)
    tokens_k, windows_k, numbers_k = _slots(token, window, number, mask, num_slots, first, end, BLOCK)
    k, v = _read_key(qkv, tokens_k, windows_k, image, head, stride_b, stride_n, stride_part, stride_h, DIM, BLOCK_D)
    dk = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for query in range(first_query, end_query, BLOCK):
        tokens_q, windows_q, numbers_q = _slots(token, window, number, mask, num_slots, query, end_query, BLOCK)
        q, o, do, l = _read_query(
            qkv, out, grad, lse, tokens_q, windows_q, image, head,
            stride_b, stride_n, stride_h, num_tokens, num_heads, DIM, BLOCK_D,
        )  # fmt: skip
        bias = _bias(table, head, num_heads, windows_q, numbers_q, windows_k, numbers_k, middle)
        weights, dscores = score_gradient(q, k, v, o, do, l, bias, scale, PRECISION)
        dk += tl.dot(tl.trans(dscores.to(q.dtype)), q, input_precision=PRECISION)
        dv += tl.dot(tl.trans(weights.to(do.dtype)), do, input_precision=PRECISION)
    part = num_heads * DIM
    rows = dqkv + (image * num_tokens * 3 * num_heads + head) * DIM
    write_rows(rows + part, dk * scale, tokens_k, windows_k, 3 * part, DIM, BLOCK_D)
    write_rows(rows + 2 * part, dv, tokens_k, windows_k, 3 * part, DIM, BLOCK_D)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def backward_of_pairs(
    qkv, table, out, lse, grad, pairs, token, window, number, tiles,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, num_slots, num_tiles, images_per_mask, share_size,
    key_tiles, middle, scale,
    DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """Gradients of a tile's scores with one of its tiles of keys, summed over ``share_size`` images.

    Grid: (h * B * T, s * p).
    """
    head, both = tl.program_id(0) % num_heads, tl.program_id(0) // num_heads
    tile, column = both // key_tiles, both % key_tiles * BLOCK
    mask, first_image, end_image = _share(images_per_mask, share_size)
    first, end, first_key, end_key = _tile(tiles, mask, tile, num_tiles)
    end_image = tl.where(first_key + column < end_key, end_image, first_image)  # nobody reads what it has no keys for
    tokens_q, windows_q, numbers_q = _slots(token, window, number, mask, num_slots, first, end, BLOCK)
    tokens_k, windows_k, numbers_k = _slots(
        token, window, number, mask, num_slots, first_key + column, end_key, BLOCK
    )  # fmt: skip
    # images of one mask share tokens and bias, and the gradients of their scores add up in registers
    bias = _bias(table, head, num_heads, windows_q, numbers_q, windows_k, numbers_k, middle)
    summed = tl.zeros([BLOCK, BLOCK], tl.float32)
    for i in range(first_image, end_image):
        image = tl.cast(i, tl.int64)
        q, o, do, l = _read_query(
            qkv, out, grad, lse, tokens_q, windows_q, image, head,
            stride_b, stride_n, stride_h, num_tokens, num_heads, DIM, BLOCK_D,
        )  # fmt: skip
        k, v = _read_key(qkv, tokens_k, windows_k, image, head, stride_b, stride_n, stride_part, stride_h, DIM, BLOCK_D)
        _, dscores = score_gradient(q, k, v, o, do, l, bias, scale, PRECISION)
        summed += dscores
    _write_pairs(pairs, summed, head, num_heads, num_slots, key_tiles * BLOCK, first, end, column, BLOCK)


@triton.jit(do_not_specialize=[*VARYING, "chunks", "num_windows"], do_not_specialize_on_alignment=INDICES)
def table_gradient(
    pairs, window, number, first_key, member, dtable,
    num_slots, width, chunks, num_windows, num_rows, num_heads, window_rows, window_cols,
    BLOCK_T: constexpr, BLOCK: constexpr, CHUNK: constexpr,
):  # fmt: skip
    """Sum ``pairs`` [s, h, S, width] over CHUNK slots per row of the table.

    Grid: (rows of the table / BLOCK_T, h, s * chunks).

    A slot has at most one partner at each relative position, and `member` knows where it is: a gather, no scatter.
    ``dtable`` is [s * chunks, t, h] in fp32.
    """
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    head = tl.program_id(1)
    mask, chunk = tl.program_id(2) // chunks, tl.program_id(2) % chunks
    columns = 2 * window_cols - 1
    total = tl.zeros([BLOCK_T], tl.float32)
    for first in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, num_slots), BLOCK):
        slot = first + tl.arange(0, BLOCK)
        inside = slot < num_slots
        own_window = tl.load(window + mask * num_slots + slot, mask=inside, other=-1)
        own_number = tl.load(number + mask * num_slots + slot, mask=inside, other=0).to(tl.int32)
        own_first = tl.load(first_key + mask * num_slots + slot, mask=inside, other=0)
        partner = own_number[None, :] + num_rows // 2 - row[:, None]  # its number, as row = own - partner + middle
        # a number is row * columns + column of a place in the window; numbers outside of it stand for no place
        r = partner // columns
        c = partner % columns
        real = (partner >= 0) & (r < window_rows) & (c < window_cols) & (own_window >= 0)[None, :]
        real = real & (row < num_rows)[:, None]
        place = (mask * num_windows + own_window[None, :]) * (window_rows * window_cols) + r * window_cols + c
        partner_slot = tl.load(member + place, mask=real, other=-1)
        offset = ((mask * num_heads + head).to(tl.int64) * num_slots + slot)[None, :] * width
        gradients = tl.load(
            pairs + offset + partner_slot - own_first[None, :], mask=real & (partner_slot >= 0), other=0.0
        )
        total += tl.sum(gradients, axis=1)
    tl.store(dtable + (tl.program_id(2) * num_rows + row) * num_heads + head, total, mask=row < num_rows)
