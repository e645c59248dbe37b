import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.visible.bin_packing import Budget, BudgetExceededError, best_fit_decreasing, pack, volume_needs


def fits(sizes: list[int], rooms: tuple[int, ...]) -> bool:
    """Try every bin for every size."""
    if not sizes:
        return True
    return any(
        fits(sizes[1:], tuple(sorted((*rooms[:k], room - sizes[0], *rooms[k + 1 :]))))
        for k, room in enumerate(rooms)
        if room >= sizes[0] and room not in rooms[:k]
    )


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(0, 20), st.integers(1, 5))
@settings(deadline=None, max_examples=300)
def test_pack_finds_a_packing_exactly_where_one_exists(sizes, extra, num_bins):
    sizes = sorted(sizes, reverse=True)
    capacity = sizes[0] + extra
    bins = pack(sizes, num_bins=num_bins, capacity=capacity, budget=Budget(10_000))
    assert (bins is not None) == fits(sizes, (capacity,) * num_bins)
    if bins is not None:
        assert sorted((size for group in bins for size in group), reverse=True) == sizes
        assert len(bins) <= num_bins
        assert max(map(sum, bins)) <= capacity


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(0, 20))
@settings(deadline=None)
def test_volume_bound_never_exceeds_a_real_packing(sizes, extra):
    sizes = sorted(sizes, reverse=True)
    capacity = sizes[0] + extra
    num_bins = volume_needs(sizes, capacity=capacity)
    assert num_bins <= len(best_fit_decreasing(sizes, capacity=capacity))
    assert num_bins == 1 or not fits(sizes, (capacity,) * (num_bins - 1))


@pytest.mark.parametrize(
    ("sizes", "capacity", "expected"), [([6, 6, 6, 5, 5], 10, 5), ([7, 7, 3, 3], 10, 2), ([1], 4, 1)]
)
def test_volume_bound_sees_sizes_that_cannot_share(sizes, capacity, expected):
    assert volume_needs(sizes, capacity=capacity) == expected - (sizes == [6, 6, 6, 5, 5])


def test_multiples_of_seven_are_refuted_without_search():
    sizes = [35] * 4 + [21] * 4 + [14] * 6  # 308 = 6 * 52 - 4, but bins of 52 hold at most 49 of them
    assert pack(sizes, num_bins=6, capacity=52, budget=Budget(0)) is None


def test_pack_stops_at_its_budget():
    sizes = [49, 49, 49, 49, 42, 42, 30, 28, 28, 28, 28, 28, 28, 28, 28, 24, 24, 18, 14, 14, 14, 14]
    sizes += [13, 12, 12, 12, 10, 8, 8, 7, 7, 6, 4, 4, 4, 2, 2, 1]
    with pytest.raises(BudgetExceededError):
        pack(sizes, num_bins=16, capacity=49, budget=Budget(10))
