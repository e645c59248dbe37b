"""Small labelled shards and a micro recipe for whole runs in one process."""

from dataclasses import replace

import pytest

from data.config import DataConfig
from data.sources.scenes import scene_members
from data.writing.writer import NewSample, ShardLimits, write_shards
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig
from finetune.classification.config import AugmentConfig, ClassifyConfig, ClassifyEvaluationConfig, TaskConfig
from finetune.config import StartConfig

CLASSES = ("ant", "bee", "cat", "dog")


def write_scenes(out, *, first, count, classes=CLASSES, broken=(), per_shard=20):
    samples = []
    for number in range(first, first + count):
        _, members = scene_members(0, number=number, size=64)
        if number in broken:
            members["jpg"] = b"\xff\xd8\xff no image"
        label = None if classes is None else number % len(classes)
        samples.append(NewSample(source=f"scene {number}", members=members, label=label))
    write_shards(samples, out=out, classes=classes, limits=ShardLimits(samples=per_shard))
    return out


@pytest.fixture(scope="session")
def train_shards(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("labelled") / "train", first=0, count=48)


@pytest.fixture(scope="session")
def val_shards(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("labelled") / "val", first=100, count=23)


@pytest.fixture(scope="session")
def write():
    return write_scenes


@pytest.fixture(scope="session")
def base(train_shards, val_shards):
    """A micro recipe: 64 px, two micro-batches of 4, 6 steps."""
    return ClassifyConfig(
        data=DataConfig(shards=(str(train_shards),), batch_size=8, micro_batch_size=4, workers=0),
        val_shards=str(val_shards),
        backbone=StartConfig(
            name="swin_tiny_patch4_window7_224",
            img_size=(64, 64),
            window=2,
            embed_dim=16,
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 4, 8),
            drop_path=0.1,
        ),
        task=TaskConfig(),
        augment=AugmentConfig(),
        evaluation=ClassifyEvaluationConfig(every_steps=2, micro_batch_size=5),
        optimizer=OptimizerConfig(
            base_lr=1e-2, steps=6, warmup_steps=1, clip_grad_norm=1.0, ema_decay=0.9, layer_decay=0.8
        ),
        run=RunConfig(save_every_steps=2, keep_last=3),
        report=ReportConfig(every_steps=1, tensorboard=False),
        distributed=DistributedConfig(engine="single", precision="fp32"),
    )


@pytest.fixture
def micro(base, tmp_path):
    """Return a function from changes of sections to a micro recipe in a folder of its own."""

    def change(**sections) -> ClassifyConfig:
        sections.setdefault("run", {})
        if isinstance(sections["run"], dict):
            sections["run"].setdefault("folder", tmp_path / "run")
        changed = {}
        for name, fields in sections.items():
            changed[name] = replace(getattr(base, name), **fields) if isinstance(fields, dict) else fields
        return replace(base, **changed)

    return change
