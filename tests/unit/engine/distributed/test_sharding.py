"""The global gradient norm: as exact as in fp64 at any size, and what is not finite stays so."""

import pytest
import torch

from engine.distributed.sharding import ROW, _norms


@pytest.mark.parametrize("sizes", [(1,), (ROW - 1, ROW, ROW + 1), (3, 5 * 10**6), (0, 7)])
def test_norms_of_any_sizes_are_those_of_fp64(sizes):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(size, generator=generator) * 1e-3 for size in sizes]
    expected = torch.cat(gradients).double().norm()
    found = _norms(gradients).double().square().sum().sqrt()
    assert float(found) == pytest.approx(float(expected), rel=1e-7)


def test_squares_that_exceed_fp32_are_summed_in_fp64():
    assert float(_norms([torch.ones(3), torch.full((ROW + 1,), 1e20)]).square().sum().sqrt()) == pytest.approx(
        1e20 * (ROW + 1) ** 0.5
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, ROW + 3])
def test_what_is_not_finite_is_seen_wherever_it_is(value, place):
    gradient = torch.ones(ROW + 5)
    gradient[place] = value
    assert not _norms([torch.ones(3), gradient]).isfinite().all()
