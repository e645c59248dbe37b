"""What is annotated, read from shards; what cannot be used is named and left out, or refused before training."""

import json
from dataclasses import replace

import pytest

from data.shards.shard_set import open_shards
from finetune.detection.ground_truth import complete_ids, read_truth
from finetune.measure import measure
from finetune.train import train

SQUARE = [[4.0, 4.0, 24.0, 4.0, 24.0, 24.0, 4.0, 24.0]]
GOOD = {"category": 2, "category_id": 7, "id": 5, "bbox": [4.0, 4.0, 20.0, 20.0], "area": 400.0, "iscrowd": 0}
GOOD |= {"segmentation": SQUARE}
BAD = {
    "outside": ({"bbox": [64.0, 5.0, 10.0, 10.0]}, "lies outside the image of 64x64"),
    "empty box": ({"bbox": [5.0, 5.0, 0.0, 10.0]}, "is empty"),
    "infinite": ({"bbox": [5.0, 5.0, float("inf"), 10.0]}, "is not finite"),
    "three numbers": ({"bbox": [5.0, 5.0, 4.0]}, "has 3 numbers, expected left, top, width and height"),
    "RLE of another size": ({"segmentation": {"size": [32, 64], "counts": [32 * 64]}}, r"a mask of [32, 64]"),
    "RLE too short": ({"segmentation": {"size": [64, 64], "counts": [10, 10]}}, "runs over 20 pixels"),
    "empty RLE": ({"segmentation": {"size": [64, 64], "counts": [64 * 64]}}, "its mask is empty"),
    "two corners": ({"segmentation": [[1.0, 1.0, 3.0, 3.0]]}, "its mask is empty"),
    "half a corner": ({"segmentation": [[1.0, 1.0, 9.0, 9.0, 1.0, 9.0, 2.0]]}, "a polygon that is no list of x and y"),
    "no polygon": ({"segmentation": "a mask"}, "neither polygons nor runs"),
    "not a number": ({"segmentation": [[float("nan"), 4.0, 24.0, 4.0, 24.0, 24.0]]}, "not within 1000000 pixels"),
    "endless": ({"segmentation": [*SQUARE, [4.0, 4.0, float("inf"), 4.0, 24.0, 24.0]]}, "not within 1000000 pixels"),
    "far away": ({"segmentation": [[4.0, 4.0, 1e9, 4.0, 1e9, 24.0]]}, "not within 1000000 pixels"),
    "polygon outside": ({"segmentation": [[70.0, 70.0, 90.0, 70.0, 90.0, 90.0]]}, "its mask is empty"),
    "polygon beside a corner": ({"segmentation": [[-90.0, 40.0, 40.0, -90.0, -90.0, -90.0]]}, "its mask is empty"),
}


def annotated_with(objects_of):
    """Return a change of samples: their objects, by number; None keeps the scene's."""

    def change(number, members):
        tree = json.loads(members["json"])
        objects = objects_of(number)
        tree |= {"image_id": 1000 + number, "file_name": f"{number}.jpg"}
        return {**members, "json": json.dumps(tree if objects is None else {**tree, "objects": objects}).encode()}

    return change


def truth_of(write, folder, objects_of, *, masks=True):
    write(folder, first=0, count=4, change=annotated_with(objects_of))
    return read_truth(open_shards(folder), option="val-shards", masks=masks)


def test_a_coco_dataset_with_the_annotations_own_ids(write, tmp_path):
    truth = truth_of(write, tmp_path / "x", lambda number: [] if number == 1 else [GOOD, {**GOOD, "iscrowd": 1}])
    assert truth.image_ids == [1000, 1001, 1002, 1003]
    assert len(truth.dataset["annotations"]) == 6
    assert truth.category_ids[2] == 7
    assert len(set(truth.category_ids)) == len(truth.category_ids) == 12
    one = truth.dataset["annotations"][0]
    assert (one["bbox"], one["area"], one["category_id"], one["segmentation"]) == (GOOD["bbox"], 400.0, 7, SQUARE)
    assert truth.faults == []


@pytest.mark.parametrize("name", BAD)
def test_an_object_that_cannot_be_used_is_named_and_left_out(write, tmp_path, name):
    change, message = BAD[name]
    truth = truth_of(
        write, tmp_path / "x", lambda number: [GOOD, {**GOOD, "id": 77, **change}] if number == 2 else [GOOD]
    )
    assert len(truth.dataset["annotations"]) == 4
    (fault,) = truth.faults
    assert (fault.sample, fault.file_name, fault.object) == (2, "2.jpg", 77)
    assert message in fault.reason


@pytest.mark.parametrize("mask", [[[4, 4, 20, 20]], [[]], [4, 4, 24, 4, 24, 24], "a mask", None])
def test_a_bad_mask_costs_the_object_only_where_masks_are_learnt(write, tmp_path, mask):
    def objects(number):
        return [GOOD, {**GOOD, "id": 77, "segmentation": mask}]

    boxes = truth_of(write, tmp_path / "x", objects, masks=False)
    assert (len(boxes.dataset["annotations"]), boxes.faults, boxes.without_mask) == (8, [], 0)
    masks = read_truth(open_shards(tmp_path / "x"), option="val-shards", masks=True)
    assert (len(masks.dataset["annotations"]), len(masks.faults), masks.without_mask) == (4, 4, 4)
    assert {fault.object for fault in masks.faults} == {77}


def test_a_polygon_over_the_whole_image_is_a_mask_though_its_corners_lie_outside(write, tmp_path):
    around = [[-9.0, -9.0, 99.0, -9.0, 99.0, 99.0, -9.0, 99.0]]
    assert truth_of(write, tmp_path / "x", lambda _: [{**GOOD, "segmentation": around}]).faults == []


def test_annotations_that_are_no_json_are_named(write, tmp_path):
    def change(number, members):
        return {**members, "json": b"{"} if number == 3 else members

    write(tmp_path / "x", first=0, count=4, change=change)
    truth = read_truth(open_shards(tmp_path / "x"), option="val-shards")
    assert [fault.sample for fault in truth.faults] == [3]
    assert truth.faults[0].reason.startswith("its annotations are not as expected: expected JSON, but")
    assert len(truth.image_ids) == 4


def test_image_ids_that_repeat_are_replaced_by_free_ones(write, tmp_path):
    def change(number, members):
        return {**members, "json": json.dumps({**json.loads(members["json"]), "image_id": 1}).encode()}

    write(tmp_path / "x", first=0, count=4, change=change)
    ids = read_truth(open_shards(tmp_path / "x"), option="val-shards").image_ids
    assert len(set(ids)) == 4
    assert ids[0] == 1


@pytest.mark.parametrize(
    ("found", "like", "expected"),
    [
        ({}, (), [1, 2, 3, 4]),
        ({1: 2, 2: 4}, (), [5, 2, 4, 6]),
        ({1: 2, 3: 5}, (5, 2, 4, 6), [7, 2, 4, 5]),  # what is annotated comes before what was made up
        ({0: 7}, (7, 7, 7, 3), [7, 8, 9, 3]),
    ],
)
def test_each_class_has_an_id_of_its_own_whatever_is_annotated(found, like, expected):
    assert complete_ids(found, num_classes=4, like=like) == expected


def test_two_classes_with_one_category_id_are_refused(write, tmp_path):
    other = {**GOOD, "category": 3}
    with pytest.raises(ValueError, match=r"the classes \S+ \S+ and \S+ \S+ have the same category_id 7; give each"):
        truth_of(write, tmp_path / "x", lambda number: [GOOD, other])


def test_category_ids_of_training_hold_where_the_evaluated_images_have_no_such_class(write, micro, tmp_path):
    one = {**GOOD, "category": 3, "category_id": 9}
    write(tmp_path / "x", first=0, count=8, change=annotated_with(lambda _: [GOOD]))
    write(tmp_path / "y", first=0, count=4, change=annotated_with(lambda _: [one]))
    config = replace(
        refused(micro, tmp_path / "x", kind="retinanet", optimizer={"steps": 1, "warmup_steps": 0}),
        val_shards=str(tmp_path / "y"),
    )
    train(config)
    measure(config, str(tmp_path / "run"))
    written = [
        json.loads((tmp_path / "run" / name).read_text()) for name in ("predictions-raw.json", "eval_only-raw.json")
    ]
    assert written[0] == written[1]
    assert {7, 9} <= {line["category_id"] for line in written[0]}


def refused(micro, shards, **sections):
    config = micro(**sections)
    return replace(config, data=replace(config.data, shards=(str(shards),)))


def test_a_class_beyond_the_last_is_refused_before_training(write, micro, tmp_path):
    write(
        tmp_path / "x",
        first=0,
        count=8,
        change=annotated_with(lambda number: [{**GOOD, "category": 12 * (number == 5)}]),
    )
    with pytest.raises(ValueError, match=r"5.jpg \(sample 5\) has an object of class 12, there are 12 classes, from 0"):
        train(refused(micro, tmp_path / "x"))
    assert not (tmp_path / "run").exists()


def test_missing_masks_are_refused_where_masks_are_learnt_and_fine_where_not(write, micro, tmp_path):
    write(tmp_path / "x", first=0, count=8, change=annotated_with(lambda _: [{**GOOD, "segmentation": []}]))
    with pytest.raises(ValueError, match=r"none of 8 objects has a usable mask, .*set --detector.masks False"):
        train(refused(micro, tmp_path / "x"))
    once = {"steps": 1, "warmup_steps": 0}
    config = refused(micro, tmp_path / "x", detector={"masks": False}, optimizer=once, run={"folder": tmp_path / "b"})
    assert "mask" not in train(config)[0]


def test_shards_without_annotations_or_objects_are_refused(write, micro, tmp_path):
    def bare(_, members):
        return {"jpg": members["jpg"]}

    write(tmp_path / "bare", first=0, count=8, change=bare)
    with pytest.raises(ValueError, match=r"sample 0 has no .json with objects; write the shards"):
        train(refused(micro, tmp_path / "bare"))
    write(tmp_path / "none", first=0, count=8, change=annotated_with(lambda _: []))
    with pytest.raises(ValueError, match="there is no usable object in any image"):
        train(refused(micro, tmp_path / "none", run={"folder": tmp_path / "b"}))
    write(tmp_path / "other", first=0, count=8, classes=("a", "b"), change=annotated_with(lambda _: []))
    with pytest.raises(ValueError, match=r"the 2 classes of data.shards are not the 12 of val-shards"):
        train(refused(micro, tmp_path / "other"))


def test_one_bad_object_costs_its_image_neither_its_other_objects_nor_its_place_in_training(write, micro, tmp_path):
    wrong = {**GOOD, "bbox": [70.0, 4.0, 20.0, 20.0]}
    write(tmp_path / "x", first=0, count=8, change=annotated_with(lambda number: [wrong, GOOD][number == 3 :]))
    config = refused(micro, tmp_path / "x", kind="retinanet", optimizer={"steps": 2, "warmup_steps": 0})
    train(replace(config, data=replace(config.data, micro_batch_size=1)))
    faults = [json.loads(line) for line in (tmp_path / "run" / "annotation_faults.jsonl").read_text().splitlines()]
    assert [fault["sample"] for fault in faults] == [0, 1, 2, 4, 5, 6, 7]
    assert not (tmp_path / "run" / "bad_samples.jsonl").exists()
