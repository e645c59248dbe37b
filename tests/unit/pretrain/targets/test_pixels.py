"""Targets: what a unit's pixels are, and how they are normalised."""

import torch

from pretrain.targets.pixels import normalised, pixels_to_images, unit_pixels


def test_units_are_raster_ordered_and_flattened_as_row_column_channel():
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    units = unit_pixels(images, (2, 3))
    assert units.shape == (2, 4, 18)
    for row in range(2):
        for col in range(2):
            expected = images[:, :, row * 2 : row * 2 + 2, col * 3 : col * 3 + 3].permute(0, 2, 3, 1).flatten(1)
            assert torch.equal(units[:, row * 2 + col], expected)


def test_units_go_back_to_images():
    images = torch.randn(2, 3, 8, 12)
    assert torch.equal(pixels_to_images(unit_pixels(images, (4, 4)), (4, 4), (2, 3)), images)


def test_normalised_units_have_zero_mean_and_unit_unbiased_variance():
    units = normalised(torch.randn(2, 5, 48, dtype=torch.float64) * 3 + 7)
    assert units.mean(-1).abs().max() < 1e-12
    assert (units.var(-1) - 1).abs().max() < 1e-5


def test_a_flat_unit_stays_finite():
    assert normalised(torch.full((1, 1, 12), 5.0)).abs().max() == 0
