"""Detects in every annotated image exactly once, on any number of processes, and compares with what is annotated."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.loading.loader import evaluation_batches
from data.shards.shard_set import ShardSet
from engine.distributed.engine import Engine
from engine.run.durable import write_durably
from engine.terms import Size
from finetune.detection.batches import EvaluationBuilder
from finetune.detection.config import DetectConfig
from finetune.detection.ground_truth import Truth
from finetune.detection.metrics import Scores, average_precision, flat, summary
from finetune.detection.model import run_detector
from finetune.detection.predictions import Detected, as_coco, as_plain, gather, in_image
from finetune.network.weights import Trained
from finetune.task import Evaluation


@dataclass(frozen=True, kw_only=True)
class DetectEvaluator:
    """Measures detectors on annotated images."""

    config: DetectConfig
    """How images are resized, and how many at a time."""
    val: ShardSet
    """The images."""
    truth: Truth | None
    """What is annotated; None on processes that compare nothing."""
    engine: Engine
    """The processes that share the images."""

    def evaluate(self, trained: Trained, *, predictions: Path) -> Evaluation:
        """Measure boxes and, where they are found, masks (collective); COCO's results go into ``predictions``."""
        scores = self._scores(trained, predictions=predictions)
        return Evaluation(
            summary=f"{summary(scores)} on {scores['num_images']} images", figures=flat(scores), result=scores
        )

    def _scores(self, trained: Trained, *, predictions: Path) -> Scores:
        unreadable: list[int] = []
        detections = gather(self._detect(trained, unreadable=unreadable), engine=self.engine)
        everywhere = self.engine.average({"unreadable": float(len(unreadable))})["unreadable"] * self.engine.world_size
        count = len({one["sample"] for one in detections})
        assert len(detections) == count == self.val.num_samples, f"{count} of {self.val.num_samples} images"
        scores: Scores = {}
        if (truth := self.truth) is not None:
            lines = list(as_coco(detections, image_ids=truth.image_ids, category_ids=truth.category_ids))
            write_durably(predictions, json.dumps(lines).encode())
            scores["box"] = average_precision(truth.dataset, lines, kind="box")
            if self.config.detector.has_masks:
                scores["mask"] = average_precision(truth.dataset, lines, kind="mask")
            scores |= {"num_images": count, "num_unreadable": int(everywhere + 0.5)}
        return self.engine.broadcast_object(scores)

    @torch.inference_mode()
    def _detect(self, trained: Trained, *, unreadable: list[int]) -> Iterator[Detected]:
        """Yield this process's share of the images; ``unreadable`` gets the numbers of those that cannot be read."""
        pixels, dtype = trained.pixels.to(self.engine.device), next(trained.network.parameters()).dtype
        for batch in self._batches():
            images = pixels(batch["images"].to(self.engine.device, non_blocking=True)).to(dtype)
            sizes, content, true_sizes = (pairs(batch[name]) for name in ("sizes", "content", "true_sizes"))
            with self.engine.autocast():
                detections = run_detector(trained.network, images, sizes)
            bad = {sample for sample, _, _ in batch["bad"]}
            unreadable += bad
            for row, sample in enumerate(batch["ids"].tolist()):
                one = detections[row]
                if sample in bad:
                    one = {name: value[:0] for name, value in one.items()}
                yield as_plain(in_image(one, content=content[row], true_size=true_sizes[row]), sample=sample)

    def _batches(self) -> Iterator[dict[str, Any]]:
        return evaluation_batches(
            self.val,
            EvaluationBuilder(resize=self.config.resize, max_pixels=self.config.data.max_pixels),
            micro_batch_size=self.config.evaluation.micro_batch_size,
            rank=self.engine.rank,
            world_size=self.engine.world_size,
            workers=self.config.data.workers,
            pin=self.engine.device.type == "cuda",
        )


def pairs(x: torch.Tensor) -> list[Size]:
    """Turn [b, 2] heights and widths into pairs."""
    return [(int(height), int(width)) for height, width in x.tolist()]
