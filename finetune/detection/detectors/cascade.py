"""Cascade Mask R-CNN (Cai and Vasconcelos, arXiv 1712.00726): three stages, each on the boxes of the one before.

Boxes are class-agnostic, as published. Stage i takes its regions at IoU 0.5, 0.6, 0.7, its losses count 1, 0.5, 0.25;
in detection the stages' class scores and masks are averaged, and the box is the last stage's. Inside, class 0 is the
background.

Legend: b images, n objects of one image, r regions of all images, k classes with background.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from engine.terms import Size
from finetune.detection.config import DetectConfig, DetectorConfig
from finetune.detection.detectors.feature_maps import FeatureMaps, RegionPool, in_full
from finetune.detection.detectors.mask_rcnn import BOX_SIDE, POSITIVE_SHARE, mask_parts
from finetune.detection.detectors.proposals import Proposals
from finetune.network.pyramid import MapGroup, Pyramid

STAGE_IOUS = (0.5, 0.6, 0.7)
STAGE_BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
STAGE_LOSS_WEIGHTS = (1.0, 0.5, 0.25)
SMALLEST_PX = 1e-2


class CascadeRCNN(nn.Module):
    """Proposals, corrected three times, and on each a class and a mask."""

    def __init__(self, pyramid: Pyramid, *, config: DetectConfig, num_classes: int) -> None:
        super().__init__()
        own = config.detector
        width = own.width or 256
        self.features = FeatureMaps(pyramid, width=width, above="pool")
        self.proposals = Proposals(own, width=width, strides=self.features.strides)
        self.stages = nn.ModuleList(
            _stage(number, config=own, width=width, num_classes=num_classes) for number in range(len(STAGE_IOUS))
        )

    def forward(
        self, images: Tensor, sizes: Sequence[Size], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute losses where there are ``targets``, else detect: boxes, scores, labels and masks [n, 1, 28, 28]."""
        groups = self.features(images, sizes)
        if targets is None:
            boxes, _ = self.proposals(groups, sizes=sizes, targets=None)
            return self._detect(groups, boxes, sizes=sizes)
        shifted = [{**target, "labels": target["labels"] + 1} for target in targets]
        boxes, losses = self.proposals(groups, sizes=sizes, targets=shifted)
        return losses | self._losses(groups, boxes, sizes=sizes, targets=shifted)

    def _losses(
        self, groups: list[MapGroup], boxes: list[Tensor], *, sizes: Sequence[Size], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for number, weight in enumerate(STAGE_LOSS_WEIGHTS):
            stage = self._stage(number)
            boxes, matched, labels, true_deltas = stage.select_training_samples(boxes, targets)
            logits, deltas = _heads(stage, groups, boxes, sizes)
            flat = torch.cat(labels)
            losses[f"class_{number}"] = weight * F.cross_entropy(logits, flat)
            losses[f"box_{number}"] = weight * _box_loss(deltas, torch.cat(list(true_deltas)), flat)
            if stage.has_mask():
                losses[f"mask_{number}"] = weight * _mask_loss(stage, groups, boxes, matched, labels, sizes, targets)
            refined = _refined(stage, deltas.detach(), boxes, sizes)
            boxes = [_without_truth(*three) for three in zip(refined, boxes, targets, strict=True)]
        return losses

    def _detect(self, groups: list[MapGroup], boxes: list[Tensor], *, sizes: Sequence[Size]) -> list[dict[str, Tensor]]:
        all_logits: list[Tensor] = []
        last, rois, deltas = self._stage(-1), boxes, torch.empty(0)
        for number in range(len(self.stages)):
            stage, rois = self._stage(number), boxes
            logits, deltas = _heads(stage, groups, rois, sizes)
            all_logits.append(logits)
            boxes = _refined(stage, deltas, rois, sizes)
        logits = torch.stack(all_logits).mean(0)
        shared = deltas.repeat(1, logits.shape[1])  # the same box for every class
        columns = last.postprocess_detections(logits, shared, rois, list(sizes))
        detections: list[dict[str, Tensor]] = [
            {"boxes": box, "scores": score, "labels": label} for box, score, label in zip(*columns, strict=True)
        ]
        if last.has_mask():
            best_boxes = [x["boxes"] for x in detections]
            logits = torch.stack(
                [_mask_logits(self._stage(i), groups, best_boxes, sizes) for i in range(len(self.stages))]
            )
            shares = maskrcnn_inference(_logit_of_mean(logits), [x["labels"] for x in detections])
            detections = [{**x, "masks": mask} for x, mask in zip(detections, shares, strict=True)]
        return [{**x, "labels": x["labels"] - 1} for x in detections]

    def _stage(self, number: int) -> RoIHeads:
        return cast(RoIHeads, self.stages[number])


class AgnosticPredictor(nn.Module):
    """Class logits [r, k] and one correction [r, 4] of the box, whatever the class."""

    def __init__(self, width: int, *, num_classes: int) -> None:
        super().__init__()
        self.class_logits = nn.Linear(width, num_classes)
        self.box_deltas = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict both, in fp32 at least."""
        return in_full(self.class_logits(x)), in_full(self.box_deltas(x))


def _stage(number: int, *, config: DetectorConfig, width: int, num_classes: int) -> RoIHeads:
    return RoIHeads(
        RegionPool(BOX_SIDE),
        TwoMLPHead(width * BOX_SIDE**2, config.box_width),
        AgnosticPredictor(config.box_width, num_classes=num_classes + 1),
        STAGE_IOUS[number],
        STAGE_IOUS[number],
        config.roi_samples,
        POSITIVE_SHARE,
        STAGE_BOX_WEIGHTS[number],
        config.score_threshold,
        config.nms_threshold or 0.5,
        config.max_detections,
        **(mask_parts(width, num_classes=num_classes) if config.masks else {}),
    )


def _heads(
    stage: RoIHeads, groups: list[MapGroup], boxes: list[Tensor], sizes: Sequence[Size]
) -> tuple[Tensor, Tensor]:
    return stage.box_predictor(stage.box_head(stage.box_roi_pool(groups, boxes, sizes)))


def _box_loss(deltas: Tensor, true_deltas: Tensor, labels: Tensor) -> Tensor:
    positive = labels > 0
    total = F.smooth_l1_loss(deltas[positive], true_deltas[positive], beta=1 / 9, reduction="sum")
    return total / max(len(labels), 1)


def _mask_logits(stage: RoIHeads, groups: list[MapGroup], boxes: list[Tensor], sizes: Sequence[Size]) -> Tensor:
    assert stage.mask_roi_pool is not None
    assert stage.mask_head is not None
    assert stage.mask_predictor is not None
    return in_full(stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(groups, boxes, sizes))))


def _mask_loss(
    stage: RoIHeads,
    groups: list[MapGroup],
    boxes: list[Tensor],
    matched: list[Tensor],
    labels: list[Tensor],
    sizes: Sequence[Size],
    targets: list[dict[str, Tensor]],
) -> Tensor:
    positive = [label > 0 for label in labels]
    regions = [x[keep] for x, keep in zip(boxes, positive, strict=True)]
    numbers = [x[keep] for x, keep in zip(matched, positive, strict=True)]
    logits = _mask_logits(stage, groups, regions, sizes)
    masks, classes = [t["masks"] for t in targets], [t["labels"] for t in targets]
    return maskrcnn_loss(logits, regions, masks, classes, numbers)


@torch.no_grad()
def _refined(stage: RoIHeads, deltas: Tensor, boxes: list[Tensor], sizes: Sequence[Size]) -> list[Tensor]:
    """Correct each image's boxes as a stage says, and clip them to the image."""
    if not len(deltas):  # which torchvision's decoder does not split into boxes
        return boxes
    decoded = stage.box_coder.decode(deltas, boxes)[:, 0].split([len(x) for x in boxes])
    return [clip_boxes_to_image(x, size) for x, size in zip(decoded, sizes, strict=True)]


def _without_truth(refined: Tensor, regions: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Leave out empty boxes and those that correct the true ones, which the next stage is given anyway."""
    truth = target["boxes"].to(regions)
    is_truth = (regions[:, None] == truth[None]).all(2).any(1)
    others = refined[~is_truth]
    return others[remove_small_boxes(others, SMALLEST_PX)]


def _logit_of_mean(logits: Tensor) -> Tensor:
    """Logits of the mean of the stages' shares; torchvision takes their sigmoid again."""
    return torch.logit(logits.sigmoid().mean(0), eps=1e-6)
