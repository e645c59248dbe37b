"""Detectors as a run left them, for measuring and predicting."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from engine.pixels import Pixels
from engine.recipe import restore
from finetune.detection.config import DetectConfig
from finetune.detection.model import build_plain
from finetune.detection.task import PROGRAM
from finetune.network.weights import Weights, described_start, find_weights
from finetune.prediction import pick_weights


@dataclass(frozen=True, kw_only=True)
class TrainedDetector:
    """One set of weights with what it needs to be used."""

    name: str
    """Which weights: raw, ema, best raw or best ema."""
    step: int
    """Optimizer steps they had."""
    network: nn.Module
    """The detector, in evaluation mode."""
    config: DetectConfig
    """The run's config."""
    pixels: Pixels
    """How its images are normalised."""
    classes: tuple[str, ...]
    """Names of the classes."""
    category_ids: tuple[int, ...]
    """COCO's category id of each class."""


def load_detector(path: Path, weights: str | None) -> TrainedDetector:
    """Return a detector with weights that :func:`finetune.network.weights.find_weights` finds.

    Raises:
        UserError: there are no such weights, or they are of another program.
    """
    found = find_weights(path, program=PROGRAM)
    return fill_detector(pick_weights(found, asked=weights, where=path))


def fill_detector(weights: Weights) -> TrainedDetector:
    """Return the detector that a checkpoint describes, with one set of its weights."""
    described = weights.described
    config, start = restore(DetectConfig, described["recipe"]), described_start(described)
    network = build_plain(config, start=start, num_classes=described["num_classes"])
    weights.fill(network)
    numbers = described["category_ids"] or range(1, described["num_classes"] + 1)
    return TrainedDetector(
        name=weights.name,
        step=weights.step,
        network=network.eval(),
        config=config,
        pixels=Pixels(start.mean, start.std),
        classes=tuple(described["classes"]),
        category_ids=tuple(numbers),
    )
