"""Image, boxes, masks and label map go through the same crop, scale and flip, and the key alone says which."""

import io
import json
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from data.images import annotations
from data.images.annotations import Objects, Outline, read_label_map, read_objects
from data.images.decode import BadImage
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


def mask_of(segmentation, *, size):
    return Outline.read(segmentation, size=size).filled()


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
    assert set(np.unique(mask_of(tree["objects"][0]["segmentation"], size=(96, 96)).view(np.uint8))) == {0, 1}


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


# --- what is read
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
    found = read_objects(member({"bbox": [1, 2, 3, 2], "category": 4, "iscrowd": 1}), size=(6, 8))
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
        {"bbox": [0, 0, 1, 1], "category": 0, "segmentation": [[0, 0, 1e300, 1, 2, 2]]},
        {"bbox": [0, 0, 1, 1], "category": 0, "segmentation": [[0, 0, float("nan"), 1, 2, 2]]},
        {"bbox": [0, 0, 1, 1], "category": 0, "segmentation": {"size": [6, 8], "counts": [40]}},
        {"bbox": [0, 0, 1, 1], "category": 0, "segmentation": {"size": [6, 8], "counts": [-1, 49]}},
        {"bbox": [0, 0, 1, 1], "category": 0, "segmentation": {"size": [9999, 9999], "counts": [1]}},
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


def test_an_object_that_is_left_out_is_named_once_with_its_sample(caplog):
    content = member({"bbox": [1, 2, 3, 2], "category": 4}, {"bbox": [0, 0, 0, 1], "category": 0})
    for sample in ("sample 7 (000007)", "sample 7 (000007)", "sample 8 (000008)"):
        read_objects(content, size=(6, 8), sample=sample)
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


def test_colours_change_but_channels_keep_their_order():
    red = tv_tensors.Image(torch.tensor([180, 60, 20], dtype=torch.uint8)[:, None, None].expand(3, 4, 4).contiguous())
    torch.manual_seed(0)
    found = [photometric(1.0)(red).float().mean((1, 2)) for _ in range(50)]
    assert all(image.argmax() == 0 for image in found)
    assert torch.stack(found).std(0).min() > 1
    assert torch.equal(photometric(0.0)(red), red)
