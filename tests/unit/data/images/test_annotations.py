"""Boxes, classes, masks and label maps as they are read from a sample's members."""

import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from data.images import annotations
from data.images.annotations import ObjectFaults, Objects, Outline, read_label_map, read_objects
from data.images.decode import BadImage


def mask_of(segmentation, *, size):
    return Outline.read(segmentation, size=size).filled()


# ---------------------------------------------------------------------------------------------------------


def member(*objects, height=6, width=8):
    return json.dumps({"height": height, "width": width, "objects": list(objects)}).encode()


def test_polygons_and_both_kinds_of_rle_are_read():
    square = np.zeros((6, 8), bool)
    square[1:4, 2:5] = True
    polygon = mask_of([[2.0, 1.0, 5.0, 1.0, 5.0, 4.0, 2.0, 4.0], [0, 5, 1, 5]], size=(6, 8))
    assert polygon[square].all()
    assert polygon.sum() <= 16  # the outline belongs to it
    counts = [13, 3, 3, 3, 3, 3, 20]
    np.testing.assert_array_equal(mask_of({"size": [6, 8], "counts": counts}, size=(6, 8)), square)
    np.testing.assert_array_equal(mask_of({"size": [6, 8], "counts": "=33000a0"}, size=(6, 8)), square)


def test_a_compressed_mask_whose_run_does_not_end_is_refused_at_once():
    start = time.process_time()
    with pytest.raises(ValueError, match="a run that does not end"):
        mask_of({"size": [6, 8], "counts": "o" * 1_000_000}, size=(6, 8))
    assert time.process_time() - start < 1


def test_images_without_objects_have_none():
    found = read_objects(member(), size=(6, 8))
    assert found.boxes.shape == (0, 4)
    assert found.masks.shape == (0, 6, 8)


def test_objects_without_masks_have_boxes_and_crowds():
    boxes = member({"bbox": [1, 2, 3, 2], "category": 4, "iscrowd": 1})
    assert read_objects(boxes, size=(6, 8)).masks.shape == (0, 6, 8)
    found = read_objects(boxes, size=(6, 8), masks=False)
    assert isinstance(found, Objects)
    assert (found.boxes.tolist(), found.categories.tolist()) == ([[1, 2, 4, 4]], [4])
    assert (found.crowd.tolist(), found.areas.tolist(), found.masks) == ([True], [6], None)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"[" * 100_000,
        member(height=5),
    ],
)
def test_annotations_of_another_form_are_bad(content):
    with pytest.raises(BadImage, match="annotations are not as expected"):
        read_objects(content, size=(6, 8))


@pytest.mark.parametrize(
    "wrong",
    [
        {"bbox": [0, 0, 1], "category": 0},
        {"bbox": [0, 0, 1, float("nan")], "category": 0},
        {"bbox": [0, 0, 1, 1], "category": "cat"},
        {"bbox": [9, 0, 1, 1], "category": 0},
        "a cat",
    ],
)
@pytest.mark.parametrize("masks", [True, False])
def test_an_object_of_another_form_is_left_out_and_the_others_stay(wrong, masks):
    good = {"bbox": [1, 2, 3, 2], "category": 4, "segmentation": [[1, 2, 4, 2, 4, 4]]}
    found = read_objects(member(wrong, good), size=(6, 8), masks=masks)
    assert (found.boxes.tolist(), found.categories.tolist()) == ([[1, 2, 4, 4]], [4])
    assert found.masks.shape == (1, 6, 8) if masks else found.masks is None


@pytest.mark.parametrize(
    "mask",
    [
        [[0, 0, 1e300, 1, 2, 2]],
        [[0, 0, float("nan"), 1, 2, 2]],
        {"size": [6, 8], "counts": [40]},
        {"size": [6, 8], "counts": [-1, 49]},
        {"size": [9999, 9999], "counts": [1]},
        [[0, 0, 1, 1]],
        [[]],
        [0, 0, 5, 0, 5, 5],
        [[1.0, 2.0, 5.0, 5.0] * 100_000],
    ],
)
def test_a_bad_mask_costs_its_object_only_where_masks_are_asked_for(mask):
    item, good = {"bbox": [0, 0, 1, 1], "category": 0}, {"bbox": [1, 2, 3, 2], "category": 4}
    content = member({**item, "segmentation": mask}, {**good, "segmentation": [[1, 2, 4, 2, 4, 4]]})
    assert read_objects(content, size=(6, 8)).categories.tolist() == [4]
    boxes = read_objects(content, size=(6, 8), masks=False)
    assert (boxes.categories.tolist(), boxes.masks) == ([0, 4], None)
    faults = ObjectFaults()
    faults.add(json.loads(content)["objects"], size=(6, 8), name="a.jpg")
    assert (faults.num_unusable, faults.num_without_mask) == (0, 1)
    assert str(faults).startswith("1 have no usable mask, only a box: training leaves them out; a.jpg, object 0: ")


def test_polygons_that_take_long_to_fill_are_refused():
    zigzag = [value for number in range(9000) for value in (number / 2, 4000 * (number % 2))]
    start = time.monotonic()
    with pytest.raises(ValueError, match="edges run through 35996000 rows, at most 10000000 are filled"):
        Outline.read([zigzag], size=(4000, 5000))
    with pytest.raises(ValueError, match="a mask with 100000 corners, at most 20000 are filled"):
        Outline.read([[1.0, 2.0] * 100_000], size=(40, 50))
    assert time.monotonic() - start < 1


def test_an_object_that_is_left_out_is_named_once_with_its_sample(caplog):
    content = member({"bbox": [1, 2, 3, 2], "category": 4}, {"bbox": [0, 0, 0, 1], "category": 0})
    for sample in ("sample 7 (000007)", "sample 7 (000007)", "sample 8 (000008)"):
        read_objects(content, size=(6, 8), masks=False, sample=sample)
    assert [record.getMessage() for record in caplog.records] == [
        "sample 7 (000007): object 1 is left out: its box [0.0, 0.0, 0.0, 1.0] is empty",
        "sample 8 (000008): object 1 is left out: its box [0.0, 0.0, 0.0, 1.0] is empty",
    ]


def test_a_mask_is_unpacked_once(monkeypatch):
    unpacked = []
    plain = annotations._unpacked
    monkeypatch.setattr(annotations, "_unpacked", lambda text: unpacked.append(text) or plain(text))
    rle = {"size": [6, 8], "counts": "=33000a0"}
    found = read_objects(member({"bbox": [2, 1, 3, 3], "category": 0, "segmentation": rle}), size=(6, 8))
    assert found.masks.sum() == 9
    assert len(unpacked) == 1


def test_label_maps_keep_their_values():
    for values in (np.arange(48, dtype=np.uint8), np.arange(48, dtype=np.uint16) * 1000):
        content = io.BytesIO()
        Image.fromarray(values.reshape(6, 8)).save(content, "PNG")
        np.testing.assert_array_equal(read_label_map(content.getvalue(), size=(6, 8)).ravel(), values)
    with pytest.raises(BadImage, match="6x8 pixels, the image has 8x6"):
        read_label_map(content.getvalue(), size=(8, 6))
    colours = io.BytesIO()
    Image.new("RGB", (8, 6)).save(colours, "PNG")
    with pytest.raises(BadImage, match="mode RGB, expected one value a pixel"):
        read_label_map(colours.getvalue(), size=(6, 8))
