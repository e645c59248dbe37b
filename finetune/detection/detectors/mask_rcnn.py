"""Mask R-CNN (He et al., arXiv 1703.06870), or Faster R-CNN without masks: torchvision's heads on any pyramid.

Inside, class 0 is the background; what goes in and comes out counts classes from 0.

Legend: b images, n objects or detections of one image.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads

from engine.terms import Size
from finetune.detection.config import DetectConfig
from finetune.detection.detectors.feature_maps import FeatureMaps, RegionPool, in_full
from finetune.detection.detectors.proposals import Proposals
from finetune.network.pyramid import Pyramid

BOX_SIDE, MASK_SIDE = 7, 14
MASK_LAYERS = 4
POSITIVE_IOU, POSITIVE_SHARE = 0.5, 0.25
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
LOSS_NAMES = {"loss_classifier": "class", "loss_box_reg": "box", "loss_mask": "mask"}


class MaskRCNN(nn.Module):
    """Proposals, and on each a class, a box and a mask."""

    def __init__(self, pyramid: Pyramid, *, config: DetectConfig, num_classes: int) -> None:
        super().__init__()
        own = config.detector
        width = own.width or 256
        self.features = FeatureMaps(pyramid, width=width, above="pool")
        self.proposals = Proposals(own, width=width, strides=self.features.strides)
        self.regions = RoIHeads(
            RegionPool(BOX_SIDE),
            TwoMLPHead(width * BOX_SIDE**2, own.box_width),
            BoxPredictor(own.box_width, num_classes + 1),
            POSITIVE_IOU,
            POSITIVE_IOU,
            own.roi_samples,
            POSITIVE_SHARE,
            BOX_WEIGHTS,
            own.score_threshold,
            own.nms_threshold or 0.5,
            own.max_detections,
            **(mask_parts(width, num_classes=num_classes) if own.masks else {}),
        )

    def forward(
        self, images: Tensor, sizes: Sequence[Size], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute losses where there are ``targets``, else detect: boxes, scores, labels and masks [n, 1, 28, 28]."""
        groups = self.features(images, sizes)
        shifted = None if targets is None else [{**target, "labels": target["labels"] + 1} for target in targets]
        boxes, losses = self.proposals(groups, sizes=sizes, targets=shifted)
        detected, more = self.regions(groups, boxes, sizes, shifted)
        if targets is None:
            return [{**detections, "labels": detections["labels"] - 1} for detections in detected]
        return losses | {LOSS_NAMES[name]: value for name, value in more.items()}


class BoxPredictor(FastRCNNPredictor):
    """torchvision's class logits and boxes, in fp32 at least."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict both, one row a region."""
        logits, deltas = super().forward(x)
        return in_full(logits), in_full(deltas)


class MaskPredictor(MaskRCNNPredictor):
    """torchvision's mask logits, in fp32 at least."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Predict one map a class and region."""
        return in_full(super().forward(input))


def mask_parts(width: int, *, num_classes: int) -> dict[str, Any]:
    """Make what torchvision's RoI heads need to find masks."""
    return {
        "mask_roi_pool": RegionPool(MASK_SIDE),
        "mask_head": MaskRCNNHeads(width, (width,) * MASK_LAYERS, 1),
        "mask_predictor": MaskPredictor(width, width, num_classes + 1),
    }
