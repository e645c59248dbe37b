"""Writes a one-stage detector with torch.export: raw pixels to the boxes and scores of all anchors, before suppression.

    images  uint8 [b, 3, h, w]  ->  boxes float32 [b, a, 4] in pixels (left, top, right, bottom), scores float32 [b, a, k]

``torchvision.ops.batched_nms`` on them gives the detections. Two-stage detectors suppress inside, between their stages, so
they have no such form.

Legend: b images, h w height and width in pixels, a anchors, k classes.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.pixels import Pixels
from engine.terms import Size
from finetune.detection.detectors.anchors import anchors_on
from finetune.detection.detectors.retinanet import RetinaNet
from finetune.detection.detectors.yolo import Yolo
from finetune.detection.trained import load_detector
from finetune.network.pyramid import MULTIPLE
from finetune.network.weights import choose_weights

SUFFIX = ".pt2"
MOST_OFF = 1e-3


def export_detector(run: Path, file: Path, *, size: Size | None = None, weights: str | None = None) -> float:
    """Write the detector of a run or checkpoint, and return the largest difference that the written file shows from it.

    Args:
        run: folder of a run, a checkpoint or best weights.
        file: where to; its name ends in .pt2.
        size: height and width in pixels, multiples of 32; None is the run's letterbox, or its short side squared.
        weights: one of :data:`finetune.network.weights.CHOICES`; None is raw, or the best where ``run`` holds those.

    Raises:
        UserError: it has two stages, no such weights, or the size or the file's name does not fit.
    """
    trained = load_detector(*choose_weights(run, weights))
    resize = trained.config.resize
    side = -(-resize.test_short_side // MULTIPLE) * MULTIPLE
    height, width = size or (resize.canvas if resize.mode == "letterbox" else (side, side))
    if height % MULTIPLE or width % MULTIPLE:
        raise UserError(f"export: a detector takes sides that are multiples of {MULTIPLE} px, got {height}x{width}")
    if file.suffix != SUFFIX:
        raise UserError(f"export: a detector is written with torch.export, as a file ending in {SUFFIX}, got {file}")
    network = dense_boxes(trained.network, pixels=trained.pixels, size=(height, width)).eval()
    images = torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        torch.export.save(torch.export.export(network, (images,), strict=False), file)
        written = torch.export.load(file).module()(images)
        off = max(float((ours - theirs).abs().max()) for ours, theirs in zip(network(images), written, strict=True))
    if off > MOST_OFF:
        raise UserError(f"{file} differs by {off:.1e} from the detector, at most {MOST_OFF:.0e} is expected")
    return off


def dense_boxes(detector: nn.Module, *, pixels: Pixels, size: Size) -> nn.Module:
    """Return a detector as a module from raw pixels to the boxes and scores of all anchors.

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
        found = self.detector.head(group.maps)
        decode = self.detector.box_coder.decode_single
        boxes = torch.stack([decode(deltas, self.grid) for deltas in found["bbox_regression"]])
        return boxes, found["cls_logits"].sigmoid()


class _YoloBoxes(nn.Module):
    def __init__(self, detector: Yolo, *, pixels: Pixels) -> None:
        super().__init__()
        self.detector, self.pixels = detector, pixels

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        flat, boxes, _ = self.detector.dense(self.pixels(images))
        return boxes, flat[..., 4:5].sigmoid() * flat[..., 5:].sigmoid()
