"""The form in which a one-stage detector is written with torch.export: raw pixels to all anchors, before suppression.

    images  uint8 [b, 3, h, w]  ->  boxes float32 [b, a, 4] in pixels (left, top, right, bottom),
                                    scores float32 [b, a, k]

``torchvision.ops.batched_nms`` on them gives the detections. Two-stage detectors suppress inside, between their stages,
so they have no such form.

Legend: b images, h w height and width in pixels, a anchors, k classes.
"""

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.pixels import Pixels
from engine.recipe import restore
from engine.terms import Size
from finetune.detection.config import DetectConfig
from finetune.detection.detectors.anchors import anchors_on
from finetune.detection.detectors.retinanet import RetinaNet
from finetune.detection.detectors.yolo import Yolo
from finetune.network.pyramid import MULTIPLE, round_up
from finetune.network.weights import Trained
from finetune.task import Exportable


def exportable(trained: Trained, *, size: Size | None) -> Exportable:
    """Make a detector without its suppression, for the run's letterbox or short side squared where no size is given.

    Raises:
        UserError: it has two stages, or the size is no multiple of 32.
    """
    resize = restore(DetectConfig, trained.metadata["recipe"]).resize
    side = round_up(resize.test_short_side)
    height, width = size or (resize.canvas if resize.mode == "letterbox" else (side, side))
    if height % MULTIPLE or width % MULTIPLE:
        raise UserError(f"export: a detector takes sides that are multiples of {MULTIPLE} px, got {height}x{width}")
    network = dense_boxes(trained.network, pixels=trained.pixels, size=(height, width)).eval()
    return Exportable(network=network, size=(height, width), outputs=("boxes", "scores"), format="pt2")


def dense_boxes(detector: nn.Module, *, pixels: Pixels, size: Size) -> nn.Module:
    """Make a detector a module from raw pixels to the boxes and scores of all anchors.

    Raises:
        UserError: it has two stages.
    """
    if isinstance(detector, RetinaNet):
        return _RetinaNetBoxes(detector, pixels=pixels, size=size)
    if isinstance(detector, Yolo):
        return _YoloBoxes(detector, pixels=pixels)
    raise UserError(
        f"export: {type(detector).__name__} suppresses boxes between its stages, so it cannot be written without that; "
        "export a retinanet or yolo"
    )


class _RetinaNetBoxes(nn.Module):
    def __init__(self, detector: RetinaNet, *, pixels: Pixels, size: Size) -> None:
        super().__init__()
        self.detector, self.pixels = detector, pixels
        with torch.no_grad():
            (group,) = detector.features(torch.zeros(1, 3, *size))
            grid = anchors_on(group.maps, detector.anchors, strides=detector.features.strides)
        self.register_buffer("grid", torch.cat(grid))
        self.grid: Tensor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        (group,) = self.detector.features(self.pixels(images))
        outputs = self.detector.head(group.maps)
        decode = self.detector.box_coder.decode_single
        boxes = torch.stack([decode(deltas, self.grid) for deltas in outputs["bbox_regression"]])
        return boxes, outputs["cls_logits"].sigmoid()


class _YoloBoxes(nn.Module):
    def __init__(self, detector: Yolo, *, pixels: Pixels) -> None:
        super().__init__()
        self.detector, self.pixels = detector, pixels

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        flat, boxes, _ = self.detector.dense(self.pixels(images))
        return boxes, flat[..., 4:5].sigmoid() * flat[..., 5:].sigmoid()
