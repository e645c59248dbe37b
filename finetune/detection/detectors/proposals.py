"""Region proposals: torchvision's RPN, run once per rounded image size.

Legend: b images, a anchors of one image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from engine.terms import Size
from finetune.detection.config import DetectorConfig
from finetune.detection.detectors.anchors import RATIOS, anchors_on, make_anchors
from finetune.detection.detectors.feature_maps import in_full
from finetune.network.pyramid import MapGroup

ANCHOR_SCALE = 8.0
POSITIVE_IOU, NEGATIVE_IOU, SUPPRESSION_IOU = 0.7, 0.3, 0.7


class Proposals(nn.Module):
    """Where objects may be, of whatever class."""

    def __init__(self, config: DetectorConfig, *, width: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        before, after = ({"training": count, "testing": count} for count in config.proposals)
        after["training"] = config.proposals[0]
        self.rpn = RegionProposalNetwork(
            make_anchors(strides, scale=config.anchor_scale or ANCHOR_SCALE, octaves=1),
            RPNHead(width, len(RATIOS)),
            POSITIVE_IOU,
            NEGATIVE_IOU,
            config.anchor_samples,
            0.5,
            before,
            after,
            SUPPRESSION_IOU,
        )

    def forward(
        self, groups: list[MapGroup], *, sizes: Sequence[Size], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Propose each image's boxes [<= proposals, 4]; in training also return the losses."""
        num_images = len(sizes)
        boxes: dict[int, Tensor] = {}
        scores: dict[int, Tensor] = {}
        deltas: dict[int, Tensor] = {}
        anchors: dict[int, Tensor] = {}
        for group in groups:
            objectness, regression = self.rpn.head(group.maps)
            per_level = [x.shape[1] * x.shape[2] * x.shape[3] for x in objectness]
            flat, offsets = map(in_full, concat_box_prediction_layers(objectness, regression))
            grid = torch.cat(anchors_on(group.maps, self.rpn.anchor_generator, strides=self.strides))
            decoded = self.rpn.box_coder.decode(offsets.detach(), [grid] * len(group.rows)).view(len(group.rows), -1, 4)
            true = [sizes[row] for row in group.rows]
            best_boxes, _ = self.rpn.filter_proposals(decoded, flat, true, per_level)
            boxes |= dict(zip(group.rows, best_boxes, strict=True))
            scores |= dict(zip(group.rows, flat.view(len(group.rows), -1), strict=True))
            deltas |= dict(zip(group.rows, offsets.view(len(group.rows), -1, 4), strict=True))
            anchors |= dict.fromkeys(group.rows, grid)
        ordered = [boxes[row] for row in range(num_images)]
        if targets is None:
            return ordered, {}
        laid = [anchors[row] for row in range(num_images)]
        return ordered, self._losses(laid, torch.cat(_in_order(scores)), torch.cat(_in_order(deltas)), targets=targets)

    def _losses(
        self, anchors: list[Tensor], scores: Tensor, deltas: Tensor, *, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, targets)
        true_deltas = self.rpn.box_coder.encode(matched, anchors)
        objectness, regression = self.rpn.compute_loss(scores[:, None], deltas, labels, list(true_deltas))
        return {"proposal_class": objectness, "proposal_box": regression}


def _in_order(by_row: dict[int, Tensor]) -> list[Tensor]:
    return [by_row[row] for row in sorted(by_row)]
