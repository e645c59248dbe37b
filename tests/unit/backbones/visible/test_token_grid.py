"""Tiles of visible units: every halo holds the visible neighbours at their places and nothing else."""

import numpy as np
import pytest
import torch

from backbones.visible.layout import LayoutSpec, build_layout
from backbones.visible.token_grid import GridSpec, dense_grid, tile_levels


def grid_for(*, units=(3, 4), tile=4, reach=2, seed=0, ratio=0.5):
    level = GridSpec(grid=(units[0] * tile, units[1] * tile), channels=1, reach=reach)
    spec = LayoutSpec(
        img_size=(units[0] * 32, units[1] * 32), patch=(4, 4), unit=(32, 32), stages=(level,), build=tile_levels
    )
    visible = np.random.default_rng(seed).random(units) < ratio
    visible.flat[seed % visible.size] = True
    return build_layout(spec, visible).to("cpu").stages[0], visible


@pytest.mark.parametrize("tile", [1, 2, 4])
@pytest.mark.parametrize("reach", [0, 1, 2])
def test_halo_equals_a_cut_from_the_map_with_zeros_where_nothing_is_visible(tile, reach):
    grid, visible = grid_for(tile=tile)
    x = torch.randn(2, len(grid.coords), 3)
    whole = torch.zeros(2, 3, 3 * tile + 4, 4 * tile + 4)
    row, col = (grid.coords + 2).unbind(1)
    whole[:, :, row, col] = x.mT
    halo, padding = grid.halo(x, reach)
    assert padding == 0
    units = np.argwhere(visible)
    side = tile + 2 * reach
    assert halo.shape == (2 * len(units), 3, side, side)
    for number, (r, c) in enumerate(units):
        top, left = r * tile + 2 - reach, c * tile + 2 - reach
        expected = whole[:, :, top : top + side, left : left + side]
        assert torch.equal(halo.unflatten(0, (2, -1))[:, number], expected)


def test_tokens_and_maps_are_each_others_inverse():
    for grid in (grid_for()[0], dense_grid(6, 5, num_units=1, device=torch.device("cpu"))):
        x = torch.randn(2, len(grid.coords), 3)
        assert torch.equal(grid.tokens(grid.maps(x), 2), x)


def test_a_dense_grid_is_one_tile_in_raster_order():
    grid = dense_grid(2, 3, num_units=1, device=torch.device("cpu"))
    assert grid.coords.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    halo, padding = grid.halo(torch.randn(1, 6, 1), 2)
    assert (halo.shape, padding) == ((1, 1, 2, 3), 2)
