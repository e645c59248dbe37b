"""Labelled data is checked before anything starts; which labels are used is seeded, balanced and nested."""

import numpy as np
import pytest

from finetune.classification.data import choose_labelled, open_data, write_subset

LABELS = np.random.default_rng(0).integers(0, 7, 1000)


def test_all_samples_and_the_manifests_classes_are_used(micro):
    data = open_data(micro())
    assert (data.train.num_samples, data.val.num_samples) == (48, 23)
    assert data.classes == ("ant", "bee", "cat", "dog")
    assert data.num_classes == 4


def test_a_subset_is_used_and_listed(micro, tmp_path):
    data = open_data(micro(task={"labels_per_class": 3}))
    assert data.train.num_samples == 12
    write_subset(tmp_path, data)
    lines = (tmp_path / "labelled_samples.tsv").read_text().splitlines()
    assert lines[0] == "sample\tclass\tshard"
    rows = [line.split("\t") for line in lines[1:]]
    assert [int(row[0]) for row in rows] == data.subset.tolist()
    assert all(int(sample) % 4 == int(label) for sample, label, _ in rows)
    assert all(f"{int(sample) // 20:06d}" in shard for sample, _, shard in rows)


def test_missing_labels_are_refused(micro, write, tmp_path):
    unlabelled = write(tmp_path / "unlabelled", first=0, count=8, classes=None)
    config = micro(val_shards=str(unlabelled), task={"num_classes": 4})
    with pytest.raises(ValueError, match=r"val-shards .*unlabelled: 8 of 8 samples have no label.*subfolder per class"):
        open_data(config)


def test_another_number_of_classes_is_refused(micro):
    with pytest.raises(ValueError, match=r"task.num-classes is 7, but the manifest of .* names 4 classes"):
        open_data(micro(task={"num_classes": 7}))


def test_other_classes_in_val_are_refused(micro, write, tmp_path):
    other = write(tmp_path / "other", first=0, count=8, classes=("x", "y", "z"))
    with pytest.raises(
        ValueError, match=r"classes of data.shards \(4: ant, bee, cat, ...\) are not those of val-shards \(3"
    ):
        open_data(micro(val_shards=str(other)))


def test_a_missing_folder_is_refused(micro, tmp_path):
    with pytest.raises(ValueError, match=r"nothing is no folder"):
        open_data(micro(data={"shards": (str(tmp_path / "nothing"),)}))


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
