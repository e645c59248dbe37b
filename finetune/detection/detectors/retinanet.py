"""RetinaNet (Lin et al., arXiv 1708.02002): torchvision's head, matcher and post-processing on any backbone's pyramid.

Legend: b images, a anchors of one image, k classes.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet as tv
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou

from engine.terms import Size
from finetune.detection.config import DetectConfig
from finetune.detection.detectors.anchors import RATIOS, anchors_on, make_anchors
from finetune.detection.detectors.feature_maps import FeatureMaps, in_full
from finetune.network.pyramid import Pyramid

ANCHOR_SCALE, OCTAVES = 4.0, 3
POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4
CANDIDATES = 1000


class RetinaNet(nn.Module):
    """Boxes and classes from every cell of five maps."""

    def __init__(self, pyramid: Pyramid, *, config: DetectConfig, num_classes: int) -> None:
        super().__init__()
        own = config.detector
        width = own.width or 256
        self.features = FeatureMaps(pyramid, width=width, above="convolutions")
        self.anchors = make_anchors(self.features.strides, scale=own.anchor_scale or ANCHOR_SCALE, octaves=OCTAVES)
        self.head = tv.RetinaNetHead(width, OCTAVES * len(RATIOS), num_classes)
        self.matcher = Matcher(POSITIVE_IOU, NEGATIVE_IOU, allow_low_quality_matches=True)
        # the names that torchvision's post-processing reads
        self.box_coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self.score_thresh, self.nms_thresh = own.score_threshold, own.nms_threshold or 0.5
        self.topk_candidates, self.detections_per_img = CANDIDATES, own.max_detections

    def forward(
        self, images: Tensor, sizes: Sequence[Size], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute losses where there are ``targets``, else detect: each image's boxes, scores and labels."""
        logits: dict[int, Tensor] = {}
        deltas: dict[int, Tensor] = {}
        anchors: dict[int, list[Tensor]] = {}
        for group in self.features(images, sizes):
            outputs_of_group = self.head(group.maps)
            logits |= dict(zip(group.rows, in_full(outputs_of_group["cls_logits"]), strict=True))
            deltas |= dict(zip(group.rows, in_full(outputs_of_group["bbox_regression"]), strict=True))
            grid = anchors_on(group.maps, self.anchors, strides=self.features.strides)
            anchors |= dict.fromkeys(group.rows, grid)
        rows = range(len(images))
        if targets is None:
            return [self._detect(logits[row], deltas[row], anchors[row], size=sizes[row]) for row in rows]
        laid = [torch.cat(anchors[row]) for row in rows]
        matched = [self._match(*pair) for pair in zip(laid, targets, strict=True)]
        outputs = {"cls_logits": [logits[row] for row in rows], "bbox_regression": [deltas[row] for row in rows]}
        losses = self.head.compute_loss(targets, cast(Any, outputs), laid, matched)
        return {"class": losses["classification"], "box": losses["bbox_regression"]}

    def _match(self, anchors: Tensor, target: dict[str, Tensor]) -> Tensor:
        if not len(target["boxes"]):
            return torch.full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, dtype=torch.int64, device=anchors.device)
        return self.matcher(box_iou(target["boxes"].to(anchors), anchors))

    def _detect(self, logits: Tensor, deltas: Tensor, anchors: list[Tensor], *, size: Size) -> dict[str, Tensor]:
        counts = [len(level) for level in anchors]
        outputs = {"cls_logits": [x[None] for x in logits.split(counts)]}
        outputs["bbox_regression"] = [x[None] for x in deltas.split(counts)]
        return tv.RetinaNet.postprocess_detections(cast(Any, self), outputs, [anchors], [size])[0]
