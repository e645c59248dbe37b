"""Labelled data is checked before anything starts."""

import pytest

from finetune.classification.data import open_labelled, write_list


def test_all_samples_and_the_manifests_classes_are_used(micro):
    labelled = open_labelled(micro())
    assert (labelled.train.num_samples, labelled.val.num_samples) == (48, 23)
    assert labelled.classes == ("ant", "bee", "cat", "dog")
    assert labelled.num_classes == 4


def test_a_subset_is_used_and_listed(micro, tmp_path):
    labelled = open_labelled(micro(task={"labels_per_class": 3}))
    assert labelled.train.num_samples == 12
    lines = write_list(tmp_path, labelled).read_text().splitlines()
    assert lines[0] == "sample\tclass\tshard"
    rows = [line.split("\t") for line in lines[1:]]
    assert [int(row[0]) for row in rows] == labelled.chosen.tolist()
    assert all(int(sample) % 4 == int(label) for sample, label, _ in rows)
    assert all(f"{int(sample) // 20:06d}" in shard for sample, _, shard in rows)


def test_missing_labels_are_refused(micro, write, tmp_path):
    unlabelled = write(tmp_path / "unlabelled", first=0, count=8, classes=None)
    config = micro(val_shards=str(unlabelled), task={"num_classes": 4})
    with pytest.raises(ValueError, match=r"val-shards .*unlabelled: 8 of 8 samples have no label.*subfolder per class"):
        open_labelled(config)


def test_another_number_of_classes_is_refused(micro):
    with pytest.raises(ValueError, match=r"task.num-classes is 7, but the manifest of .* names 4 classes"):
        open_labelled(micro(task={"num_classes": 7}))


def test_other_classes_in_val_are_refused(micro, write, tmp_path):
    other = write(tmp_path / "other", first=0, count=8, classes=("x", "y", "z"))
    with pytest.raises(
        ValueError, match=r"classes of data.shards \(4: ant, bee, cat, ...\) are not those of val-shards \(3"
    ):
        open_labelled(micro(val_shards=str(other)))


def test_a_missing_folder_is_refused(micro, tmp_path):
    with pytest.raises(ValueError, match=r"nothing is no folder"):
        open_labelled(micro(data={"shards": (str(tmp_path / "nothing"),)}))
