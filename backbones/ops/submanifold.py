"""Convolutions on the tokens of a grid, all of them or the visible ones: a token that is not there counts as zero.

The depthwise one has its own backward pass. Its gradient is the same convolution with a flipped kernel, since a token
sees another exactly if that one sees it; so it is read from halos, where autograd would add into zeros, and no halo is
kept. The weight's gradient is read from the same halos, for the same reason: of the gradient, times the tokens. And
PyTorch's takes 20 times its forward for a 5x5 kernel on a CPU, but not for one of three columns: kernels are cut.
On a GPU with Triton all this is one kernel each, without halos (``backbones.kernels.depthwise``).

Legend: b batch, n tokens, o tokens of the grid below, c d channels, s side of the kernel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from backbones.kernels.availability import takes_kernels
from backbones.visible.token_grid import TokenGrid
from engine.errors import UserError

_PIECE = 3
"""Columns of the kernels whose weight gradient is fast on a CPU, whatever their rows."""
_FUSED_SIDES = (3, 5, 7)
"""Sides of the kernels that Triton has been compiled for."""


def depthwise(
    conv: nn.Conv2d, x: Float[Tensor, "b n c"], grid: TokenGrid, *, residual: bool = False
) -> Float[Tensor, "b n c"]:
    """Run a depthwise convolution, of stride 1 and an odd square kernel, at every token; ``residual`` adds ``x``."""
    dtype = _compute_dtype(x)
    if _is_fused(conv, x, dtype):
        from backbones.kernels.depthwise import fused_depthwise  # noqa: PLC0415 - where there is no GPU, there may be no Triton

        out_dtype = torch.promote_types(x.dtype, dtype) if residual else dtype
        return fused_depthwise(conv, x, grid, residual=residual, dtype=out_dtype)
    if residual and dtype.itemsize < torch.float32.itemsize:  # a weight plus 1 has to be a weight still
        return x + depthwise(conv, x, grid)
    weight, bias = conv.weight.to(dtype), conv.bias if conv.bias is None else conv.bias.to(dtype)
    out: Any = _Depthwise.apply(x.to(dtype), weight, bias, grid, residual)
    return out


def convolution(conv: nn.Conv2d, x: Float[Tensor, "b n c"], grid: TokenGrid) -> Float[Tensor, "bm d p q"]:
    """Run an odd square convolution, with its stride, on the tokens; the result is a map per tile."""
    halo, padding = grid.halo(x, conv.kernel_size[0] // 2)
    stride: Any = conv.stride
    return F.conv2d(halo, conv.weight, conv.bias, stride=stride, padding=padding, groups=conv.groups)


def normed_convolution(
    conv: nn.Conv2d, norm: Any, x: Float[Tensor, "b n c"], grid: TokenGrid
) -> Float[Tensor, "bm d p q"]:
    """Run :func:`convolution` and its BatchNorm, of any kind, over the places that there are.

    In evaluation both are one convolution.

    Raises:
        UserError: in training there is one place only.
    """
    if norm.training:
        maps = convolution(conv, x, grid)
        check_places(norm, maps.shape[0] * maps.shape[2] * maps.shape[3])
        return norm(maps)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    bias = 0 if conv.bias is None else conv.bias
    scale = norm.weight * (variance + norm.eps).rsqrt()
    halo, padding = grid.halo(x, conv.kernel_size[0] // 2)
    weight, bias = conv.weight * scale[:, None, None, None], norm.bias + (bias - mean) * scale
    stride: Any = conv.stride
    return F.conv2d(halo, weight, bias, stride=stride, padding=padding, groups=conv.groups)


def check_places(norm: nn.Module, num_places: int) -> None:
    """Refuse to train a BatchNorm on one place of one image, which has no variance.

    Raises:
        UserError: there is one only.
    """
    if norm.training and num_places < 2:
        raise UserError(
            "BatchNorm cannot be trained on one place: expected at least 2 visible units or images in a micro-batch, "
            "got 1 visible unit of 1 image; lower the mask ratio or make micro-batches larger"
        )


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    if device == "meta":  # where sizes are counted, and nothing is computed
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _is_fused(conv: nn.Conv2d, x: Tensor, dtype: torch.dtype) -> bool:
    return takes_kernels(x, dtype) and conv.kernel_size[0] in _FUSED_SIDES


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, grid: TokenGrid, residual: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.grid, ctx.residual = grid, residual
        return _at_tokens(x, _with_identity(weight) if residual else weight, bias, grid)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (x, weight), grid, grad = ctx.saved_tensors, ctx.grid, grads[0].contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = None
        halo, padding = grid.halo(grad, weight.shape[-1] // 2)
        if needs_x:
            flipped = (_with_identity(weight) if ctx.residual else weight).flip(2, 3)
            maps = F.conv2d(halo, flipped, padding=padding, groups=weight.shape[0])
            grad_x = grid.tokens(maps, len(x))
        if needs_weight:
            # a tap read the token there for the one here: so that one's gradient is at the opposite place from there
            grad_weight = _weight_gradient(halo, grid.maps(x), weight, padding=padding).flip(2, 3)
        return grad_x, grad_weight, grad.sum((0, 1)) if needs_bias else None, None, None


def _at_tokens(x: Tensor, weight: Tensor, bias: Tensor | None, grid: TokenGrid) -> Float[Tensor, "b n c"]:
    halo, padding = grid.halo(x, weight.shape[-1] // 2)
    return grid.tokens(F.conv2d(halo, weight, bias, padding=padding, groups=weight.shape[0]), len(x))


def _with_identity(weight: Float[Tensor, "c 1 s s"]) -> Float[Tensor, "c 1 s s"]:
    """Add the input to what a kernel computes: one more in the middle, instead of a pass over the tokens."""
    middle = weight.shape[-1] // 2
    weight = weight.clone()
    weight[:, :, middle, middle] += 1
    return weight


def _weight_gradient(
    read: Float[Tensor, "bm c p q"], maps: Float[Tensor, "bm c h w"], weight: Float[Tensor, "c 1 s s"], *, padding: int
) -> Float[Tensor, "c 1 s s"]:
    """Find the gradient of the weight of a convolution of ``read`` whose result has the gradient ``maps``."""
    side = weight.shape[-1]
    if side <= _PIECE or read.is_cuda:
        return _plain_gradient(read, maps, weight, padding=(padding, padding))
    read = F.pad(read, (padding, padding)) if padding else read
    pieces = []
    for part in weight.split(_PIECE, dim=3):
        first, last = len(pieces) * _PIECE, len(pieces) * _PIECE + maps.shape[3] + part.shape[3] - 1
        pieces.append(_plain_gradient(read[..., first:last], maps, part, padding=(padding, 0)))
    return torch.cat(pieces, dim=3)


def _plain_gradient(
    read: Float[Tensor, "bm c p q"], maps: Float[Tensor, "bm c h w"], weight: Tensor, *, padding: tuple[int, int]
) -> Tensor:
    stride, dilation, output_padding = [1, 1], [1, 1], [0, 0]
    geometry: Any = (stride, list(padding), dilation, False, output_padding, len(weight))
    only_weight = [False, True, False]
    return torch.ops.aten.convolution_backward(maps, read, torch.empty_like(weight), None, *geometry, only_weight)[1]
