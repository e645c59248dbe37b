"""Which labels are used: seeded, balanced, nested."""

import numpy as np
import pytest

from finetune.classification.label_subset import choose_labelled

LABELS = np.random.default_rng(0).integers(0, 7, 1000)


def test_the_choice_depends_on_the_seed_alone():
    one, again, other = (choose_labelled(LABELS, seed=seed, fraction=0.1) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_every_class_gives_its_share():
    chosen = choose_labelled(LABELS, seed=0, fraction=0.1)
    for label in range(7):
        assert (LABELS[chosen] == label).sum() == round(0.1 * (label == LABELS).sum())
    assert len(np.unique(chosen)) == len(chosen)


def test_a_tiny_share_leaves_one_of_each_class():
    assert sorted(LABELS[choose_labelled(LABELS, seed=0, fraction=1e-6)]) == list(range(7))


def test_n_per_class_are_n_per_class():
    chosen = choose_labelled(LABELS, seed=0, per_class=10)
    assert np.bincount(LABELS[chosen]).tolist() == [10] * 7


def test_a_smaller_choice_is_part_of_a_larger_one():
    small, large = (set(choose_labelled(LABELS, seed=0, per_class=n).tolist()) for n in (5, 20))
    assert small < large


def test_too_few_samples_of_a_class_are_refused():
    with pytest.raises(ValueError, match=r"labels-per-class asks for 10 samples of class 1, which has 3"):
        choose_labelled(np.array([0] * 20 + [1] * 3), seed=0, per_class=10)
