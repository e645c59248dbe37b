"""Small shards of generated street scenes with label maps, and a micro recipe for whole runs in one process."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data.config import DataConfig
from data.writing.writer import NewSample, ShardLimits, write_shards
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig
from finetune.config import EvaluationConfig, StartConfig
from finetune.segmentation.config import (
    InferenceConfig,
    LabelConfig,
    SegmentAugmentConfig,
    SegmentConfig,
    SegmenterConfig,
)

CLASSES = ("sky", "wall", "road")
COLOURS = np.array([[90, 160, 230], [150, 90, 60], [70, 70, 75]], np.uint8)
VOID_VALUE = 9


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def scene(number, *, size=(48, 64), value_of=None):
    """Three horizontal bands of noisy colours at random heights with a column of void; the true map beside it."""
    rng = np.random.default_rng(number)
    height, width = size
    first, second = sorted(rng.integers(height // 4, 3 * height // 4, 2))
    labels = np.zeros(size, np.uint8)
    labels[first:] = 1
    labels[second + 1 :] = 2
    image = COLOURS[labels] + rng.integers(0, 20, (height, width, 3), dtype=np.uint8)
    labels[:, : 1 + number % 3] = VOID_VALUE
    if value_of is not None:
        labels = value_of(labels)
    return {"png": png(image), "seg.png": png(labels)}


def write_scenes(out, *, first, count, classes=CLASSES, change=None, size_of=lambda number: (48, 64)):
    """Write ``count`` scenes; ``change`` maps a number to other members."""
    samples = []
    for number in range(first, first + count):
        members = scene(number, size=size_of(number))
        members |= (change or {}).get(number, {})
        samples.append(NewSample(source=f"scene {number}", members=members))
    write_shards(samples, out=out, classes=classes, limits=ShardLimits(samples=7))
    return out


@pytest.fixture(scope="session")
def write():
    return write_scenes


@pytest.fixture(scope="session")
def make_scene():
    return scene


@pytest.fixture(scope="session")
def train_shards(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "train", first=0, count=16)


@pytest.fixture(scope="session")
def val_shards(tmp_path_factory):
    sizes = [(48, 64), (48, 64), (40, 72), (64, 48)]
    return write_scenes(
        tmp_path_factory.mktemp("scenes") / "val", first=50, count=9, size_of=lambda number: sizes[number % 4]
    )


@pytest.fixture(scope="session")
def base(train_shards, val_shards):
    """A micro recipe: crops of 32x32, two micro-batches of 2, 4 steps, SegViT on a Swin."""
    return SegmentConfig(
        data=DataConfig(shards=(str(train_shards),), batch_size=4, micro_batch_size=2, workers=0),
        val_shards=str(val_shards),
        backbone=StartConfig(
            name="swin_tiny_patch4_window7_224",
            img_size=(32, 32),
            window=2,
            embed_dim=16,
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 4, 8),
            drop_path=0.1,
        ),
        segmenter=SegmenterConfig(head="segvit", dim=16, num_heads=2, strides=(4, 8)),
        labels=LabelConfig(void=(VOID_VALUE,)),
        augment=SegmentAugmentConfig(crop=(32, 32), short_side=40),
        inference=InferenceConfig(short_side=40),
        evaluation=EvaluationConfig(every_steps=2, micro_batch_size=3),
        optimizer=OptimizerConfig(
            base_lr=1e-2, lr_batch_size=4, head_lr_scale=2.0, decay="poly", steps=4, warmup_steps=1, ema_decay=0.5
        ),
        run=RunConfig(save_every_steps=1, keep_last=5),
        report=ReportConfig(every_steps=1, tensorboard=False),
        distributed=DistributedConfig(engine="single", precision="fp32"),
    )


@pytest.fixture
def micro(base, tmp_path):
    """Return a function from changes of sections to a micro recipe in a folder of its own."""

    def change(**sections) -> SegmentConfig:
        sections.setdefault("run", {})
        sections["run"].setdefault("folder", tmp_path / "run")
        changed = {}
        for name, fields in sections.items():
            changed[name] = replace(getattr(base, name), **fields) if isinstance(fields, dict) else fields
        return replace(base, **changed)

    return change
