"""Depthwise convolution of the tokens of a grid as one Triton kernel, for GPUs: forward, and both of its gradients.

A program reads its tokens' neighbours where they lie, through the grid's table. So there is no map with zeros, no copy
of tiles with their surroundings and no gather, and bias and residual cost no pass. Products are added up in fp32.
Gradients of weights are sums over parts of the tokens, added up in one order: equal from run to run.

Importing this file imports Triton, which Linux has only: ``backbones.ops.submanifold`` asks before. Shapes are in
comments rather than annotations, since the tests wrap what is annotated, and Triton compiles a function's own source.

Legend: b batch, n tokens, r = b n rows, c channels, s side of the kernel, m tiles, h w sides of a tile, p q the same
with the tokens around, t taps: s s of the kernel and one for the bias, rounded up to a power of 2, g parts of the rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from backbones.visible.token_grid import TokenGrid

_BLOCK_ROWS, _BLOCK_CHANNELS = 32, 64
_GRADIENT_SIZE, _GRADIENT_CHANNELS = 4096, 32
"""Numbers of [rows t channels] that a program of the gradient adds up in, 32 to a thread, and its channels."""
_MOST_PARTS, _LEAST_ROWS = 256, 128
"""Enough parts to keep a GPU busy, and none so small that writing its sums costs more than reading its rows."""
_SIZES = ("rows", "tokens", "height", "width", "reach")
"""Numbers that kernels are not compiled anew for."""
_INDICES = ("windows",)
"""Part of a packed tensor, whose alignment changes with the mask."""


def fused_depthwise(conv: nn.Conv2d, x: Tensor, grid: TokenGrid, *, residual: bool, dtype: torch.dtype) -> Tensor:
    """Convolve ``x`` [b n c] depthwise, stride 1, at every token, into ``dtype``; ``residual`` adds ``x`` itself."""
    out: Any = _FusedDepthwise.apply(x, conv.weight, conv.bias, grid, residual, dtype)
    return out


class _FusedDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, grid: TokenGrid, residual: bool, dtype: torch.dtype
    ) -> Tensor:
        x = _even_rows(x)
        ctx.save_for_backward(x, weight)
        ctx.grid, ctx.residual = grid, residual
        return _convolved(x, weight, bias, grid, residual=residual, flipped=False, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x, weight), grid, grad = ctx.saved_tensors, ctx.grid, grads[0].contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        if needs_x:  # a token sees another exactly if that one sees it
            grad_x = _convolved(grad, weight, None, grid, residual=ctx.residual, flipped=True, dtype=x.dtype)
        if needs_weight or needs_bias:
            grad_weight, grad_bias = _summed_gradients(x, grad, weight, grid)
        return grad_x, grad_weight, grad_bias if needs_bias else None, None, None, None


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grid: TokenGrid,
    *,
    residual: bool,
    flipped: bool,
    dtype: torch.dtype,
) -> Tensor:
    batch, tokens, channels = x.shape
    out = x.new_empty(x.shape, dtype=dtype)
    taps = weight.flatten(1).T.contiguous()  # s s c: so that neighbouring channels are read at once
    rows, block = batch * tokens, min(_BLOCK_CHANNELS, triton.next_power_of_2(channels))
    launch: Any = _convolve[(triton.cdiv(rows, _BLOCK_ROWS), triton.cdiv(channels, block))]
    with _device(x):
        launch(
            *(x, x.stride(1), taps, taps if bias is None else bias, out, rows, channels, *_geometry(x, grid)),
            side=weight.shape[-1],
            has_bias=bias is not None,
            add_x=residual,
            flip=flipped,
            whole=grid.windows is None,
            block_rows=_BLOCK_ROWS,
            block_channels=block,
            enable_fp_fusion=True,
        )
    return out


def _summed_gradients(x: Tensor, grad: Tensor, weight: Tensor, grid: TokenGrid) -> tuple[Tensor, Tensor]:
    """Sum the gradients of the weight and of the bias over all rows, in fp32."""
    (batch, tokens, channels), side = x.shape, weight.shape[-1]
    rows, block = batch * tokens, min(_GRADIENT_CHANNELS, triton.next_power_of_2(channels))
    taps = triton.next_power_of_2(side * side + 1)
    step = max(1, _GRADIENT_SIZE // (taps * _GRADIENT_CHANNELS))
    # parts follow from sizes alone, so that sums have one order
    part_rows = triton.cdiv(max(_LEAST_ROWS, triton.cdiv(rows, _MOST_PARTS)), step) * step
    parts = triton.cdiv(rows, part_rows)
    sums = torch.empty(parts, taps, channels, dtype=torch.float32, device=x.device)
    launch: Any = _sum_gradients[(parts, triton.cdiv(channels, block))]
    with _device(x):
        launch(
            *(x, x.stride(1), grad, sums, rows, channels, *_geometry(x, grid), part_rows),
            side=side,
            whole=grid.windows is None,
            num_taps=taps,
            block_rows=step,
            block_channels=block,
            enable_fp_fusion=True,
        )
    total = sums.sum(0).to(weight.dtype)  # t c
    return total[: side * side].T.reshape(weight.shape), total[side * side]


def _even_rows(x: Tensor) -> Tensor:
    """Copy ``x`` [b n c] unless channels lie together and all rows equally far apart, as in a part of wider rows."""
    even = x.stride(2) == 1 and x.stride(0) == x.shape[1] * x.stride(1)
    return x if even else x.contiguous()


def _geometry(x: Tensor, grid: TokenGrid) -> tuple[Any, ...]:
    """Describe the grid to kernels: the table of neighbours and the numbers that say how it lies."""
    (height, width), windows = grid.tile, grid.windows
    reach = 0 if windows is None else (windows.shape[1] - height) // 2
    table = x if windows is None else windows.contiguous()
    return table, x.shape[1], height, width, reach


def _device(x: Tensor) -> Any:
    """Context to start kernels on the device of ``x``: Triton takes the current one (none in its interpreter)."""
    return torch.cuda.device_of(x)


@triton.jit
def _neighbour(windows, token, is_read, down, right, tokens, height, width, reach, whole: tl.constexpr):
    """Find the token so many rows down and columns to the right of ``token``, and whether there is one."""
    place = token % (height * width)
    row, col = place // width + down, place % width + right
    if whole:
        neighbour = row * width + col
        there = is_read & (row >= 0) & (row < height) & (col >= 0) & (col < width)
    else:
        first = token // (height * width) * (height + 2 * reach)
        at = (first + row + reach) * (width + 2 * reach) + col + reach
        neighbour = tl.load(windows + at, mask=is_read, other=tokens).to(tl.int32)  # m p q, flat
        there = neighbour < tokens
    return neighbour, there


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_INDICES)
def _convolve(
    x,  # r c, rows ``stride`` apart
    stride,
    taps,  # s s c
    bias,  # c
    out,  # r c
    rows,
    channels,
    windows,  # m p q
    tokens,
    height,
    width,
    reach,
    side: tl.constexpr,
    has_bias: tl.constexpr,
    add_x: tl.constexpr,
    flip: tl.constexpr,
    whole: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
):
    """Convolve some rows of some channels: per tap of the kernel, read a neighbour of each."""
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    is_row, is_channel = row < rows, channel < channels
    token = row % tokens
    image = (row - token).to(tl.int64)  # its first row
    total = tl.zeros((block_rows, block_channels), tl.float32)
    if has_bias:
        total += tl.load(bias + channel, mask=is_channel, other=0).to(tl.float32)[None]
    # rows stay a loop: 25 taps laid out one after the other do not fit into registers
    for kernel_row in range(side):
        for kernel_col in tl.static_range(side):  # pyright: ignore[reportGeneralTypeIssues]
            down, right = kernel_row - side // 2, kernel_col - side // 2
            other, there = _neighbour(windows, token, is_row, down, right, tokens, height, width, reach, whole)
            at = (image + other)[:, None] * stride + channel[None]
            read = tl.load(x + at, mask=there[:, None] & is_channel[None], other=0).to(tl.float32)
            tap = kernel_row * side + kernel_col
            weight = taps + (side * side - 1 - tap if flip else tap) * channels
            total += read * tl.load(weight + channel, mask=is_channel, other=0).to(tl.float32)[None]
            if add_x and kernel_col == side // 2:  # the one in the middle reads the token itself
                total += tl.where(kernel_row == side // 2, read, 0.0)
    at = row.to(tl.int64)[:, None] * channels + channel[None]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_channel[None])


@triton.jit(do_not_specialize=(*_SIZES, "part_rows"), do_not_specialize_on_alignment=_INDICES)
def _sum_gradients(
    x,  # r c, rows ``stride`` apart
    stride,
    grad,  # r c
    sums,  # g t c
    rows,
    channels,
    windows,  # m p q
    tokens,
    height,
    width,
    reach,
    part_rows,
    side: tl.constexpr,
    whole: tl.constexpr,
    num_taps: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
):
    """Sum, over one part of the rows, what each tap read times the gradient of what came out; the bias read 1."""
    part = tl.program_id(0)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    is_channel = channel < channels
    tap = tl.arange(0, num_taps)
    down, right = (tap // side - side // 2)[None], (tap % side - side // 2)[None]
    is_bias = (tap == side * side)[None, :, None]
    total = tl.zeros((block_rows, num_taps, block_channels), tl.float32)
    # one running sum for each row of a block: adding rows up once, after the loop, is cheaper than in every step
    for start in range(0, part_rows, block_rows):
        row = part * part_rows + start + tl.arange(0, block_rows)
        is_row = row < rows
        token = row % tokens
        image = (row - token).to(tl.int64)
        is_read = is_row[:, None] & (tap < side * side)[None]
        other, there = _neighbour(windows, token[:, None], is_read, down, right, tokens, height, width, reach, whole)
        at = (image[:, None] + other)[:, :, None] * stride + channel[None, None]
        read = tl.load(x + at, mask=there[:, :, None] & is_channel[None, None], other=0).to(tl.float32)
        at = row.to(tl.int64)[:, None] * channels + channel[None]
        out = tl.load(grad + at, mask=is_row[:, None] & is_channel[None], other=0).to(tl.float32)
        total += tl.where(is_bias, 1.0, read) * out[:, None]
    at = (part * num_taps + tap)[:, None] * channels + channel[None]
    tl.store(sums + at, tl.sum(total, 0), mask=(tap <= side * side)[:, None] & is_channel[None])
