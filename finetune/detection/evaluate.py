"""Detects in every annotated image exactly once, on any number of processes, and compares with what is annotated."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.loading.loader import evaluation_batches
from data.shards.shard_set import ShardSet
from engine.distributed.engine import Engine
from engine.pixels import Pixels
from finetune.detection.batches import EvaluationBuilder
from finetune.detection.config import DetectConfig
from finetune.detection.ground_truth import Truth
from finetune.detection.metrics import average_precision
from finetune.detection.model import run_detector
from finetune.detection.predictions import Found, as_coco, as_found, gather, in_picture, write_predictions

Scores = dict[str, Any]
"""``box`` and, where masks are found, ``mask`` (COCO's figures), ``num_images`` and ``num_unreadable``."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What detectors are asked: images, and on the main process what is in them."""

    config: DetectConfig
    """How images are resized, and how many at a time."""
    shards: ShardSet
    """The images."""
    truth: Truth | None
    """What is annotated; None on processes that compare nothing."""
    pixels: Pixels
    """How images are normalised."""
    engine: Engine
    """The processes that share the images."""

    def score(self, detector: nn.Module, *, predictions: Path | None = None) -> Scores:
        """Return the scores of ``detector``, on every process (collective); COCO's results go to ``predictions``."""
        bad: list[int] = []
        found = gather(self._found(detector, bad=bad), engine=self.engine)
        unreadable = int(self.engine.average({"bad": float(len(bad))})["bad"] * self.engine.world_size + 0.5)
        count = len({one["sample"] for one in found})
        assert len(found) == count == self.shards.num_samples, f"{count} of {self.shards.num_samples} images"
        scores: Scores = {}
        if self.truth is not None:
            numbers = {"image_ids": self.truth.image_ids, "category_ids": self.truth.category_ids}
            lines = as_coco(found, **numbers)
            if predictions is not None:
                write_predictions(predictions, lines)
            scores["box"] = average_precision(self.truth.dataset, lines, kind="box")
            if self.config.detector.has_masks:
                scores["mask"] = average_precision(self.truth.dataset, lines, kind="mask")
            scores |= {"num_images": count, "num_unreadable": unreadable}
        return self.engine.broadcast_object(scores)

    @torch.inference_mode()
    def _found(self, detector: nn.Module, *, bad: list[int]) -> Iterator[Found]:
        dtype = next(detector.parameters()).dtype
        for batch in self._batches():
            images = self.pixels(batch["images"].to(self.engine.device, non_blocking=True)).to(dtype)
            sizes, content, true_sizes = (_pairs(batch[name]) for name in ("sizes", "content", "true_sizes"))
            with self.engine.autocast():
                detections = run_detector(detector, images, sizes)
            unreadable = {sample for sample, _, _ in batch["bad"]}
            bad += unreadable
            for row, sample in enumerate(batch["ids"].tolist()):
                one = detections[row]
                if sample in unreadable:
                    one = {name: value[:0] for name, value in one.items()}
                yield as_found(in_picture(one, content=content[row], true_size=true_sizes[row]), sample=sample)

    def _batches(self) -> Iterator[dict[str, Any]]:
        return evaluation_batches(
            self.shards,
            EvaluationBuilder(resize=self.config.resize, max_pixels=self.config.data.max_pixels),
            micro_batch_size=self.config.evaluation.micro_batch_size,
            rank=self.engine.rank,
            world_size=self.engine.world_size,
            workers=self.config.data.workers,
            pin=self.engine.device.type == "cuda",
        )


def _pairs(x: torch.Tensor) -> list[tuple[int, int]]:
    return [(int(height), int(width)) for height, width in x.tolist()]
