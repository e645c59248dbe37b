"""What a trained detector says about one image equals what its evaluation says, and is drawn where it is."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from data.shards.shard_set import open_shards
from finetune.detection.predict import draw_objects
from finetune.detection.task import Detection
from finetune.train import train


@pytest.mark.parametrize("kind", ["mask_rcnn", "yolo"])
def test_an_image_gets_the_objects_that_the_evaluation_found(micro, kind):
    config = micro(kind, optimizer={"steps": 1, "warmup_steps": 0}, evaluation={"micro_batch_size": 1})
    train(config)
    predictor = Detection.predictor(Detection.find(str(config.run.folder))["raw"]())
    lines = json.loads((config.run.folder / "predictions-raw.json").read_text())
    for position in range(2):
        sample = open_shards(config.val_shards).read(0, position)
        image = np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB"))
        answer = predictor(image)
        wanted = [line for line in lines if line["image_id"] == position]
        assert len(wanted) == len(answer.record["objects"]) > 0
        for ours, theirs in zip(answer.record["objects"], wanted, strict=True):
            assert ours["category_id"] == theirs["category_id"]
            assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1)  # decoders differ by a grey value or two
            assert ours["score"] == pytest.approx(theirs["score"], abs=0.02)
        assert answer.overlay.size == (image.shape[1], image.shape[0])


def test_masks_and_boxes_are_drawn_where_they_are_and_weak_ones_are_not():
    image = np.zeros((60, 80, 3), np.uint8)
    masks = torch.zeros(2, 60, 80, dtype=torch.bool)
    masks[0, 30:50, 30:50] = True
    masks[1, :5, :5] = True
    boxes = torch.tensor([[30.0, 30.0, 50.0, 50.0], [0.0, 0.0, 5.0, 5.0]])
    found = {"boxes": boxes, "scores": torch.tensor([0.9, 0.1]), "labels": torch.tensor([0, 1]), "masks": masks}
    drawn = np.asarray(draw_objects(image, found, classes=("a", "b")))
    assert drawn[45, 40].sum() > 0
    assert drawn[30, 40].sum() > drawn[48, 47].sum()  # the outline is not transparent
    assert drawn[:25].sum() == 0
