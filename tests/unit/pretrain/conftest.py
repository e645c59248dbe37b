"""Small shards and a micro recipe for whole runs in one process."""

from dataclasses import replace

import pytest

from backbones.config import BackboneConfig
from data.config import DataConfig
from data.sources.scenes import scene_members
from data.writing.writer import NewSample, ShardLimits, write_shards
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig
from pretrain.config import MimConfig, PretrainConfig


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "train"
    samples = []
    for number in range(48):
        label, members = scene_members(0, number=number, size=64)
        samples.append(NewSample(source=f"scene {number}", members=members, label=label))
    write_shards(samples, out=out, classes=[str(c) for c in range(12)], limits=ShardLimits(samples=20))
    return out


@pytest.fixture
def micro(shards, tmp_path):
    """Make a micro recipe, with changes of its sections: 64 px, two micro-batches of 4, 6 steps."""
    base = PretrainConfig(
        data=DataConfig(
            shards=(str(shards),), batch_size=8, micro_batch_size=4, workers=0, window_shards=1, window_samples=16
        ),
        backbone=BackboneConfig(
            name="swin_tiny_patch4_window7_224",
            img_size=(64, 64),
            window=2,
            embed_dim=16,
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 4, 8),
            drop_path=0.1,
        ),
        mim=MimConfig(mask_ratio=0.5, decoder_dim=16, decoder_heads=2),
        optimizer=OptimizerConfig(base_lr=1e-2, steps=6, warmup_steps=1, clip_grad_norm=1.0, ema_decay=0.9),
        run=RunConfig(folder=tmp_path / "run", save_every_steps=2, keep_last=3),
        report=ReportConfig(every_steps=1, tensorboard=False, samples=True),
        distributed=DistributedConfig(precision="fp32"),
    )

    def change(**sections) -> PretrainConfig:
        return replace(base, **{name: replace(getattr(base, name), **fields) for name, fields in sections.items()})

    return change
