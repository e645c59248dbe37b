"""Every image is counted exactly once on 1, 2 and 4 processes, and their matrices add up to the same."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from data.shards.shard_set import open_shards
from finetune.network.start import resolve_start
from finetune.segmentation.config import InferenceConfig
from finetune.segmentation.evaluate import count_pixels, evaluate, whole_images
from finetune.segmentation.metrics import confusion_matrix
from finetune.segmentation.model import build_model


class Process(SimpleNamespace):
    """One of several processes, as the evaluation sees it; what they gather is put together by the test."""

    device = torch.device("cpu")

    def autocast(self):
        return contextlib.nullcontext()

    def gather(self, x):
        return x


def alone():
    return Process(rank=0, world_size=1)


@pytest.fixture
def segmenter(micro):
    config = micro()
    return build_model(config, start=resolve_start(config.backbone), num_classes=3).eval()


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_any_number_of_processes_counts_the_same_pixels_of_each_image_once(
    micro, segmenter, val_shards, world_size, micro_batch_size
):
    config = micro(evaluation={"micro_batch_size": micro_batch_size})
    shards = open_shards(val_shards)
    expected = evaluate(config, segmenter, shards, num_classes=3, engine=alone())
    confusion, ids = torch.zeros(3, 3, dtype=torch.int64), []
    for rank in range(world_size):
        process = Process(rank=rank, world_size=world_size)
        batches = whole_images(config, shards, num_classes=3, engine=process)
        share, rows = count_pixels(config, segmenter, batches, num_classes=3, engine=process)
        confusion, ids = confusion + share, ids + rows[:, 0].tolist()
    assert sorted(ids) == list(range(9))
    assert tuple(map(tuple, confusion.tolist())) == expected.confusion


def test_figures_are_those_of_a_plain_loop_over_the_images(micro, segmenter, val_shards):
    config = replace(micro(), inference=InferenceConfig())
    shards = open_shards(val_shards)
    found = evaluate(config, segmenter, shards, num_classes=3, engine=alone())
    total = torch.zeros(3, 3, dtype=torch.int64)
    for batch in whole_images(config, shards, num_classes=3, engine=alone()):
        for image, labels in zip(batch["images"], batch["label_maps"], strict=True):
            with torch.no_grad():
                guesses = segmenter.scores(segmenter.pixels(image[None])).argmax(1)[0]
            total += confusion_matrix(labels, guesses, num_classes=3)
    assert found.confusion == tuple(map(tuple, total.tolist()))
    assert found.images_per_s > 0


def test_what_cannot_be_read_is_counted_and_adds_no_pixel(micro, segmenter, write, make_scene, tmp_path, caplog):
    change = {1: {"seg.png": b"\x89PNG no map"}, 2: make_scene(2, value_of=lambda labels: labels * 0 + 9)}
    shards = open_shards(write(tmp_path / "odd", first=0, count=4, change=change))
    found = evaluate(micro(), segmenter, shards, num_classes=3, engine=alone())
    assert (found.num_images, found.num_unreadable, found.num_empty) == (4, 1, 1)
    assert sum(map(sum, found.confusion)) == sum(48 * (64 - 1 - n % 3) for n in (0, 3))
    assert "counts nothing: its label map is not as expected" in caplog.text
