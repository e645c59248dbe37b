"""What label maps mean: ADE20K's zero, Cityscapes' ids, void, and what is no class."""

import numpy as np
import pytest

from data.shards.shard_set import open_shards
from finetune.segmentation.config import LabelConfig
from finetune.segmentation.labels import IGNORE_INDEX, ClassError, check_label_maps, class_map, class_table


def classes(pixels, *, num_classes=3, dtype=np.uint8, **options):
    return class_map(np.array(pixels, dtype), class_table(LabelConfig(**options), num_classes=num_classes)).tolist()


def test_values_are_classes_from_zero_and_the_void_values_are_void():
    assert classes([0, 1, 2, 255, 11], void=(255, 11)) == [0, 1, 2, IGNORE_INDEX, IGNORE_INDEX]


def test_ade20k_counts_from_one_and_zero_is_nothing():
    assert classes([0, 1, 3, 255], values="zero_is_void") == [IGNORE_INDEX, 0, 2, IGNORE_INDEX]


def test_cityscapes_label_ids_become_its_19_classes_and_all_others_void():
    assert classes([7, 8, 33, 0, 9, 255], values="cityscapes", num_classes=19) == [
        0,
        1,
        18,
        IGNORE_INDEX,
        IGNORE_INDEX,
        IGNORE_INDEX,
    ]


def test_255_is_a_class_where_it_is_not_void():
    assert classes([255], num_classes=256, void=()) == [255]


@pytest.mark.parametrize(("value", "dtype"), [(7, np.uint8), (70_000, np.int32), (-3, np.int32)])
def test_a_value_that_is_no_class_is_named_with_the_classes(value, dtype):
    with pytest.raises(ClassError, match=rf"the value {value}, which is neither a class \(0 to 2\) nor void \(255\)"):
        classes([0, value], dtype=dtype)


def test_binary_maps_of_0_and_255_are_warned_of(write, make_scene, tmp_path, caplog):
    change = {
        n: make_scene(n, value_of=lambda labels: np.where(labels > 0, np.uint8(255), np.uint8(0))) for n in range(5)
    }
    shards = open_shards(write(tmp_path / "s", first=0, count=5, change=change))
    check_label_maps(shards, labels=LabelConfig(), num_classes=2, option="data.shards")
    assert "class 1 has no pixel in all label maps: they hold the values 0, 255; see labels.values" in caplog.text
    caplog.clear()
    change = {
        n: make_scene(n, value_of=lambda labels: np.where(labels > 5, np.uint8(0), np.uint8(255))) for n in range(5)
    }
    shards = open_shards(write(tmp_path / "v", first=0, count=5, change=change))
    check_label_maps(shards, labels=LabelConfig(), num_classes=2, option="data.shards")
    assert "% of the pixels of all label maps are void, nothing is learnt from them" in caplog.text


def test_more_classes_than_the_table_counts_are_refused():
    with pytest.raises(ValueError, match="1 to 32767 classes are learnt, got 40000"):
        class_table(LabelConfig(), num_classes=40_000)


def test_training_is_refused_where_label_maps_hold_more_classes(write, make_scene, tmp_path):
    change = {3: make_scene(3, value_of=lambda labels: np.where(labels == 2, 77, labels))}
    shards = open_shards(write(tmp_path / "s", first=0, count=5, change=change))
    with pytest.raises(
        ValueError, match=r"data.shards .*, sample .*: its label map has the value 77, which is neither"
    ):
        check_label_maps(shards, labels=LabelConfig(void=(9,)), num_classes=3, option="data.shards")


def test_training_is_refused_without_label_maps(write, tmp_path):
    from data.writing.writer import NewSample, ShardLimits, write_shards

    image = (tmp_path / "p.png",)
    from PIL import Image

    Image.new("RGB", (32, 32)).save(image[0])
    sample = NewSample(source="p", members={"png": image[0].read_bytes()})
    write_shards([sample], out=tmp_path / "s", classes=None, limits=ShardLimits(samples=5))
    with pytest.raises(ValueError, match=r"it has no label map \(\.seg\.png\)"):
        check_label_maps(open_shards(tmp_path / "s"), labels=LabelConfig(), num_classes=3, option="val-shards")
