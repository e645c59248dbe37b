"""Segmenters that were trained: what a checkpoint says of one, and how it is made again from a run or a checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from backbones.handoff import write_backbone
from engine.checkpoint import Checkpoint, newest_checkpoint, open_checkpoint
from engine.pixels import Statistics
from engine.recipe import parse, plain
from engine.slices import Kind
from finetune.pyramid import dense_start
from finetune.segmentation.config import SegmentConfig
from finetune.segmentation.labelled_shards import LabelledShards
from finetune.segmentation.segmenter import Segmenter, bare_segmenter
from finetune.start import Start

PROGRAM = "segment"
NETWORK = "features.network."


@dataclass(frozen=True, kw_only=True)
class TrainedSegmenter:
    """A network with its weights and what it needs to be used."""

    name: str
    """Which weights it has: raw or ema."""
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
    dense = dense_start(start, largest=config.augment.crop)
    return {
        "program": PROGRAM,
        "architecture": start.architecture,
        "model_args": plain(dense.model_args),
        "num_classes": labelled.num_classes,
        "classes": plain(labelled.classes),
        "img_size": list(start.img_size),
        "mean": list(start.mean),
        "std": list(start.std),
        "manifest_digest": labelled.train.manifest.digest,
        "shards_per_folder": [len(part) for part in labelled.train.parts],
        "recipe": plain(config),
    }


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


def load_trained(path: Path) -> Iterator[TrainedSegmenter]:
    """Yield the segmenters of a run folder (its newest checkpoint) or of a checkpoint folder: raw and averaged weights.

    Raises:
        ValueError: there is no checkpoint, or it is of another program.
    """
    checkpoint = newest_checkpoint(path / "checkpoints") if (path / "checkpoints").is_dir() else open_checkpoint(path)
    if checkpoint is None:
        raise ValueError(f"the run {path} has no checkpoint yet; expected one in {path / 'checkpoints'}")
    if checkpoint.state.get("program") != PROGRAM:
        raise ValueError(f"{checkpoint.path} is a checkpoint of another program; expected one of --task segment")
    kinds: dict[str, Kind] = {"raw": "weight", **({"ema": "ema"} if checkpoint.names("ema") else {})}
    for name, kind in kinds.items():
        yield _from_checkpoint(checkpoint, name=name, kind=kind)


def _from_checkpoint(checkpoint: Checkpoint, *, name: str, kind: Kind) -> TrainedSegmenter:
    state = checkpoint.state
    config = parse(SegmentConfig, ["--recipe", str(checkpoint.path.parents[1] / "config.yaml")])
    start = Start(
        architecture=state["architecture"],
        model_args=state["model_args"],
        img_size=tuple(state["img_size"]),
        mean=_three(state["mean"]),
        std=_three(state["std"]),
        folder=None,
    )
    bare = replace(config, backbone=replace(config.backbone, drop_path=0.0))
    segmenter = bare_segmenter(bare, start=start, num_classes=state["num_classes"])
    checkpoint.load_weights(segmenter, kind=kind, architecture=start.architecture)
    names = state["classes"] or map(str, range(state["num_classes"]))
    return TrainedSegmenter(
        name=name, step=checkpoint.step, segmenter=segmenter.eval(), config=config, classes=tuple(names)
    )


def _three(values: Any) -> Statistics:
    red, green, blue = values
    return float(red), float(green), float(blue)
