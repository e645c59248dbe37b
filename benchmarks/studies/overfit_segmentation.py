"""Each segmentation head overfits eight street scenes: ``benchmarks/studies/overfit.py --parts segvit ...`` runs it.

Eight images of CamVid, the shorter side 256, a small network, narrow heads, no augmentation: each head has to reach a
mean intersection over union of 0.8 on these images, at their own size. A head that cannot is broken somewhere between
the labels, the loss and the inference. The network has random weights, but SegViT's that of the run with Semantic FPN:
its loss teaches a network from scratch too slowly for the minutes there are. ``segvit_head`` shows what that head does
alone, given features that tell the classes apart.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.goals import Goal
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
from finetune.segmentation.heads.segvit import SegViTHead
from finetune.segmentation.labels import IGNORE_INDEX
from finetune.segmentation.metrics import confusion_matrix, segment_scores
from finetune.train import train

NUM_IMAGES = 8
SHORT_SIDE = 256
CROP = (256, 352)
LEAST_MIOU = 0.8
IGNORE_INDEX_VALUE = 11
BATCH_SIZE = 2
HEAD_WIDTH, HEAD_STEPS, HEAD_LR = 64, 200, 5e-3
"""Of the head alone."""
PYRAMID_VIT = StartConfig(
    name="vit_tiny_patch16_224", img_size=CROP, embed_dim=128, depths=(4,), num_heads=(4,), drop_path=0.0
)
"""Its simple pyramid has maps of strides 4 to 32 at a fraction of the cost of a network that computes at stride 4."""


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
    follows: str | None = None
    """The part whose backbone it starts from, in the place of random weights."""


HEADS = {
    "segvit": Part(
        segmenter=SegmenterConfig(head="segvit", dim=64, num_heads=2),
        steps=800,
        head_lr_scale=2.5,
        follows="semantic_fpn",
    ),
    "uper_net": Part(segmenter=SegmenterConfig(head="uper_net", dim=64), steps=600),
    "semantic_fpn": Part(segmenter=SegmenterConfig(head="semantic_fpn", dim=64), steps=600),
    "all_mlp": Part(segmenter=SegmenterConfig(head="all_mlp", dim=64), steps=1000),
}
"""The heads, by name."""


def overfit(name: str, *, data: Path, work: Path) -> tuple[dict[str, Any], list[Goal]]:
    """Train the head ``name`` on the chosen images of ``data``/camvid_semseg: its figures, and the goal."""
    source = data / "camvid_semseg"
    shards = write_chosen(source, work / "camvid8")
    part = HEADS[name]
    if part.follows is not None:
        part = replace(part, backbone=_left_by(part.follows, data=data, work=work))
    config = part_config(part, shards=shards, folder=work / name)
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


def _left_by(name: str, *, data: Path, work: Path) -> StartConfig:
    """The backbone that another part left, which is trained first where it was not yet."""
    folder = work / name / "backbone"
    if not folder.is_dir():
        overfit(name, data=data, work=work)
    return StartConfig(init=folder, img_size=CROP, drop_path=0.0)


def head_alone(*, data: Path, work: Path) -> tuple[dict[str, Any], list[Goal]]:
    """Train SegViT's head on features that tell the classes apart: shares of the classes at strides 4, 8 and 16."""
    del work
    torch.manual_seed(0)
    maps = torch.stack([_label_map(data / "camvid_semseg", name) for name in chosen(data / "camvid_semseg")])
    shares = F.one_hot(maps.long(), IGNORE_INDEX_VALUE + 1).permute(0, 3, 1, 2).float()
    mixed = torch.einsum("bkhw,kc->bchw", shares, torch.randn(IGNORE_INDEX_VALUE + 1, HEAD_WIDTH))
    features = [F.avg_pool2d(mixed, stride) for stride in (4, 8, 16)]
    labels = maps.masked_fill(maps == IGNORE_INDEX_VALUE, IGNORE_INDEX)
    options: dict[str, Any] = {
        "dim": HEAD_WIDTH,
        "num_heads": 2,
        "num_classes": IGNORE_INDEX_VALUE,
        "loss": "atm",
        "score_stride": 1,
    }
    head = SegViTHead([HEAD_WIDTH] * 3, **options).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=HEAD_LR, weight_decay=0)
    started = process_time()
    for step in range(HEAD_STEPS):
        rows = torch.randperm(NUM_IMAGES)[:BATCH_SIZE]
        shown = torch.tensor(
            [(i, k) for i, row in enumerate(rows) for k in labels[row].unique().tolist() if k != IGNORE_INDEX]
        )
        loss = head.loss([x[rows] for x in features], labels[rows], shown)["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 5.0)
        optimizer.param_groups[0]["lr"] = HEAD_LR * min(1, (step + 1) / 20) * (1 - step / HEAD_STEPS)
        optimizer.step()
    with torch.no_grad():
        guesses = head.eval().scores(features, (maps.shape[1], maps.shape[2])).argmax(1)
    counts = confusion_matrix(labels, guesses, num_classes=IGNORE_INDEX_VALUE)
    scores = segment_scores(counts, num_images=NUM_IMAGES, num_unreadable=0, num_empty=0, images_per_s=0.0)
    figures = {"miou": scores.miou, "per_class": scores.per_class, "cpu_minutes": (process_time() - started) / 60}
    return figures, [Goal(name="segvit_head: mIoU on its eight images", value=scores.miou, at_least=LEAST_MIOU)]


def _label_map(data: Path, name: str) -> Tensor:
    with Image.open(data / "labels" / "train" / f"{name}.png") as image:
        return torch.from_numpy(np.asarray(image.resize((CROP[1], CROP[0]), Image.Resampling.NEAREST)).astype(np.int16))


def chosen(data: Path) -> list[str]:
    """Name the eight training images whose rarest class covers the largest share of the labelled pixels."""
    maps = sorted((data / "labels" / "train").iterdir())
    return sorted(sorted((path.stem for path in maps), key=lambda name: -_rarest_share(data, name))[:NUM_IMAGES])


def _rarest_share(data: Path, name: str) -> float:
    with Image.open(data / "labels" / "train" / f"{name}.png") as image:
        labels = np.asarray(image)
    counts = np.bincount(labels[labels != IGNORE_INDEX_VALUE])
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
    """Write the recipe of one head."""
    return SegmentConfig(
        data=DataConfig(shards=(str(shards),), batch_size=BATCH_SIZE, micro_batch_size=BATCH_SIZE, workers=0),
        val_shards=str(shards),
        backbone=part.backbone,
        segmenter=part.segmenter,
        labels=LabelConfig(void=(IGNORE_INDEX_VALUE,)),
        augment=SegmentAugmentConfig(
            crop=CROP, short_side=SHORT_SIDE, scale=(1.0, 1.0), flip=0.0, most_of_one_class=1.0, photometric=0.0
        ),
        inference=InferenceConfig(short_side=SHORT_SIDE),
        evaluation=EvaluationConfig(every_steps=part.steps, micro_batch_size=4),
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


PARTS: dict[str, Callable[..., tuple[dict[str, Any], list[Goal]]]] = {
    **{name: partial(overfit, name) for name in HEADS},
    "segvit_head": head_alone,
}
"""What ``benchmarks/studies/overfit.py`` runs, by name."""
