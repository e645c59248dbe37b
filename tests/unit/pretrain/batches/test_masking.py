"""Masks: exact counts, one per micro-batch, a function of their key alone."""

import numpy as np
import pytest

from pretrain.batches.masking import unit_mask
from pretrain.config import MimConfig, num_visible


@pytest.mark.parametrize(
    ("num_units", "ratio", "kept"),
    [(49, 0.75, 12), (49, 0.6, 19), (49, 0.5, 24), (100, 0.9, 10), (16, 0.6, 6), (49, 0.0, 49), (4, 0.9, 1)],
)
def test_kept_units_are_counted_in_exact_arithmetic(num_units, ratio, kept):
    assert num_visible(num_units, ratio) == kept


def test_mask_has_k_visible_units_in_ascending_order():
    mask = unit_mask((7, 7), mask_ratio=0.75, seed=1, step=2, micro_batch=3)
    assert mask.visible.shape == (7, 7)
    assert mask.visible.sum() == 12
    assert (np.diff(mask.visible_units) > 0).all()
    assert sorted([*mask.visible_units, *mask.predicted_units]) == list(range(49))


def test_mask_is_a_function_of_its_key():
    def mask(**key):
        return unit_mask((7, 7), mask_ratio=0.75, **{"seed": 0, "step": 0, "micro_batch": 0, **key}).visible

    assert (mask() == mask()).all()
    assert all((mask() != mask(**key)).any() for key in ({"seed": 1}, {"step": 1}, {"micro_batch": 1}))


def test_every_unit_is_visible_equally_often():
    counts = sum(unit_mask((4, 5), mask_ratio=0.75, seed=0, step=s, micro_batch=0).visible.ravel() for s in range(4000))
    assert np.abs(counts / 4000 - 0.25).max() < 0.03


def test_nothing_masked_predicts_every_unit():
    mask = unit_mask((2, 3), mask_ratio=0.0, seed=0, step=0, micro_batch=0)
    assert mask.visible.all()
    assert mask.predicted_units.tolist() == list(range(6))


@pytest.mark.parametrize("ratio", [1.0, 1.5, -0.1])
def test_a_ratio_that_leaves_nothing_is_refused(ratio):
    with pytest.raises(ValueError, match=r"mim\.mask-ratio must lie in \[0, 1\)"):
        MimConfig(mask_ratio=ratio)
