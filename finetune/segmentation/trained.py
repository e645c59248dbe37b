"""Segmenters that were trained: what a checkpoint says of one, and how it is made again from a run or a checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from backbones.weights.handoff import write_backbone
from engine.recipe import restore
from finetune.network.pyramid import dense_start
from finetune.network.start import Start
from finetune.network.weights import Weights, describe, described_start, find_weights
from finetune.prediction import pick_weights
from finetune.segmentation.config import SegmentConfig
from finetune.segmentation.data import LabelledShards
from finetune.segmentation.model import Segmenter, bare_segmenter

PROGRAM = "segment"
NETWORK = "features.network."


@dataclass(frozen=True, kw_only=True)
class TrainedSegmenter:
    """A network with its weights and what it needs to be used."""

    name: str
    """Which weights it has: raw, ema, best raw or best ema."""
    step: int
    """Optimizer steps they had."""
    segmenter: Segmenter
    """The network, in evaluation mode."""
    config: SegmentConfig
    """The recipe it was trained with."""
    classes: tuple[str, ...]
    """What it tells apart; numbers where the shards had no names."""


def describe_segmenter(config: SegmentConfig, *, start: Start, labelled: LabelledShards) -> dict[str, Any]:
    """Return what a checkpoint says about its network, enough to build it again."""
    dense = replace(start, model_args=dense_start(start, largest=config.augment.crop).model_args)
    known = {"train": labelled.train, "classes": labelled.classes, "num_classes": labelled.num_classes}
    return describe(PROGRAM, config, start=dense, **known)


def hand_off_backbone(
    folder: Path, *, described: dict[str, Any], state: dict[str, Tensor], step: int, weights: str
) -> None:
    """Write the segmenter's backbone with the weights of ``state`` as a folder that timm reads, without the head."""
    network = {name.removeprefix(NETWORK): value for name, value in state.items() if name.startswith(NETWORK)}
    kept = ("classes", "manifest_digest", "recipe")
    write_backbone(
        folder,
        architecture=described["architecture"],
        model_args=described["model_args"],
        state=network,
        mean=described["mean"],
        std=described["std"],
        provenance={**{key: described[key] for key in kept}, "step": step, "weights": weights},
    )


def load_trained(path: Path, weights: str | None) -> TrainedSegmenter:
    """Return a segmenter with weights that :func:`finetune.network.weights.find_weights` finds.

    Raises:
        UserError: there are no such weights, or they are of another program.
    """
    found = find_weights(path, program=PROGRAM)
    return fill_segmenter(pick_weights(found, asked=weights, where=path))


def fill_segmenter(weights: Weights, *, score_stride: int | None = None) -> TrainedSegmenter:
    """Return the segmenter that a checkpoint describes, with one set of its weights; ``score_stride`` None keeps the run's."""
    described = weights.described
    config = restore(SegmentConfig, described["recipe"])
    if score_stride is not None:
        config = replace(config, segmenter=replace(config.segmenter, score_stride=score_stride))
    bare = replace(config, backbone=replace(config.backbone, drop_path=0.0))
    segmenter = bare_segmenter(bare, start=described_start(described), num_classes=described["num_classes"])
    weights.fill(segmenter)
    names = described["classes"] or map(str, range(described["num_classes"]))
    return TrainedSegmenter(
        name=weights.name, step=weights.step, segmenter=segmenter.eval(), config=config, classes=tuple(names)
    )
