"""Each segmentation head learning eight street scenes by heart; ``benchmarks/overfit.py --parts segvit ...`` runs it.

Eight images of CamVid, the shorter side 256, a small ViT from random weights, narrow heads, no augmentation: each head has to
reach a mean intersection over union of 0.8 on these images, at their own size. A head that cannot is broken somewhere
between the labels, the loss and the inference.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.goals import Goal
from data.config import DataConfig
from data.new_sample import NewSample
from data.writer import ShardLimits, write_shards
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig
from finetune.config import StartConfig
from finetune.segmentation.config import (
    InferenceConfig,
    LabelConfig,
    SegmentAugmentConfig,
    SegmentConfig,
    SegmenterConfig,
    SegmentEvaluationConfig,
)
from finetune.segmentation.trainer import train

NUM_IMAGES = 8
SHORT_SIDE = 256
CROP = (256, 352)
LEAST_MIOU = 0.8
VOID_VALUE = 11
BATCH_SIZE = 2
PYRAMID_VIT = StartConfig(
    name="vit_tiny_patch16_224", img_size=CROP, embed_dim=128, depths=(4,), num_heads=(4,), drop_path=0.0
)
"""Its simple pyramid has maps of strides 4 to 32 at a fraction of the cost of a network that computes at stride 4."""
FINE_VIT = StartConfig(
    name="vit_small_patch8_224", img_size=CROP, embed_dim=96, depths=(4,), num_heads=(3,), drop_path=0.0
)
"""SegViT's masks have the resolution of the patches, and poles are two pixels wide."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One head and how long it learns."""

    segmenter: SegmenterConfig
    """The head, with few channels."""
    steps: int
    """Optimizer steps of two images."""
    backbone: StartConfig = PYRAMID_VIT
    """A small network with random weights."""
    base_lr: float = 2e-3
    """Peak learning rate of the backbone."""
    head_lr_scale: float = 1.0
    """Factor on it for the head."""


HEADS = {
    "segvit": Part(
        segmenter=SegmenterConfig(head="segvit", dim=64, num_heads=2),
        backbone=FINE_VIT,
        steps=900,
        base_lr=1e-3,
        head_lr_scale=5.0,
    ),
    "uper_net": Part(segmenter=SegmenterConfig(head="uper_net", dim=64), steps=600),
    "semantic_fpn": Part(segmenter=SegmenterConfig(head="semantic_fpn", dim=64), steps=600),
    "all_mlp": Part(segmenter=SegmenterConfig(head="all_mlp", dim=64), steps=1000),
}
"""The heads, by name."""


def overfit(name: str, *, data: Path, work: Path) -> tuple[dict[str, Any], list[Goal]]:
    """Return what the head ``name`` reached on the chosen images of ``data``/camvid_semseg, and what it has to reach."""
    source = data / "camvid_semseg"
    shards = write_chosen(source, work / "camvid8")
    config = part_config(HEADS[name], shards=shards, folder=work / name)
    started = process_time()
    (last, *_) = train(config)
    minutes = (process_time() - started) / 60
    losses = [line["loss"] for line in map(json.loads, (work / name / "metrics.jsonl").read_text().splitlines())]
    figures = {
        "images": chosen(source),
        "cpu_minutes": minutes,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        **{key: last[key] for key in ("miou", "pixel_accuracy", "per_class", "num_images", "step")},
    }
    return figures, [Goal(name=f"{name}: mIoU on its eight images", value=last["miou"], at_least=LEAST_MIOU)]


def chosen(data: Path) -> list[str]:
    """Return the names of the eight training images whose rarest class covers the largest share of the labelled pixels."""
    maps = sorted((data / "labels" / "train").iterdir())
    return sorted(sorted((path.stem for path in maps), key=lambda name: -_rarest_share(data, name))[:NUM_IMAGES])


def _rarest_share(data: Path, name: str) -> float:
    with Image.open(data / "labels" / "train" / f"{name}.png") as image:
        labels = np.asarray(image)
    counts = np.bincount(labels[labels != VOID_VALUE])
    return float(counts[counts > 0].min() / counts.sum())


def write_chosen(data: Path, out: Path) -> Path:
    """Write the chosen images as shards, unless they are there."""
    if (out / "manifest.json").is_file():
        return out
    classes = json.loads((data / "classes.json").read_text())["classes"]
    samples = [
        NewSample(
            source=name,
            members={
                "jpg": (data / "images" / "train" / f"{name}.jpg").read_bytes(),
                "seg.png": (data / "labels" / "train" / f"{name}.png").read_bytes(),
            },
        )
        for name in chosen(data)
    ]
    write_shards(
        samples, out=out, classes=[classes[str(n)] for n in range(len(classes))], limits=ShardLimits(samples=8)
    )
    return out


def part_config(part: Part, *, shards: Path, folder: Path) -> SegmentConfig:
    """Return the recipe of one head."""
    return SegmentConfig(
        data=DataConfig(shards=(str(shards),), batch_size=BATCH_SIZE, micro_batch_size=BATCH_SIZE, workers=0),
        val_shards=str(shards),
        backbone=part.backbone,
        segmenter=part.segmenter,
        labels=LabelConfig(void=(VOID_VALUE,)),
        augment=SegmentAugmentConfig(
            crop=CROP, short_side=SHORT_SIDE, scale=(1.0, 1.0), flip=0.0, most_of_one_class=1.0, photometric=0.0
        ),
        inference=InferenceConfig(short_side=SHORT_SIDE),
        evaluation=SegmentEvaluationConfig(every_steps=part.steps, micro_batch_size=4),
        optimizer=OptimizerConfig(
            base_lr=part.base_lr,
            head_lr_scale=part.head_lr_scale,
            lr_batch_size=BATCH_SIZE,
            decay="poly",
            steps=part.steps,
            warmup_steps=20,
            weight_decay=0.0,
            clip_grad_norm=5.0,
        ),
        run=replace(RunConfig(), folder=folder, save_every_steps=part.steps),
        report=ReportConfig(every_steps=20, tensorboard=False),
        distributed=DistributedConfig(engine="single", precision="fp32"),
    )


PARTS: dict[str, Callable[..., tuple[dict[str, Any], list[Goal]]]] = {name: partial(overfit, name) for name in HEADS}
"""What ``benchmarks/overfit.py`` runs, by name."""
