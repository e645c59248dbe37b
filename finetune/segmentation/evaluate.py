"""Segment every labelled image exactly once, on any number of processes, and count its pixels."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from data.loading.loader import evaluation_batches
from data.shards.shard_set import ShardSet
from engine.distributed.engine import Engine
from finetune.network.weights import Trained
from finetune.segmentation.batches import WholeImageBuilder
from finetune.segmentation.config import SegmentConfig, window_of
from finetune.segmentation.inference import infer
from finetune.segmentation.labels import IGNORE_INDEX
from finetune.segmentation.metrics import SegmentScores, as_json, confusion_matrix, segment_scores
from finetune.segmentation.model import Segmenter
from finetune.task import Evaluation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SegmentEvaluator:
    """Measures segmenters on all label maps of some shards."""

    config: SegmentConfig
    """How label maps of whole images are made, and what their values mean."""
    val: ShardSet
    """The images."""
    engine: Engine
    """The processes that share the images."""

    def evaluate(self, trained: Trained, *, predictions: Path) -> Evaluation:
        """Measure mIoU (collective); nothing is written into ``predictions``."""
        segmenter = cast(Segmenter, trained.network)
        segmenter.set_score_stride(self.config.segmenter.score_stride)  # which may be another one than in training
        scores = evaluate(self.config, segmenter, self.val, num_classes=trained.num_classes, engine=self.engine)
        shares = f"mIoU {100 * scores.miou:.2f} %, pixel accuracy {100 * scores.pixel_accuracy:.2f} %"
        return Evaluation(
            summary=f"{shares} on {scores.num_images} images, {scores.images_per_s:.2f} images/s",
            figures={**scores.summary()},
            result=as_json(scores, classes=trained.classes),
        )


def evaluate(
    config: SegmentConfig, segmenter: Segmenter, shards: ShardSet, *, num_classes: int, engine: Engine
) -> SegmentScores:
    """Score a segmenter in evaluation mode over all samples of ``shards`` (collective)."""
    started = time.monotonic()
    batches = whole_images(config, shards, num_classes=num_classes, engine=engine)
    confusion, rows = count_pixels(config, segmenter, batches, num_classes=num_classes, engine=engine)
    confusion, rows = engine.gather(confusion[None]).sum(0).cpu(), engine.gather(rows).cpu()
    ids = rows[:, 0]
    assert len(ids) == len(ids.unique()) == shards.num_samples, f"{len(ids)} images, {shards.num_samples} expected"
    return segment_scores(
        confusion,
        num_images=len(ids),
        num_unreadable=int(rows[:, 1].sum()),
        num_empty=int(rows[:, 2].sum()),
        images_per_s=len(ids) / (time.monotonic() - started),
    )


def whole_images(
    config: SegmentConfig, shards: ShardSet, *, num_classes: int, engine: Engine
) -> Iterator[dict[str, Any]]:
    """Read this process's share of the images with their label maps."""
    return evaluation_batches(
        shards,
        WholeImageBuilder(labels=config.labels, num_classes=num_classes, max_pixels=config.data.max_pixels),
        micro_batch_size=config.evaluation.micro_batch_size,
        rank=engine.rank,
        world_size=engine.world_size,
        workers=config.data.workers,
    )


@torch.inference_mode()
def count_pixels(
    config: SegmentConfig,
    segmenter: Segmenter,
    batches: Iterable[dict[str, Any]],
    *,
    num_classes: int,
    engine: Engine,
) -> tuple[Tensor, Tensor]:
    """Count the confusion matrix of ``batches``; also rows of (number, unreadable, empty)."""
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=engine.device)
    rows: list[tuple[int, bool, bool]] = []
    for batch in batches:
        unreadable = {number for number, _, _ in batch["bad"]}
        for number, key, reason in batch["bad"]:
            logger.warning("sample %d (%s) counts nothing: %s", number, key, reason)
        for places in _same_size(batch["images"]):
            labels = torch.stack([batch["label_maps"][place] for place in places]).to(engine.device)
            images = torch.stack([batch["images"][place] for place in places])
            guesses = guess(config, segmenter, images, engine=engine)
            confusion += confusion_matrix(labels, guesses, num_classes=num_classes)
        for number, labels in zip(batch["ids"].tolist(), batch["label_maps"], strict=True):
            rows.append((number, number in unreadable, number not in unreadable and not (labels != IGNORE_INDEX).any()))
    return confusion, torch.tensor(rows, dtype=torch.int64, device=engine.device).reshape(-1, 3)


def guess(config: SegmentConfig, segmenter: Segmenter, images: Tensor, *, engine: Engine) -> Tensor:
    """Choose the best class of every pixel of raw ``images`` [b, 3, h, w], in the run's precision."""
    dtype = next(segmenter.parameters()).dtype
    with engine.autocast():
        normalised = segmenter.pixels(images.to(engine.device)).to(dtype)
        scores = infer(segmenter.scores, normalised, config=config.inference, window=window_of(config))
    return scores.argmax(dim=1)


def _same_size(images: list[Tensor]) -> list[list[int]]:
    """Group the places of images that have the same size."""
    places: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        places[tuple(image.shape)].append(place)
    return list(places.values())
