"""Generated scenes: pure, labelled rightly, and with every class."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data.images.decode import decode_rgb
from data.sources.scenes import CLASSES, PATTERNS, SHAPES, bounding_box, make_scene, run_lengths, scene_members


def decode_runs(runs):
    height, width = runs["size"]
    values = np.repeat(np.arange(len(runs["counts"])) % 2 == 1, runs["counts"])
    return values.reshape(width, height).T


def test_a_scene_is_a_function_of_seed_and_number():
    assert scene_members(1, number=3, size=64) == scene_members(1, number=3, size=64)
    assert scene_members(1, number=3, size=64) != scene_members(2, number=3, size=64)
    assert scene_members(1, number=3, size=64) != scene_members(1, number=4, size=64)


def test_there_are_more_than_ten_classes_and_neither_shape_nor_pattern_tells_them():
    assert len(CLASSES) == len(SHAPES) * len(PATTERNS) == len(set(CLASSES)) == 12
    labels = [make_scene(0, number=number, size=48).label for number in range(300)]
    assert np.bincount(labels, minlength=12).min() >= 10


@pytest.mark.parametrize("size", [32, 128, 200])
def test_masks_boxes_label_and_map_agree(size):
    for number in range(8):
        scene = make_scene(5, number=number, size=size)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        stacked = np.stack([item.mask for item in scene.objects])
        assert stacked.sum(axis=0).max() == 1
        areas = stacked.sum(axis=(1, 2))
        assert areas.min() > 0
        assert scene.label == scene.objects[int(areas.argmax())].category
        for item in scene.objects:
            x, y, width, height = bounding_box(item.mask)
            assert item.mask[y : y + height, x : x + width].sum() == item.mask.sum()
            assert item.mask[y].any()
            assert item.mask[:, x + width - 1].any()
            assert (scene.semantic_map[item.mask] == item.category + 1).all()
        assert (scene.semantic_map > 0).sum() == areas.sum()


def test_the_main_object_is_clearly_the_largest():
    for number in range(100):
        scene = make_scene(9, number=number, size=64)
        areas = sorted(int(item.mask.sum()) for item in scene.objects)
        assert len(areas) == 1 or areas[-1] > 1.2 * areas[-2]


def test_the_files_say_what_the_scene_holds():
    scene = make_scene(0, number=7, size=96)
    label, members = scene_members(0, number=7, size=96)
    assert list(members) == ["jpg", "json", "seg.png"]
    assert label == scene.label
    assert np.abs(decode_rgb(members["jpg"]).astype(float) - scene.image).mean() < 8
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(members["seg.png"]))), scene.semantic_map)
    found = json.loads(members["json"])
    assert (found["height"], found["width"], found["label"]) == (96, 96, label)
    for entry, item in zip(found["objects"], scene.objects, strict=True):
        np.testing.assert_array_equal(decode_runs(entry["segmentation"]), item.mask)
        assert entry["area"] == item.mask.sum()
        assert entry["bbox"] == bounding_box(item.mask)
        assert entry["category"] == item.category


def test_run_lengths_start_with_a_false_run():
    assert run_lengths(np.array([[True, False], [True, True]])) == [0, 2, 1, 1]
    assert run_lengths(np.array([[False, True], [False, False]])) == [2, 1, 1]
