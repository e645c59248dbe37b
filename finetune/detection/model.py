"""Makes the detector of a run: its backbone's pyramid, and what stands on it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from engine.distributed.batch_norm import step_batch_norm
from engine.randomness import torch_seed
from engine.recipe import restore
from engine.terms import Size
from finetune.detection.config import DetectConfig, largest_size, norm_is_frozen
from finetune.detection.registry import DETECTORS
from finetune.network.pyramid import build_pyramid, freeze_batch_norm
from finetune.network.start import Start
from finetune.network.weights import start_from


class Detector(Protocol):
    """A network that finds objects."""

    def __call__(
        self, images: Tensor, sizes: Sequence[Size], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute losses by name where there are ``targets``, else detect, image by image, in pixels of its canvas.

        Args:
            images: normalised, [b, 3, h, w], each in the top-left corner of its canvas.
            sizes: true height and width of each.
            targets: for each image ``boxes`` [n, 4] (left, top, right, bottom in pixels), ``labels`` [n] from 0, and
                ``masks`` [n, h, w] where the detector finds masks; detections have ``scores`` [n] beside them.
        """
        ...


def build_model(config: DetectConfig, *, start: Start, num_classes: int) -> nn.Module:
    """Build the detector of a run with its first weights.

    Raises:
        UserError: the weights do not fit, or the backbone lacks a map.
    """
    entry = DETECTORS[config.detector.kind]
    pyramid = build_pyramid(
        start,
        strides=entry.strides,
        drop_path=config.backbone.drop_path,
        seed=config.run.seed,
        largest=largest_size(config.resize),
    )
    if norm_is_frozen(config):
        freeze_batch_norm(pyramid.network)
    make = entry.load()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(torch_seed(config.run.seed, "detector"))
        return make(pyramid, config=config, num_classes=num_classes)


def build_bare(metadata: Mapping[str, Any]) -> nn.Module:
    """Build the detector that a checkpoint describes with random weights, its BatchNorm as in training."""
    config, start = restore(DetectConfig, metadata["recipe"]), start_from(metadata)
    return step_batch_norm(build_model(config, start=start, num_classes=metadata["num_classes"]))


def backbone_state(detector_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pick the weights of the backbone alone, under its own names, from those of a detector."""
    marker = "pyramid.network."
    return {name.partition(marker)[2]: value for name, value in detector_state.items() if marker in name}


def run_detector(detector: nn.Module, images: Tensor, sizes: Sequence[Size]) -> list[dict[str, Tensor]]:
    """Detect in normalised images [b, 3, h, w] with these true sizes on their canvas."""
    return cast(list[dict[str, Tensor]], cast(Detector, detector)(images, sizes))
