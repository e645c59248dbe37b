"""Micro-batches are functions of their key; what cannot be used is replaced in training and not measured."""

import numpy as np
import pytest
import torch

from data.shards.shard_set import open_shards
from finetune.segmentation.batches import SegmentBuilder, WholeImageBuilder
from finetune.segmentation.config import LabelConfig, SegmentAugmentConfig
from finetune.segmentation.labels import IGNORE_INDEX

LABELS = LabelConfig(void=(9,))


def samples(folder, count):
    shards = open_shards(folder)
    return [shards.read_many([(0, n, 0)], extensions=("seg.png",))[0] for n in range(count)]


def build(some, **options):
    builder = SegmentBuilder(
        seed=0,
        augment=SegmentAugmentConfig(crop=(32, 32), short_side=40),
        labels=LABELS,
        num_classes=3,
        mean=(0.5, 0.5, 0.5),
        max_pixels=10**6,
    )
    return builder(some, step=3, micro_batch=1, **options)


def test_a_micro_batch_is_a_function_of_its_key(train_shards):
    some = samples(train_shards, 4)
    one, two = build(some), build(some)
    for name in ("images", "label_maps", "shown", "ids"):
        assert torch.equal(one[name], two[name])
    assert one["images"].shape == (4, 3, 32, 32)
    assert one["label_maps"].dtype == torch.int16


@pytest.fixture
def odd(write, make_scene, tmp_path):
    """Scenes of which four are of no use, each in another way."""
    wrong = make_scene(1, value_of=lambda labels: np.where(labels == 2, 200, labels))
    empty = make_scene(2, value_of=lambda labels: np.full_like(labels, 9))
    other = {"seg.png": make_scene(3, size=(24, 32))["seg.png"]}
    broken = {"seg.png": b"\x89PNG no map"}
    change = {1: wrong, 2: empty, 3: other, 4: broken}
    return samples(write(tmp_path / "odd", first=0, count=7, change=change), 7)


REASONS = ["value 200", "every pixel is void", "24x32 pixels, the image has 48x64", "label map is not as expected"]


def test_what_is_of_no_use_is_replaced_and_named(odd):
    batch = build(odd)
    assert [number for number, _, _ in batch["bad"]] == [1, 2, 3, 4]
    for reason, (_, _, message) in zip(REASONS, batch["bad"], strict=True):
        assert reason in message
    assert batch["ids"].tolist() == [0, 5, 5, 5, 5, 5, 6]


def test_an_evaluation_keeps_the_place_of_what_cannot_be_read(odd):
    batch = WholeImageBuilder(labels=LABELS, num_classes=3, max_pixels=10**6)(odd, step=0, micro_batch=0)
    assert [number for number, _, _ in batch["bad"]] == [1, 3, 4]
    assert batch["ids"].tolist() == list(range(7))
    for place in (1, 2, 3, 4):
        assert (batch["label_maps"][place] == IGNORE_INDEX).all()
    assert batch["images"][0].shape == (3, 48, 64)
