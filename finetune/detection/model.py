"""Makes the detector of a run: its backbone's pyramid, and what stands on it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from engine.distributed.batch_norm import step_batch_norm
from engine.randomness import torch_seed
from engine.terms import Size
from finetune.detection.config import DetectConfig, largest_size, norm_is_frozen
from finetune.detection.detectors.cascade import CascadeRCNN
from finetune.detection.detectors.mask_rcnn import MaskRCNN
from finetune.detection.detectors.retinanet import STRIDES as RETINANET_STRIDES
from finetune.detection.detectors.retinanet import RetinaNet
from finetune.detection.detectors.yolo import STRIDES as YOLO_STRIDES
from finetune.detection.detectors.yolo import Yolo
from finetune.network.pyramid import STRIDES, build_pyramid, freeze_batch_norm
from finetune.network.start import Start


class Detector(Protocol):
    """A network that finds objects."""

    def __call__(
        self, images: Tensor, sizes: Sequence[Size], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return losses by name where there are ``targets``, else detections by image, in pixels of its canvas."""
        ...


MAKERS: dict[str, tuple[tuple[int, ...], Callable[..., nn.Module]]] = {
    "retinanet": (RETINANET_STRIDES, RetinaNet),
    "mask_rcnn": (STRIDES, MaskRCNN),
    "cascade": (STRIDES, CascadeRCNN),
    "yolo": (YOLO_STRIDES, Yolo),
}
"""Strides of the backbone's maps, and the class, of each kind."""


def build_detector(config: DetectConfig, *, start: Start, num_classes: int) -> nn.Module:
    """Return the detector of a run with its first weights.

    Raises:
        UserError: the weights do not fit, or the backbone lacks a map.
    """
    strides, make = MAKERS[config.detector.kind]
    pyramid = build_pyramid(
        start,
        strides=strides,
        drop_path=config.backbone.drop_path,
        seed=config.run.seed,
        largest=largest_size(config.resize),
    )
    if norm_is_frozen(config):
        freeze_batch_norm(pyramid.network)
    options: dict[str, Any] = {"canvas": config.resize.canvas} if config.detector.kind == "yolo" else {}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(torch_seed(config.run.seed, "detector"))
        return make(pyramid, config=config.detector, num_classes=num_classes, **options)


def build_plain(config: DetectConfig, *, start: Start, num_classes: int) -> nn.Module:
    """Return the same detector to load other weights into, its BatchNorm as in training."""
    return step_batch_norm(build_detector(config, start=start, num_classes=num_classes))


def backbone_state(detector_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the backbone alone, under its own names, from those of a detector."""
    marker = "pyramid.network."
    return {name.partition(marker)[2]: value for name, value in detector_state.items() if marker in name}


def run_detector(detector: nn.Module, images: Tensor, sizes: Sequence[Size]) -> list[dict[str, Tensor]]:
    """Return the detections of normalised images [b, 3, h, w] with these sizes on their canvas."""
    return cast(list[dict[str, Tensor]], cast(Detector, detector)(images, sizes))
