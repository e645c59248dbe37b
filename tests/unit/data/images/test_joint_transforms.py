"""Image, boxes, masks and label map go through the same crop, scale and flip, and the key alone says which."""

import io
import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from data.images.annotations import Outline
from data.images.joint_transforms import (
    VOID,
    JointAugmentation,
    joint_transform,
    photometric,
    read_annotated,
    transformed,
    without_degenerate,
)
from data.loading.loader import training_batches
from data.loading.order import Order
from data.shards.shard_set import Sample, open_shards
from data.sources.scenes import scene_members
from data.writing.writer import NewSample, ShardLimits, write_shards

STILL = JointAugmentation(size=(96, 96), scale=(1.0, 1.0), flip=0.0)


def scene(number=3, *, size=96):
    label, members = scene_members(1, number=number, size=size)
    image = members.pop("jpg")
    return Sample(id=number, key=str(number), image=image, label=label, members=members)


def augmented(sample, augment, *, key=(0,)):
    changed = transformed(read_annotated(sample), joint_transform(augment), seed=7, key=key)
    return without_degenerate(changed, min_side_px=augment.min_side_px)


def boxes_of(masks):
    """Draw the least box around each mask."""
    return torch.tensor([[c.min(), r.min(), c.max() + 1, r.max() + 1] for r, c in (torch.where(m) for m in masks)])


def test_nothing_to_change_leaves_everything_as_annotated():
    sample = scene()
    found, tree = augmented(sample, STILL), json.loads(sample.members["json"])
    assert found["image"].shape == (3, 96, 96)
    assert found["labels"].tolist() == [item["category"] for item in tree["objects"]]
    corners = [[x, y, x + w, y + h] for x, y, w, h in (item["bbox"] for item in tree["objects"])]
    assert found["boxes"].tolist() == corners
    assert found["masks"].flatten(1).sum(1).tolist() == [item["area"] for item in tree["objects"]]
    np.testing.assert_array_equal(found["label_map"], np.asarray(Image.open(io.BytesIO(sample.members["seg.png"]))))


def test_objects_drawn_as_polygons_are_kept_with_their_masks():
    sample = scene()
    tree = json.loads(sample.members["json"])
    for item in tree["objects"]:
        x, y, w, h = item["bbox"]
        item["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    sample.members["json"] = json.dumps(tree).encode()
    found = augmented(sample, STILL)
    assert len(found["boxes"]) == len(tree["objects"]) > 0
    assert found["masks"].flatten(1).sum(1).min() > 0
    assert set(np.unique(Outline.read(tree["objects"][0]["segmentation"], size=(96, 96)).filled().view(np.uint8))) == {
        0,
        1,
    }


def test_a_flip_flips_everything():
    sample = scene()
    still = augmented(sample, STILL)
    flipped = augmented(sample, JointAugmentation(size=(96, 96), scale=(1.0, 1.0), flip=1.0))
    for name in ("image", "masks", "label_map"):
        assert torch.equal(flipped[name], still[name].flip(-1))
        assert not torch.equal(flipped[name], still[name])
    left, top, right, bottom = still["boxes"].unbind(1)
    assert torch.equal(flipped["boxes"], torch.stack([96 - right, top, 96 - left, bottom], dim=1))
    assert torch.equal(flipped["labels"], still["labels"])


@pytest.mark.parametrize("key", range(25))
def test_boxes_masks_and_label_map_stay_together(key):
    found = augmented(scene(key % 5), JointAugmentation(size=(64, 80), scale=(0.4, 3.0), photometric=0.5), key=(key,))
    assert found["image"].shape == (3, 64, 80)
    assert found["image"].dtype == torch.uint8
    assert found["masks"].shape[1:] == found["label_map"].shape == (64, 80)
    assert len({len(found[name]) for name in ("boxes", "labels", "crowd", "areas", "masks")}) == 1
    boxes = found["boxes"]
    assert ((boxes[:, 2:] - boxes[:, :2]) >= 1).all()
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([80, 64, 80, 64])).all()
    inner = boxes_of(found["masks"]) if len(boxes) else boxes
    assert (inner[:, :2] >= boxes[:, :2] - 1).all()  # masks are of whole pixels, boxes are not
    assert (inner[:, 2:] <= boxes[:, 2:] + 1).all()
    for mask, label in zip(found["masks"], found["labels"], strict=True):
        assert (found["label_map"][mask] == label + 1).float().mean() > 0.95


def test_padding_is_void_in_label_maps_and_no_part_of_masks():
    found = augmented(scene(), JointAugmentation(size=(96, 96), scale=(0.5, 0.5), flip=0.0))
    void = found["label_map"] == VOID
    assert void.float().mean() == pytest.approx(0.75)
    assert not found["masks"][:, void].any()
    assert (found["image"][:, void] == 127).all()


def test_objects_that_a_crop_leaves_nothing_of_are_dropped():
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0], [8.0, 3.0, 8.4, 9.0], [2.0, 2.0, 9.0, 9.0]])
    masks = torch.zeros(3, 10, 10, dtype=torch.uint8)
    masks[0, :5, :5] = 1
    masks[1, 3:9, 8] = 1
    masks[2, 2:9, 2:9] = VOID  # padding alone
    found = without_degenerate({"boxes": boxes, "masks": masks, "labels": torch.arange(3)}, min_side_px=1)
    assert found["labels"].tolist() == [0]
    assert found["boxes"].shape == (1, 4)
    assert found["masks"].shape == (1, 10, 10)


def test_the_same_key_gives_the_same_result_and_leaves_torchs_generator_alone():
    augment = JointAugmentation(size=(64, 64), photometric=0.5)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = augmented(scene(), augment, key=(5, 1, 3))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(10)
    second, other = augmented(scene(), augment, key=(5, 1, 3)), augmented(scene(), augment, key=(5, 1, 4))
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["boxes"], second["boxes"])
    assert not torch.equal(first["image"], other["image"])


@dataclass(frozen=True)
class Builder:
    """Targets of augmented scenes, as the loader's workers make them."""

    augment: JointAugmentation
    extensions: ClassVar = ("json", "seg.png")

    def __call__(self, samples, *, step, micro_batch):
        return {
            "targets": [augmented(sample, self.augment, key=(step, micro_batch, sample.id)) for sample in samples],
            "bad": [],
        }


@pytest.fixture
def scene_shards(tmp_path):
    def samples():
        for number in range(12):
            label, members = scene_members(1, number=number, size=64)
            yield NewSample(source=f"{number}.jpg", members=members, label=label)

    write_shards(samples(), out=tmp_path, classes=None, limits=ShardLimits(samples=5))
    return open_shards(tmp_path)


def test_the_loader_gives_the_same_targets_whatever_the_number_of_workers(scene_shards):
    builder = Builder(JointAugmentation(size=(48, 56), photometric=0.5))

    def load(workers):
        order = Order(scene_shards.sizes, batch_size=4, micro_batch_size=2, seed=0)
        return list(
            training_batches(
                scene_shards, order, builder, micro_batches=range(2), first_step=0, last_step=3, workers=workers
            )
        )

    alone, shared = load(0), load(2)
    assert len(alone) == len(shared) == 6
    names = {"image", "label_map", "boxes", "labels", "crowd", "areas", "masks"}
    for one, other in zip(alone, shared, strict=True):
        for target, same in zip(one["targets"], other["targets"], strict=True):
            assert target.keys() == names
            assert (target["image"].shape, target["label_map"].shape) == ((3, 48, 56), (48, 56))
            assert all(torch.equal(target[name], same[name]) for name in names)


def test_colours_change_but_channels_keep_their_order():
    red = tv_tensors.Image(torch.tensor([180, 60, 20], dtype=torch.uint8)[:, None, None].expand(3, 4, 4).contiguous())
    torch.manual_seed(0)
    found = [photometric(1.0)(red).float().mean((1, 2)) for _ in range(50)]
    assert all(image.argmax() == 0 for image in found)
    assert torch.stack(found).std(0).min() > 1
    assert torch.equal(photometric(0.0)(red), red)
