"""Triton kernels of attention inside clusters, on tokens where they lie: no copies, sorted or turned, and no padding.

A cluster is an interval of ranks, and ``order`` says whose rank it is. A program computes one *tile*: BLOCK queries of
a cluster against BLOCK keys. It reads their rows of ``qkv``, turns them by their positions on the way (WITH_TURN), and
writes rows of results; gradients are turned back on their way. Each row is written by one program, and each sum has a
fixed order, so equal inputs give bit-equal results.

Legend: b images, n tokens, h heads, d (DIM) channels per head, f = d/2 angles, G clusters, B tiles that the largest
cluster takes, p parts of CHUNK tokens.

    qkv, dqkv [b, n, 3, h, d]   turn [n, f, 2]: cosines and sines, fp32
    order [b, h, n]: token of each rank, least alike first
    out, grad [b, n, h, d]   beside [b, n, h, d]: a gradient that values have from elsewhere (WITH_BESIDE)
    lse [b, h, n]: log of the sum of exponentials, fp32   sums [b, h, p, d], likeness [b, h, n]: fp32
    qkv may have any strides but one channel after the other; all else is contiguous.
"""

from typing import Any

import triton
import triton.language as tl

from backbones.kernels.rows import read_rows, score_gradient, write_rows

constexpr = tl.constexpr
VARYING: Any = ["num_tokens", "num_clusters", "num_tiles", "num_parts"]
"""Numbers that change with the mask or the image.

Compiling for those that 16 divides, too, would compile in the middle of training.
"""


@triton.jit
def _place(num_heads, num_tiles):
    """Work of a program in the grid (h * B * G, b): its head, cluster, tile of the cluster and image."""
    tiles = tl.program_id(0) // num_heads
    return tl.program_id(0) % num_heads, tiles // num_tiles, tiles % num_tiles, tl.program_id(1).to(tl.int64)


@triton.jit
def _tokens(order, image, head, cluster, tile, num_tokens, num_heads, num_clusters, BLOCK: constexpr):
    """Look up the tokens of a tile, negative for what is none. Lengths of clusters differ by one at most."""
    cluster = cluster.to(tl.int64)
    start, end = cluster * num_tokens // num_clusters, (cluster + 1) * num_tokens // num_clusters
    rank = start + tile * BLOCK + tl.arange(0, BLOCK)
    return tl.load(order + (image * num_heads + head) * num_tokens + rank, mask=rank < end, other=-1)


@triton.jit
def _turned(rows, turn, tokens, sense, WITH_TURN: constexpr, DIM: constexpr, BLOCK_D: constexpr):
    """Turn the pairs of features of ``rows`` [BLOCK, BLOCK_D] by tokens' positions, or back (``sense`` -1), in fp32."""
    rows = rows.to(tl.float32)
    if WITH_TURN:
        turns = read_rows(turn, tokens, tokens, DIM, DIM, BLOCK_D)
        cos, sin = tl.split(tl.reshape(turns, (rows.shape[0], BLOCK_D // 2, 2)))
        first, second = tl.split(tl.reshape(rows, (rows.shape[0], BLOCK_D // 2, 2)))
        sin *= sense
        rows = tl.interleave(first * cos - second * sin, first * sin + second * cos)
    return rows


@triton.jit
def _read_turned(rows, turn, tokens, stride, WITH_TURN: constexpr, DIM: constexpr, BLOCK_D: constexpr):
    """Read the tokens' queries or keys [BLOCK, BLOCK_D], turned, in their type."""
    read = read_rows(rows, tokens, tokens, stride, DIM, BLOCK_D)
    return _turned(read, turn, tokens, 1, WITH_TURN, DIM, BLOCK_D).to(read.dtype)


@triton.jit
def _read_query(
    qkv, turn, out, grad, lse, tokens, image, head, stride_b, stride_n, stride_h, num_tokens, num_heads,
    WITH_TURN: constexpr, DIM: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """Read what the backward needs of queries; a weight of what is no token is exp(-inf) = 0."""
    q = _read_turned(qkv + image * stride_b + head * stride_h, turn, tokens, stride_n, WITH_TURN, DIM, BLOCK_D)
    first = (image * num_tokens * num_heads + head) * DIM
    o = read_rows(out + first, tokens, tokens, num_heads * DIM, DIM, BLOCK_D)
    do = read_rows(grad + first, tokens, tokens, num_heads * DIM, DIM, BLOCK_D)
    l = tl.load(lse + (image * num_heads + head) * num_tokens + tokens, mask=tokens >= 0, other=float("inf"))
    return q, o, do, l


@triton.jit
def _read_key(
    qkv, turn, tokens, image, head, stride_b, stride_n, stride_part, stride_h,
    WITH_TURN: constexpr, DIM: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """Read the tokens' keys and values, and a bias of their scores: minus infinity for what is no token."""
    rows = qkv + image * stride_b + head * stride_h
    k = _read_turned(rows + stride_part, turn, tokens, stride_n, WITH_TURN, DIM, BLOCK_D)
    v = read_rows(rows + 2 * stride_part, tokens, tokens, stride_n, DIM, BLOCK_D)
    return k, v, tl.where(tokens >= 0, 0.0, float("-inf"))[None, :]


@triton.jit
def _write_key(
    dqkv, beside, turn, dk, dv, tokens, image, head, num_tokens, num_heads,
    WITH_TURN: constexpr, WITH_BESIDE: constexpr, DIM: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """Store gradients of keys, turned back, and of values, with those from elsewhere."""
    part = num_heads * DIM
    if WITH_BESIDE:
        rows = beside + (image * num_tokens * num_heads + head) * DIM
        dv += read_rows(rows, tokens, tokens, part, DIM, BLOCK_D).to(tl.float32)
    rows = dqkv + (image * num_tokens * 3 * num_heads + head) * DIM
    dk = _turned(dk, turn, tokens, -1, WITH_TURN, DIM, BLOCK_D)
    write_rows(rows + part, dk, tokens, tokens, 3 * part, DIM, BLOCK_D)
    write_rows(rows + 2 * part, dv, tokens, tokens, 3 * part, DIM, BLOCK_D)


@triton.jit
def _write_query(
    dqkv, turn, dq, tokens, image, head, num_tokens, num_heads,
    WITH_TURN: constexpr, DIM: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """Store gradients of queries, turned back."""
    rows = dqkv + (image * num_tokens * 3 * num_heads + head) * DIM
    dq = _turned(dq, turn, tokens, -1, WITH_TURN, DIM, BLOCK_D)
    write_rows(rows, dq, tokens, tokens, 3 * num_heads * DIM, DIM, BLOCK_D)


@triton.jit(do_not_specialize=VARYING)
def forward(
    qkv, turn, order, out, lse,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, num_clusters, num_tiles, scale,
    WITH_TURN: constexpr, DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """Softmax over the key tiles of a cluster, piece by piece. Grid: (h * B * G, b)."""
    head, cluster, tile, image = _place(num_heads, num_tiles)
    tokens_q = _tokens(order, image, head, cluster, tile, num_tokens, num_heads, num_clusters, BLOCK)
    q = _read_turned(qkv + image * stride_b + head * stride_h, turn, tokens_q, stride_n, WITH_TURN, DIM, BLOCK_D)
    # softmax without all scores at once: sums so far shrink whenever a higher score than the highest turns up
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for key_tile in range(num_tiles):
        tokens_k = _tokens(order, image, head, cluster, key_tile, num_tokens, num_heads, num_clusters, BLOCK)
        k, v, bias = _read_key(
            qkv, turn, tokens_k, image, head, stride_b, stride_n, stride_part, stride_h, WITH_TURN, DIM, BLOCK_D
        )
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias
        # a number from the first tile on: no cluster is empty
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.exp(scores - new_highest[:, None])
        shrunk = tl.exp(highest - new_highest)
        total = total * shrunk + tl.sum(weights, axis=1)
        mixed = mixed * shrunk[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        highest = new_highest
    out += (image * num_tokens * num_heads + head) * DIM
    write_rows(out, mixed / total[:, None], tokens_q, tokens_q, num_heads * DIM, DIM, BLOCK_D)
    place = lse + (image * num_heads + head) * num_tokens + tokens_q
    tl.store(place, highest + tl.log(total), mask=tokens_q >= 0)


@triton.jit(do_not_specialize=VARYING)
def backward_of_small_clusters(
    qkv, turn, order, out, lse, grad, beside, dqkv,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, num_clusters, num_tiles, scale,
    WITH_TURN: constexpr, WITH_BESIDE: constexpr, DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr,
    PRECISION: constexpr,
):  # fmt: skip
    """All gradients of a cluster that is one tile. Grid: (h * G, b)."""
    # the tile's queries meet its own keys only, so that one reading of both serves all three gradients
    head, cluster, tile, image = _place(num_heads, num_tiles)
    tokens = _tokens(order, image, head, cluster, tile, num_tokens, num_heads, num_clusters, BLOCK)
    q, o, do, l = _read_query(
        qkv, turn, out, grad, lse, tokens, image, head, stride_b, stride_n, stride_h, num_tokens, num_heads,
        WITH_TURN, DIM, BLOCK_D,
    )  # fmt: skip
    k, v, bias = _read_key(
        qkv, turn, tokens, image, head, stride_b, stride_n, stride_part, stride_h, WITH_TURN, DIM, BLOCK_D
    )
    weights, dscores = score_gradient(q, k, v, o, do, l, bias, scale, PRECISION)
    dscores = dscores.to(q.dtype)
    dq = tl.dot(dscores, k, input_precision=PRECISION) * scale
    _write_query(dqkv, turn, dq, tokens, image, head, num_tokens, num_heads, WITH_TURN, DIM, BLOCK_D)
    dk = tl.dot(tl.trans(dscores), q, input_precision=PRECISION) * scale
    dv = tl.dot(tl.trans(weights.to(do.dtype)), do, input_precision=PRECISION)
    _write_key(
        dqkv, beside, turn, dk, dv, tokens, image, head, num_tokens, num_heads, WITH_TURN, WITH_BESIDE, DIM, BLOCK_D
    )


@triton.jit(do_not_specialize=VARYING)
def backward_of_queries(
    qkv, turn, order, out, lse, grad, dqkv,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, num_clusters, num_tiles, scale,
    WITH_TURN: constexpr, DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, PRECISION: constexpr,
):  # fmt: skip
    """Gradients of a tile of queries, over the key tiles of its cluster. Grid: (h * B * G, b)."""
    head, cluster, tile, image = _place(num_heads, num_tiles)
    tokens_q = _tokens(order, image, head, cluster, tile, num_tokens, num_heads, num_clusters, BLOCK)
    q, o, do, l = _read_query(
        qkv, turn, out, grad, lse, tokens_q, image, head, stride_b, stride_n, stride_h, num_tokens, num_heads,
        WITH_TURN, DIM, BLOCK_D,
    )  # fmt: skip
    dq = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for key_tile in range(num_tiles):
        tokens_k = _tokens(order, image, head, cluster, key_tile, num_tokens, num_heads, num_clusters, BLOCK)
        k, v, bias = _read_key(
            qkv, turn, tokens_k, image, head, stride_b, stride_n, stride_part, stride_h, WITH_TURN, DIM, BLOCK_D
        )
        _, dscores = score_gradient(q, k, v, o, do, l, bias, scale, PRECISION)
        dq += tl.dot(dscores.to(k.dtype), k, input_precision=PRECISION)
    _write_query(dqkv, turn, dq * scale, tokens_q, image, head, num_tokens, num_heads, WITH_TURN, DIM, BLOCK_D)


@triton.jit(do_not_specialize=VARYING)
def backward_of_keys(
    qkv, turn, order, out, lse, grad, beside, dqkv,
    stride_b, stride_n, stride_part, stride_h, num_tokens, num_heads, num_clusters, num_tiles, scale,
    WITH_TURN: constexpr, WITH_BESIDE: constexpr, DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr,
    PRECISION: constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values, over the query tiles of its cluster. Grid: (h * B * G, b)."""
    head, cluster, tile, image = _place(num_heads, num_tiles)
    tokens_k = _tokens(order, image, head, cluster, tile, num_tokens, num_heads, num_clusters, BLOCK)
    k, v, bias = _read_key(
        qkv, turn, tokens_k, image, head, stride_b, stride_n, stride_part, stride_h, WITH_TURN, DIM, BLOCK_D
    )
    dk = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for query_tile in range(num_tiles):
        tokens_q = _tokens(order, image, head, cluster, query_tile, num_tokens, num_heads, num_clusters, BLOCK)
        q, o, do, l = _read_query(
            qkv, turn, out, grad, lse, tokens_q, image, head, stride_b, stride_n, stride_h, num_tokens, num_heads,
            WITH_TURN, DIM, BLOCK_D,
        )  # fmt: skip
        weights, dscores = score_gradient(q, k, v, o, do, l, bias, scale, PRECISION)
        dk += tl.dot(tl.trans(dscores.to(q.dtype)), q, input_precision=PRECISION)
        dv += tl.dot(tl.trans(weights.to(do.dtype)), do, input_precision=PRECISION)
    _write_key(
        dqkv, beside, turn, dk * scale, dv, tokens_k, image, head, num_tokens, num_heads,
        WITH_TURN, WITH_BESIDE, DIM, BLOCK_D,
    )  # fmt: skip


@triton.jit
def _read_part(
    qkv, turn, image, head, first, stride_b, stride_n, stride_h, num_tokens,
    WITH_TURN: constexpr, DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr,
):  # fmt: skip
    """Read ``BLOCK`` tokens from ``first`` on, negative for what is none, and their rows, turned, in fp32."""
    token = first + tl.arange(0, BLOCK)
    token = tl.where(token < num_tokens, token, -1).to(tl.int64)
    rows = read_rows(qkv + image * stride_b + head * stride_h, token, token, stride_n, DIM, BLOCK_D)
    return token, _turned(rows, turn, token, 1, WITH_TURN, DIM, BLOCK_D)


@triton.jit(do_not_specialize=VARYING)
def sum_parts(
    qkv, turn, sums, stride_b, stride_n, stride_h, num_tokens, num_heads, num_parts,
    WITH_TURN: constexpr, DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, CHUNK: constexpr,
):  # fmt: skip
    """Sum the turned rows of CHUNK tokens. ``qkv`` starts at the queries or at the keys. Grid: (h * p, b)."""
    head, part, _tile, image = _place(num_heads, 1)
    total = tl.zeros([BLOCK_D], tl.float32)
    for first in range(part * CHUNK, tl.minimum(part * CHUNK + CHUNK, num_tokens), BLOCK):
        _token, rows = _read_part(
            qkv, turn, image, head, first, stride_b, stride_n, stride_h, num_tokens, WITH_TURN, DIM, BLOCK, BLOCK_D
        )
        total += tl.sum(rows, axis=0)
    channel = tl.arange(0, BLOCK_D)
    place = ((image * num_heads + head) * num_parts + part) * DIM
    tl.store(sums + place + channel, total, mask=channel < DIM)


@triton.jit(do_not_specialize=VARYING)
def likeness_to_mean(
    qkv, turn, sums, likeness, stride_b, stride_n, stride_h, num_tokens, num_heads, num_parts,
    WITH_TURN: constexpr, DIM: constexpr, BLOCK: constexpr, BLOCK_D: constexpr, PARTS: constexpr,
):  # fmt: skip
    """Cosine between the turned keys of BLOCK tokens and the mean that ``sums`` add up to. Grid: (h * tiles, b)."""
    head, tile, _, image = _place(num_heads, 1)
    mean = tl.zeros([BLOCK_D], tl.float32)
    for first in range(0, num_parts, PARTS):
        part = first + tl.arange(0, PARTS).to(tl.int64)
        part = tl.where(part < num_parts, part, -1)
        mean += tl.sum(
            read_rows(sums + (image * num_heads + head) * num_parts * DIM, part, part, DIM, DIM, BLOCK_D), axis=0
        )
    mean /= num_tokens
    mean /= tl.maximum(tl.sqrt_rn(tl.sum(mean * mean, axis=0)), 1e-12)
    token, keys = _read_part(
        qkv, turn, image, head, tile * BLOCK, stride_b, stride_n, stride_h, num_tokens, WITH_TURN, DIM, BLOCK, BLOCK_D
    )
    length = tl.sqrt_rn(tl.sum(keys * keys, axis=1))
    cosine = tl.sum(keys * mean[None, :], axis=1) / tl.maximum(length, 1.1754943508222875e-38)
    tl.store(likeness + (image * num_heads + head) * num_tokens + token, cosine, mask=token >= 0)
