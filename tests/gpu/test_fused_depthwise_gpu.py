"""On a GPU: the fused depthwise convolution equals the plain one, repeats its bits, and is what is chosen."""

import pytest
import torch
from torch import nn

from backbones.ops import submanifold
from backbones.ops.submanifold import depthwise
from backbones.visible.token_grid import TokenGrid, dense_grid
from tests.gpu.selection import selected
from tests.unit.backbones.visible.test_token_grid import grid_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def on_gpu(grid):
    windows = None if grid.windows is None else grid.windows.cuda()
    return TokenGrid(tile=grid.tile, coords=grid.coords.cuda(), windows=windows, num_units=grid.num_units)


def parts(conv, x, weight, grid, *, residual):
    x = x.clone().requires_grad_()
    out = depthwise(conv, x, grid, residual=residual)
    return [out.detach(), *torch.autograd.grad(out, [x, *conv.parameters()], weight)]


@pytest.mark.parametrize(
    ("dtype", "residual", "channels", "side", "whole"),
    selected(
        BOUNDS,
        (False, True),
        (24, 70, 192),
        (3, 5, 7),
        (False, True),
        quick=lambda dtype, residual, channels, side, whole: (
            dtype != torch.float16 and channels == 192 and (side, residual) in ((3, True), (5, False))
        ),
    ),
)
def test_fused_equals_plain_and_repeats_in_every_bit(dtype, residual, channels, side, whole):
    grid = dense_grid(23, 17, num_units=1, device=torch.device("cpu")) if whole else grid_for(tile=8, reach=3)[0]
    grid = on_gpu(grid)
    conv = nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels).cuda()
    x, weight = torch.randn(2, 4, len(grid.coords), channels, device="cuda").to(dtype)
    assert submanifold._is_fused(conv, x, dtype)
    found = parts(conv, x, weight, grid, residual=residual)
    again = parts(conv, x, weight, grid, residual=residual)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    expected = parts(conv.double(), x.double(), weight.double(), grid, residual=residual)
    for i, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        bound = BOUNDS[dtype if i < 2 else torch.float32]
        assert (got.double() - wanted).abs().max() <= bound * wanted.abs().max()


def test_nothing_synchronises_the_device(no_waiting):
    grid = on_gpu(grid_for(tile=8)[0])
    conv = nn.Conv2d(64, 64, 3, padding=1, groups=64).cuda()
    x = torch.randn(4, len(grid.coords), 64, device="cuda", requires_grad=True)
    depthwise(conv, x, grid, residual=True).sum().backward()
    torch.cuda.synchronize()
    with no_waiting():
        depthwise(conv, x, grid, residual=True).sum().backward()


def test_no_halo_is_made():
    grid = on_gpu(grid_for(units=(14, 14), tile=8)[0])
    conv = nn.Conv2d(128, 128, 5, padding=2, groups=128).cuda()
    x = torch.randn(16, len(grid.coords), 128, device="cuda")
    with torch.no_grad():
        depthwise(conv, x, grid)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = depthwise(conv, x, grid)
    assert torch.cuda.max_memory_allocated() - before < 1.1 * out.nbytes
