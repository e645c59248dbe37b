"""Tiles hold what their queries can meet, in as few tiles as can be, and have the same shapes for every mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.visible.layout import LayoutSpec, build_layout
from backbones.visible.window_layout import StageSpec, group_plan, window_stages
from backbones.visible.window_slots import most_tiles
from pretrain.batches.masking import unit_mask

masks = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))


def plan_of(case, rule):
    rows, cols, height, width, seed = case
    generator = np.random.default_rng(seed)
    coords = np.argwhere(generator.random((rows, cols)) < generator.random())
    coords = coords if len(coords) else np.zeros((1, 2), dtype=np.int64)
    shift = (seed % height, seed // 7 % width)
    return coords, group_plan(coords, grid=(rows, cols), window=(height, width), shift=shift, rule=rule)


@given(masks, st.sampled_from(["tiles", "optimal"]))
@settings(max_examples=150, deadline=None)
def test_a_tile_meets_all_windows_of_its_tokens_and_is_met_by_what_it_meets(case, rule):
    coords, plan = plan_of(case, rule)
    assert sorted(plan.slot) == sorted(set(plan.slot))
    assert (plan.token[plan.slot] == np.arange(len(coords))).all()
    num_slots = plan.num_groups * plan.group_size
    assert plan.tiles[0, 0] == 0
    assert (plan.tiles[1:, 0] == plan.tiles[:-1, 1]).all()
    assert plan.tiles[-1, 1] == num_slots
    of_tile = np.repeat(np.arange(len(plan.tiles)), plan.tiles[:, 1] - plan.tiles[:, 0])
    for number, (first, end, first_key, end_key) in enumerate(plan.tiles.tolist()):
        assert end - first <= plan.tile
        assert -(-(end_key - first_key) // plan.tile) <= plan.key_tiles
        assert (plan.first_key[first:end] == first_key).all()
        own = set(plan.window[first:end][plan.window[first:end] >= 0].tolist())
        if not own:
            assert first_key == end_key or rule == "optimal"
            continue
        partners = np.flatnonzero(np.isin(plan.window, list(own)))
        assert (first_key <= partners).all()
        assert (partners < end_key).all()
        for other in set(of_tile[partners].tolist()):  # which is why gradients of keys read the same range
            assert plan.tiles[other, 2] < end
            assert first < plan.tiles[other, 3]
            assert number in of_tile[plan.tiles[other, 2] : plan.tiles[other, 3]]


@given(st.lists(st.integers(1, 16), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_as_many_tiles_as_are_kept_free_are_always_enough(counts):
    room, rest = [], sorted(counts)
    while rest:  # a packing in which no two tiles fit into one, as the best one is
        size = rest.pop()
        fits = [i for i, left in enumerate(room) if left >= size]
        if fits:
            room[fits[0]] -= size
        else:
            room.append(16 - size)
    assert len(room) <= most_tiles(tile=16, num_tokens=sum(counts), num_windows=len(counts))


def spec_for(window, side):
    stages = [
        StageSpec(grid=(grid, grid), window=(w, w), shifts=((0, 0), (w // 2, w // 2)), channels=8)
        for grid in (side // 4 >> stage for stage in range(4))
        for w in [min(window, grid)]
    ]
    return LayoutSpec(img_size=(side, side), patch=(4, 4), unit=(32, 32), stages=tuple(stages), build=window_stages)


def shapes(value):
    if isinstance(value, np.ndarray):
        return [value.shape]
    if isinstance(value, tuple):
        return [shape for item in value for shape in shapes(item)]
    return [shape for name in getattr(value, "__dataclass_fields__", {}) for shape in shapes(getattr(value, name))]


@pytest.mark.parametrize(("window", "side", "ratio"), [(7, 224, 0.75), (14, 224, 0.6), (12, 384, 0.75), (16, 512, 0.5)])
def test_all_masks_have_the_same_shapes(window, side, ratio):
    spec, found, others = spec_for(window, side), set(), set()
    for number in range(24):
        mask = unit_mask(spec.units, mask_ratio=ratio, seed=0, step=number, micro_batch=0)
        for rule, of_rule in (("tiles", found), ("optimal", others)):
            layout = build_layout(spec, mask.visible, rule=rule)
            plans = [plan for stage in layout.stages for plan in stage.plans]
            sizes = [(plan.num_groups, plan.group_size, plan.tile, plan.key_tiles) for plan in plans]
            of_rule.add((tuple(shapes(layout.stages)), tuple(sizes)))
    assert len(found) == 1
    assert len(others) > 12


def test_windows_that_fit_are_in_as_few_tiles_as_can_be():
    coords = np.argwhere(np.ones((12, 12), dtype=bool))
    plan = group_plan(coords, grid=(12, 12), window=(5, 5), shift=(0, 0), rule="tiles")  # 4 of 25, 4 of 10, 1 of 4
    used = (plan.tiles[:, 2] < plan.tiles[:, 3]).sum()
    assert plan.tile == 32
    assert used == 6
    assert plan.grouping.proved
