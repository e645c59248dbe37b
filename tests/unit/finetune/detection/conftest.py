"""Small annotated shards, a micro recipe for each detector, and images of different sizes."""

from dataclasses import replace

import pytest
import torch

from data.config import DataConfig
from data.sources.scenes import CLASSES, scene_members
from data.writing.writer import NewSample, ShardLimits, write_shards
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig
from finetune.config import EvaluationConfig, StartConfig
from finetune.detection.config import DetectConfig, DetectorConfig, ResizeConfig

KINDS = ("retinanet", "mask_rcnn", "cascade", "yolo")
SWIN = StartConfig(
    name="swin_tiny_patch4_window7_224",
    img_size=(64, 64),
    window=4,
    embed_dim=16,
    depths=(1, 1, 1, 1),
    num_heads=(1, 2, 4, 8),
    drop_path=0.1,
)


def write_annotated(out, *, first, count, size=64, change=None, classes=CLASSES):
    samples = []
    for number in range(first, first + count):
        _, members = scene_members(0, number=number, size=size)
        members.pop("seg.png")
        if change is not None:
            members = change(number, members)
        samples.append(NewSample(source=f"scene {number}", members=members))
    write_shards(samples, out=out, classes=list(classes), limits=ShardLimits(samples=10))
    return out


@pytest.fixture(scope="session")
def write():
    return write_annotated


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A micro recipe: short sides of 64 to 80 px, two micro-batches of 2, 4 steps."""
    folder = tmp_path_factory.mktemp("annotated")
    write_annotated(folder / "train", first=0, count=16)
    write_annotated(folder / "val", first=50, count=5)
    return DetectConfig(
        data=DataConfig(shards=(str(folder / "train"),), batch_size=4, micro_batch_size=2, workers=0),
        val_shards=str(folder / "val"),
        backbone=SWIN,
        detector=small_detector("mask_rcnn"),
        resize=small_resize("mask_rcnn"),
        evaluation=EvaluationConfig(every_steps=2, micro_batch_size=2),
        optimizer=OptimizerConfig(
            base_lr=1e-3, lr_batch_size=4, steps=4, warmup_steps=1, decay="steps", clip_grad_norm=1.0, layer_decay=0.8
        ),
        run=RunConfig(save_every_steps=2, keep_last=3),
        report=ReportConfig(every_steps=1, tensorboard=False),
        distributed=DistributedConfig(engine="single", precision="fp32"),
    )


def small_detector(kind):
    return DetectorConfig(
        kind=kind, width=16, box_width=32, roi_samples=16, anchor_samples=32, proposals=(50, 20), score_threshold=0.0
    )


def small_resize(kind):
    if kind == "yolo":
        return ResizeConfig(mode="letterbox", canvas=(96, 96))
    return ResizeConfig(short_sides=(64, 80), long_side=128, test_short_side=64)


@pytest.fixture
def micro(base, tmp_path):
    """Return a function from changes of sections to a micro recipe in a folder of its own."""

    def change(kind="mask_rcnn", **sections) -> DetectConfig:
        sections = {"run": {}, "detector": {}, "resize": {}, **sections}
        sections["run"].setdefault("folder", tmp_path / "run")
        own = replace(base, detector=small_detector(kind), resize=small_resize(kind))
        changed = {}
        for name, fields in sections.items():
            changed[name] = replace(getattr(own, name), **fields) if isinstance(fields, dict) else fields
        return replace(own, **changed)

    return change


@pytest.fixture
def scene_batch():
    """Three images of different sizes on one canvas, with objects; the last one has none."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(64, 96), (80, 64), (96, 96)]
    images = torch.randn(3, 3, 96, 96, generator=generator)
    targets = []
    for (height, width), count in zip(sizes, (2, 1, 0), strict=True):
        left = torch.tensor([[4.0, 6.0], [20.0, 10.0]])[:count]
        boxes = torch.cat([left, left + torch.tensor([[30.0, 40.0], [35.0, 30.0]])[:count]], dim=1)
        masks = torch.zeros(count, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 3])[:count], "masks": masks})
    return images, sizes, targets
