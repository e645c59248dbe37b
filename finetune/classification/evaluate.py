"""Classify every labelled image exactly once, on any number of processes.

Legend: b images of a micro-batch, c classes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.loading.evaluation import EvaluationBuilder
from data.loading.loader import evaluation_batches
from data.shards.shard_set import ShardSet
from engine.distributed.engine import Engine
from engine.pixels import Pixels
from engine.terms import Size
from finetune.classification.config import ClassifyConfig
from finetune.classification.metrics import TOP_K, Scores, as_json, score
from finetune.network.weights import Trained
from finetune.task import Evaluation


@dataclass(frozen=True, kw_only=True)
class ClassifyEvaluator:
    """Measures classifiers on all labelled images of some shards."""

    config: ClassifyConfig
    """How images are resized and cut, and how many make a forward pass."""
    val: ShardSet
    """The images."""
    engine: Engine
    """The processes that share the images."""

    def evaluate(self, trained: Trained, *, predictions: Path) -> Evaluation:
        """Measure accuracies (collective); nothing is written into ``predictions``."""
        scores = evaluate(
            forward_of(trained.network, trained.pixels.to(self.engine.device), engine=self.engine),
            evaluation_images(self.config, self.val, img_size=trained.img_size, engine=self.engine),
            num_classes=trained.num_classes,
            num_samples=self.val.num_samples,
            engine=self.engine,
        )
        shares = f"top-1 {100 * scores.top1:.2f} %, top-5 {100 * scores.top5:.2f} %"
        return Evaluation(
            summary=f"{shares}, loss {scores.loss:.4f} on {scores.num_images} images",
            figures={**scores.summary()},
            result=as_json(scores, classes=self.val.classes or trained.classes),
        )


def evaluation_images(
    config: ClassifyConfig, shards: ShardSet, *, img_size: Size, engine: Engine
) -> Iterator[dict[str, Any]]:
    """Read this process's share of the images: resized, cut at their centres, with labels and numbers."""
    return evaluation_batches(
        shards,
        EvaluationBuilder(size=img_size, crop_ratio=config.evaluation.crop_ratio, max_pixels=config.data.max_pixels),
        micro_batch_size=config.evaluation.micro_batch_size,
        rank=engine.rank,
        world_size=engine.world_size,
        workers=config.data.workers,
        pin=engine.device.type == "cuda",
    )


def forward_of(network: nn.Module, pixels: Pixels, *, engine: Engine) -> Callable[[Tensor], Tensor]:
    """Make the function from raw images to ``network``'s outputs, in the run's precision."""
    dtype = next(network.parameters()).dtype

    def forward(images: Tensor) -> Tensor:
        with engine.autocast():
            return network(pixels(images).to(dtype))

    return forward


def evaluate(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[dict[str, Any]],
    *,
    num_classes: int,
    num_samples: int,
    engine: Engine,
) -> Scores:
    """Score all processes' ``batches``, which together hold each of ``num_samples`` once (collective)."""
    rows, losses = _classify(forward, batches, num_classes=num_classes, device=engine.device)
    rows, losses = engine.gather(rows).cpu(), engine.gather(losses).cpu()
    order = rows[:, 0].argsort()  # sums come out the same on any number of processes
    ids, labels, guesses, in_top_k, unreadable = rows[order].unbind(1)
    assert len(ids) == len(ids.unique()) == num_samples, f"{len(ids)} images evaluated, {num_samples} expected"
    return score(
        labels=labels,
        guesses=guesses,
        in_top_k=in_top_k.bool(),
        losses=losses[order],
        num_classes=num_classes,
        num_unreadable=int(unreadable.sum()),
    )


@torch.inference_mode()
def _classify(
    forward: Callable[[Tensor], Tensor], batches: Iterable[dict[str, Any]], *, num_classes: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows of (number, class, guess, in top k, unreadable), and the losses."""
    rows = [torch.zeros((0, 5), dtype=torch.int64, device=device)]
    losses = [torch.zeros(0, dtype=torch.float64, device=device)]
    for batch in batches:
        ids, labels = batch["ids"].to(device), batch["labels"].to(device)
        logits = forward(batch["images"].to(device, non_blocking=True)).double()
        best = logits.topk(min(TOP_K, num_classes), dim=1).indices
        in_top_k = (best == labels[:, None]).any(1).long()
        unreadable = torch.isin(
            ids, torch.tensor([bad[0] for bad in batch["bad"]], dtype=ids.dtype, device=device)
        ).long()
        rows.append(torch.stack([ids, labels, best[:, 0], in_top_k, unreadable], dim=1))
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
    return torch.cat(rows), torch.cat(losses)
