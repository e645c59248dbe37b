"""A detector from outside the packages: FCOS (Tian et al., arXiv 1904.01355), with torchvision's head and rules.

python finetune/main.py --extension examples/extensions/detector.py --detector.kind fcos --data.shards DIR ...
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection import fcos
from torchvision.models.detection.anchor_utils import AnchorGenerator

from engine.terms import Size
from finetune.detection.config import DetectConfig
from finetune.detection.detectors.anchors import anchors_on
from finetune.detection.detectors.feature_maps import FeatureMaps, in_full
from finetune.detection.registry import DETECTORS, DetectorEntry
from finetune.network.pyramid import Pyramid


class Fcos(nn.Module):
    """A box from every cell of five maps whose centre lies in an object; losses are means over the images."""

    def __init__(self, pyramid: Pyramid, *, config: DetectConfig, num_classes: int) -> None:
        super().__init__()
        own, width = config.detector, config.detector.width or 256
        self.features = FeatureMaps(pyramid, width=width, above="convolutions")
        self.cells = AnchorGenerator(tuple((stride,) for stride in self.features.strides), ((1.0,),) * 5)
        self.head = fcos.FCOSHead(width, 1, num_classes)
        # the names that torchvision's rules read
        self.center_sampling_radius, self.topk_candidates, self.box_coder = 1.5, 1000, self.head.box_coder
        self.score_thresh, self.nms_thresh = own.score_threshold, own.nms_threshold or 0.6
        self.detections_per_img = own.max_detections

    def forward(
        self, images: Tensor, sizes: Sequence[Size], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return the losses where there are ``targets``, else each image's boxes, scores and labels."""
        answers: dict[int, dict[str, Tensor]] = {}
        for group in self.features(images, sizes):
            outputs = {name: in_full(x) for name, x in self.head(group.maps).items()}
            cells = anchors_on(group.maps, self.cells, strides=self.features.strides)
            counts = [len(level) for level in cells]
            for place, row in enumerate(group.rows):
                mine: dict[str, Any] = {name: x[place : place + 1] for name, x in outputs.items()}
                if targets is None:
                    levels = {name: list(x.split(counts, dim=1)) for name, x in mine.items()}
                    detect = fcos.FCOS.postprocess_detections
                    answers[row] = detect(cast(Any, self), levels, [cells], [sizes[row]])[0]
                else:
                    compare = fcos.FCOS.compute_loss
                    answers[row] = compare(cast(Any, self), [targets[row]], mine, [torch.cat(cells)], counts)
        ordered = [answers[row] for row in range(len(images))]
        if targets is None:
            return ordered
        return {name: torch.stack([losses[name] for losses in ordered]).mean() for name in ordered[0]}


DETECTORS["fcos"] = DetectorEntry(make=Fcos, strides=(8, 16, 32))
