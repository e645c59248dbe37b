"""Convolutions on visible tokens equal those of a map with zeros elsewhere, values and gradients."""

import pytest
import torch
from torch import nn

from backbones.ops.submanifold import convolution, depthwise
from backbones.visible.token_grid import dense_grid
from tests.unit.backbones.visible.test_token_grid import grid_for


def on_the_map(conv, x, grid, size):
    """Scatter, convolve, gather."""
    place = grid.coords[:, 0] * size[1] + grid.coords[:, 1]
    whole = x.new_zeros(len(x), x.shape[-1], size[0] * size[1]).index_copy(2, place, x.mT)
    return conv(whole.unflatten(2, size)).flatten(2).index_select(2, place).mT


def gradients(f, conv, x, weight):
    x = x.clone().requires_grad_()
    out = f(x)
    return out, torch.autograd.grad((out * weight).sum(), [x, conv.weight, conv.bias])


@pytest.mark.parametrize("side", [3, 5, 7])
@pytest.mark.parametrize("tile", [1, 2, 4])
@pytest.mark.parametrize("residual", [False, True])
def test_depthwise_equals_scatter_convolve_gather(side, tile, residual):
    grid, _ = grid_for(tile=tile, reach=3)
    conv = nn.Conv2d(3, 3, side, padding=side // 2, groups=3).double()
    x, weight = torch.randn(2, 2, len(grid.coords), 3, dtype=torch.float64)
    expected, expected_gradients = gradients(
        lambda x: residual * x + on_the_map(conv, x, grid, (3 * tile, 4 * tile)), conv, x, weight
    )
    got, got_gradients = gradients(lambda x: depthwise(conv, x, grid, residual=residual), conv, x, weight)
    assert torch.allclose(got, expected, atol=1e-12)
    assert all(torch.allclose(g, e, atol=1e-11) for g, e in zip(got_gradients, expected_gradients, strict=True))


@pytest.mark.parametrize("side", [3, 5])
def test_depthwise_on_a_whole_map_equals_the_layer(side):
    grid = dense_grid(6, 5, num_units=1, device=torch.device("cpu"))
    conv = nn.Conv2d(3, 3, side, padding=side // 2, groups=3).double()
    x, weight = torch.randn(2, 2, 30, 3, dtype=torch.float64)
    expected, expected_gradients = gradients(lambda x: grid.tokens(conv(grid.maps(x)), 2), conv, x, weight)
    got, got_gradients = gradients(lambda x: depthwise(conv, x, grid), conv, x, weight)
    assert torch.allclose(got, expected, atol=1e-12)
    assert all(torch.allclose(g, e, atol=1e-11) for g, e in zip(got_gradients, expected_gradients, strict=True))


def test_a_strided_convolution_equals_that_of_the_map_at_the_kept_places():
    grid, visible = grid_for(tile=4)
    conv = nn.Conv2d(3, 6, 3, stride=2, padding=1).double()
    x = torch.randn(2, len(grid.coords), 3, dtype=torch.float64)
    row, col = grid.coords.unbind(1)
    whole = torch.zeros(2, 3, 12, 16, dtype=torch.float64)
    whole[:, :, row, col] = x.mT
    kept = torch.from_numpy(visible).repeat_interleave(2, 0).repeat_interleave(2, 1)
    got = torch.zeros(2, 6, 6, 8, dtype=torch.float64)
    places = torch.from_numpy(visible).nonzero()
    for number, maps in enumerate(convolution(conv, x, grid).unflatten(0, (2, -1)).unbind(1)):
        r, c = (places[number] * 2).tolist()
        got[:, :, r : r + 2, c : c + 2] = maps
    assert torch.allclose(got, conv(whole) * kept, atol=1e-12)


def test_no_halo_is_kept_for_the_backward_pass():
    grid, _ = grid_for(tile=2)
    conv = nn.Conv2d(3, 3, 5, padding=2, groups=3)
    x = torch.randn(2, len(grid.coords), 3, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        depthwise(conv, x, grid)
    assert kept == [x.shape, conv.weight.shape]


def test_bf16_autocast_computes_in_bf16_and_is_close():
    grid, _ = grid_for(tile=2)
    conv = nn.Conv2d(3, 3, 5, padding=2, groups=3)
    x = torch.randn(2, len(grid.coords), 3, requires_grad=True)
    expected = depthwise(conv, x, grid, residual=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = depthwise(conv, x, grid)
        assert got.dtype == torch.bfloat16
        got = depthwise(conv, x, grid, residual=True)
    got.float().square().sum().backward()
    assert (got - expected).abs().max() < 0.05
    assert conv.weight.grad.dtype == torch.float32
