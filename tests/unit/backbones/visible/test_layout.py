"""The visible layout: tokens in nested order, windows of the true grid, plans that lose and invent nothing."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.visible.layout import LayoutSpec, build_layout
from backbones.visible.window_layout import CHILDREN, StageSpec, nested_offsets, window_ids, window_stages


def spec_for(*, units, window=3, shift=1, stages=3):
    sides = [2 ** (stages - 1 - stage) for stage in range(stages)]
    return LayoutSpec(
        img_size=(units[0] * 4 * sides[0], units[1] * 4 * sides[0]),
        patch=(4, 4),
        unit=(4 * sides[0], 4 * sides[0]),
        build=window_stages,
        stages=tuple(
            StageSpec(
                grid=(units[0] * side, units[1] * side),
                window=(window, window),
                shifts=((0, 0), (shift, shift)),
                channels=8,
            )
            for stage, side in enumerate(sides)
        ),
    )


def random_mask(units, seed):
    visible = np.random.default_rng(seed).random(units) < 0.4
    visible.flat[seed % visible.size] = True
    return visible


masks = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda units: st.tuples(st.just(units), st.integers(0, 10**6))
)


def test_nested_order_puts_the_children_of_a_cell_side_by_side():
    assert nested_offsets(2).tolist() == [list(child) for child in CHILDREN]
    offsets = nested_offsets(8)
    assert sorted(map(tuple, offsets)) == [(row, col) for row in range(8) for col in range(8)]
    cells = offsets.reshape(-1, 4, 2)
    assert (cells - cells[:, :1] == np.array(CHILDREN)).all()
    assert (cells[:, 0] == 2 * nested_offsets(4)).all()


@given(masks)
@settings(max_examples=30, deadline=None)
def test_tokens_of_a_stage_are_those_of_the_visible_units(case):
    units, seed = case
    spec, visible = spec_for(units=units), random_mask(units, seed)
    layout = build_layout(spec, visible)
    for stage, stage_spec in zip(layout.stages, spec.stages, strict=True):
        side = stage_spec.grid[0] // units[0]
        seen = visible.repeat(side, 0).repeat(side, 1)
        assert sorted(map(tuple, stage.coords)) == sorted(map(tuple, np.argwhere(seen)))
    for finer, coarser in zip(layout.stages, layout.stages[1:], strict=False):
        assert (finer.coords.reshape(-1, 4, 2) // 2 == coarser.coords[:, None]).all()
    assert (layout.stages[-1].coords == np.argwhere(visible)).all()
    assert layout.units.tolist() == np.flatnonzero(visible).tolist()


@given(masks, st.sampled_from(["optimal", "largest_window"]), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_plans_let_a_token_see_its_window_and_a_padding_slot_itself(case, rule, window):
    units, seed = case
    shift = window // 2
    spec = spec_for(units=units, window=window, shift=shift)
    layout = build_layout(spec, random_mask(units, seed), rule=rule)
    for stage in layout.stages:
        for plan in stage.plans:
            num_tokens, (num_groups, size) = len(stage.coords), plan.bias_index.shape[:2]
            assert (plan.num_groups, plan.group_size, len(plan.token)) == (num_groups, size, num_groups * size)
            assert (plan.token[plan.slot] == np.arange(num_tokens)).all()
            padding = np.setdiff1d(np.arange(num_groups * size), plan.slot)
            ids = [
                tuple((c - s) // window for c, s in zip(at, plan.shift, strict=True)) for at in stage.coords.tolist()
            ]
            for group in range(num_groups):
                for i in range(size):
                    for j in range(size):
                        first, second = group * size + i, group * size + j
                        index = plan.bias_index[group, i, j]
                        # padding sees itself alone: a softmax over nothing would not be finite
                        if first in padding or second in padding:
                            assert (index != plan.masked) == (i == j)
                            continue
                        a, b = plan.token[first], plan.token[second]
                        delta = stage.coords[a].astype(int) - stage.coords[b] + window - 1
                        seen = delta[0] * (2 * window - 1) + delta[1]
                        assert index == (seen if ids[a] == ids[b] else plan.masked)


def test_windows_start_at_the_corner_and_a_shift_cuts_the_first_ones_short():
    rows = np.stack([np.arange(8), np.zeros(8, dtype=int)], axis=1)
    assert window_ids(rows, window=(3, 3), shift=(0, 0))[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert window_ids(rows, window=(3, 3), shift=(1, 1))[:, 0].tolist() == [0, 1, 1, 1, 2, 2, 2, 3]


def test_layout_travels_compact_and_arrives_as_int64_views_of_one_tensor():
    spec = spec_for(units=(3, 4))
    layout = build_layout(spec, random_mask((3, 4), 1))
    assert layout.stages[0].plans[0].bias_index.dtype == np.int16
    moved = pickle.loads(pickle.dumps(layout)).to("cpu")
    plan, original = moved.stages[0].plans[1], layout.stages[0].plans[1]
    assert plan.bias_index.dtype == torch.int64
    assert plan.bias_index.tolist() == original.bias_index.tolist()
    assert plan.shift == original.shift
    assert plan.grouping == original.grouping
    storages = {moved.units.untyped_storage().data_ptr(), plan.slot.untyped_storage().data_ptr()}
    assert storages == {moved.stages[2].coords.untyped_storage().data_ptr()}


def test_layout_in_one_piece_of_memory_is_moved_out_of_it_and_not_copied_before():
    """A copy would not be page-locked, and the move to a GPU would hold up the host."""
    moved = build_layout(spec_for(units=(3, 4)), random_mask((3, 4), 1)).to("cpu")
    again = moved.to("cpu")
    assert again.units.data_ptr() == moved.units.data_ptr()
    parts = dataclasses.replace(moved, stages=moved.stages[::-1]).to("cpu")
    assert parts.units.data_ptr() != moved.units.data_ptr()
    assert torch.equal(parts.stages[0].coords, moved.stages[-1].coords)


def test_layout_of_more_tokens_than_int16_counts_is_right():
    spec = spec_for(units=(25, 25), window=8, shift=0, stages=4)
    layout = build_layout(spec, np.ones((25, 25), dtype=bool))
    plan = layout.stages[0].plans[0]
    assert plan.token.dtype == np.int32
    assert (plan.token[plan.slot] == np.arange(25 * 25 * 64)).all()


def test_masks_that_do_not_fit_are_refused():
    spec = spec_for(units=(3, 4))
    with pytest.raises(ValueError, match=r"3x4 for images of 48x64 px, got bool \(4, 3\)"):
        build_layout(spec, np.ones((4, 3), dtype=bool))
    with pytest.raises(ValueError, match="got int64"):
        build_layout(spec, np.ones((3, 4), dtype=np.int64))
    with pytest.raises(ValueError, match="no mask unit is visible"):
        build_layout(spec, np.zeros((3, 4), dtype=bool))
