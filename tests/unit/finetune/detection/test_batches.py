"""Micro-batches of annotated images: functions of their key, boxes and masks where the objects are, in every mode."""

import io
import json

import pytest
import torch
from PIL import Image

from data.shards.shard_set import Sample
from data.sources.scenes import CLASSES, scene_members
from finetune.detection.batches import DetectionBuilder, EvaluationBuilder
from finetune.detection.config import DetectConfig, DetectorConfig, ResizeConfig, largest_size, norm_is_frozen

MODES = {
    "short_side": ResizeConfig(short_sides=(48, 80), long_side=100, test_short_side=64),
    "letterbox": ResizeConfig(mode="letterbox", canvas=(96, 128)),
    "jitter": ResizeConfig(mode="jitter", canvas=(96, 128), jitter=(0.5, 1.5), test_short_side=64, long_side=100),
}


def samples(count=3, **changed):
    found = []
    for number in range(count):
        label, members = scene_members(1, number=number, size=72)
        tree = {**json.loads(members["json"]), **changed}
        members = {"json": json.dumps(tree).encode(), "jpg": members["jpg"]}
        found.append(Sample(id=number, key=str(number), image=members.pop("jpg"), label=label, members=members))
    return found


def builder(mode, **changed):
    options = {"seed": 3, "resize": MODES[mode], "num_classes": len(CLASSES), "masks": True, **changed}
    return DetectionBuilder(**options)


@pytest.mark.parametrize("mode", MODES)
def test_boxes_lie_around_their_masks_on_the_canvas(mode):
    batch = builder(mode)(samples(), step=0, micro_batch=0)
    height, width = batch["images"].shape[2:]
    assert batch["images"].dtype == torch.uint8
    assert (batch["sizes"] <= torch.tensor([height, width])).all()
    count = 0
    for boxes, masks, size in zip(batch["targets"].boxes, batch["targets"].masks, batch["sizes"].tolist(), strict=True):
        assert list(masks.shape[1:]) == size
        for (left, top, right, bottom), mask in zip(boxes.tolist(), masks, strict=True):
            rows, columns = torch.where(mask)
            assert rows.min() >= top - 2
            assert rows.max() + 1 <= bottom + 2
            assert columns.min() >= left - 2
            assert columns.max() + 1 <= right + 2
            count += 1
    assert count > 0


@pytest.mark.parametrize("mode", MODES)
def test_the_key_alone_says_what_is_drawn(mode):
    one, two, other = (builder(mode)(samples(), step=step, micro_batch=1) for step in (4, 4, 5))
    assert torch.equal(one["images"], two["images"])
    assert all(torch.equal(a, b) for a, b in zip(one["targets"].boxes, two["targets"].boxes, strict=True))
    assert one["images"].shape != other["images"].shape or not torch.equal(one["images"], other["images"])


def test_crowds_are_not_learnt_and_images_without_objects_are_kept():
    objects = json.loads(samples(1)[0].members["json"])["objects"]
    crowd = [{**item, "iscrowd": 1} for item in objects]
    for changed in ({"objects": crowd}, {"objects": []}):
        batch = builder("short_side")(samples(2, **changed), step=0, micro_batch=0)
        assert [len(boxes) for boxes in batch["targets"].boxes] == [0, 0]
        assert [mask.shape[0] for mask in batch["targets"].masks] == [0, 0]
        assert batch["bad"] == []


def test_a_class_beyond_the_last_replaces_the_sample_and_a_missing_mask_costs_its_object():
    batch = builder("short_side", num_classes=1)
    good = samples(2, objects=[])
    objects = json.loads(samples(1)[0].members["json"])["objects"]
    wrong = samples(1, objects=[{**objects[0], "category": 1}])
    found = batch([*good, *wrong], step=0, micro_batch=0)
    assert [(number, reason) for number, _, reason in found["bad"]] == [
        (0, "an object of class 1, there are 1 classes, from 0")
    ]
    without = samples(1, objects=[{**objects[0], "category": 0, "segmentation": []}])
    found = batch([*good, *without], step=0, micro_batch=0)
    assert found["bad"] == []
    assert [len(boxes) for boxes in found["targets"].boxes] == [0, 0, 0]
    boxes_only = builder("short_side", num_classes=1, masks=False)([*good, *without], step=0, micro_batch=0)
    assert boxes_only["bad"] == []
    assert boxes_only["targets"].masks is None


def test_an_unreadable_image_keeps_its_place_in_evaluations():
    broken = samples(2)
    broken[0] = Sample(id=0, key="0", image=b"\xff\xd8\xff no image", label=None)
    batch = EvaluationBuilder(resize=MODES["short_side"])(broken, step=0, micro_batch=0)
    assert batch["ids"].tolist() == [0, 1]
    assert [number for number, _, _ in batch["bad"]] == [0]
    assert batch["true_sizes"][1].tolist() == [72, 72]
    assert batch["content"][1].tolist() == [64, 64]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (3, 9000)])
def test_a_very_elongated_image_keeps_a_pixel_in_each_direction(mode, size):
    content = io.BytesIO()
    Image.new("RGB", size[::-1]).save(content, "JPEG")
    tree = {"height": size[0], "width": size[1], "objects": []}
    members = {"json": json.dumps(tree).encode()}
    sample = Sample(id=0, key="0", image=content.getvalue(), label=None, members=members)
    trained = builder(mode)([sample], step=0, micro_batch=0)
    measured = EvaluationBuilder(resize=MODES[mode])([sample], step=0, micro_batch=0)
    assert trained["bad"] == measured["bad"] == []
    assert trained["sizes"].min() >= 1
    assert measured["content"].min() >= 1


def test_targets_move_as_one_and_come_out_as_dicts():
    targets = builder("short_side")(samples(), step=0, micro_batch=0)["targets"].to(torch.device("meta"))
    dicts = targets.as_dicts()
    assert [set(one) for one in dicts] == [{"boxes", "labels", "masks"}] * 3
    assert all(value.device.type == "meta" for one in dicts for value in one.values())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DetectorConfig(roi_samples=0), "counts must be at least 1"),
        (lambda: DetectorConfig(anchor_scale=0.0), "anchor-scale must be positive"),
        (lambda: DetectorConfig(score_threshold=1.0), "score-threshold must lie in"),
        (lambda: ResizeConfig(short_sides=()), "resize.short-sides"),
        (lambda: ResizeConfig(jitter=(2.0, 1.0)), "two rising positive factors"),
        (lambda: ResizeConfig(flip=1.5), "are probabilities"),
    ],
)
def test_nonsense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_yolo_needs_a_letterbox(micro):
    with pytest.raises(ValueError, match=r"set resize.mode letterbox"):
        micro("yolo", resize={"mode": "short_side"})


def test_batch_norm_is_frozen_below_eight_images_unless_asked_for(micro):
    config: DetectConfig = micro()
    assert norm_is_frozen(config)
    full = {"batch_size": 16, "micro_batch_size": 8}
    assert norm_is_frozen(micro(data=full)), "images of several sizes are normalised apart"
    assert not norm_is_frozen(micro(data=full, resize={"mode": "letterbox"}))
    assert not norm_is_frozen(micro(detector={"frozen_norm": False}))
    assert largest_size(config.resize) == (128, 128)
