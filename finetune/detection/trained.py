"""Detectors as a run left them: from a run folder or a checkpoint, for measuring and predicting."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from engine.checkpoint import Checkpoint, newest_checkpoint, open_checkpoint
from engine.pixels import Pixels
from engine.recipe import restore
from engine.slices import Kind
from finetune.detection.config import DetectConfig
from finetune.detection.detector import build_plain
from finetune.detection.trainer import PROGRAM
from finetune.start import Start


@dataclass(frozen=True, kw_only=True)
class TrainedDetector:
    """One set of weights with what it needs to be used."""

    name: str
    """Which weights: raw or ema."""
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


def find_detectors(path: Path) -> Iterator[TrainedDetector]:
    """Yield the raw and, if there are any, the averaged weights of a run folder's newest checkpoint, or of a checkpoint.

    Raises:
        ValueError: there is no such checkpoint, or it is not of a detection run.
    """
    checkpoint = newest_checkpoint(path / "checkpoints") if (path / "checkpoints").is_dir() else open_checkpoint(path)
    if checkpoint is None:
        raise ValueError(f"the run {path} has no checkpoint yet; expected one in {path / 'checkpoints'}")
    if checkpoint.state.get("program") != PROGRAM:
        raise ValueError(
            f"{checkpoint.path} is no checkpoint of a detection run but of {checkpoint.state.get('program', 'pretraining')}"
        )
    yield _load(checkpoint, name="raw", kind="weight")
    if checkpoint.names("ema"):
        yield _load(checkpoint, name="ema", kind="ema")


def _load(checkpoint: Checkpoint, *, name: str, kind: Kind) -> TrainedDetector:
    state = checkpoint.state
    config = restore(DetectConfig, state["recipe"])
    mean, std = ((float(red), float(green), float(blue)) for red, green, blue in (state["mean"], state["std"]))
    start = Start(
        architecture=state["architecture"],
        model_args=state["model_args"],
        img_size=(state["img_size"][0], state["img_size"][1]),
        mean=mean,
        std=std,
        folder=None,
    )
    network = build_plain(config, start=start, num_classes=len(state["classes"]))
    checkpoint.load_weights(network, kind=kind, architecture=f"{config.detector.kind} on {start.architecture}")
    numbers = state["category_ids"] or range(1, len(state["classes"]) + 1)
    return TrainedDetector(
        name=name,
        step=checkpoint.step,
        network=network.eval(),
        config=config,
        pixels=Pixels(mean, std),
        classes=tuple(state["classes"]),
        category_ids=tuple(numbers),
    )
