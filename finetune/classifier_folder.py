"""Hands a fine-tuned network off as a folder that timm reads, classifier included."""

from pathlib import Path
from typing import Any

from torch import Tensor

from backbones.handoff import classifiers, skeleton, write_backbone
from engine.recipe import plain
from finetune.config import FinetuneConfig
from finetune.head import plain_classifier
from finetune.labelled_shards import LabelledShards
from finetune.start import Start


def describe_network(config: FinetuneConfig, *, start: Start, labelled: LabelledShards) -> dict[str, Any]:
    """Return what a checkpoint says about its network, enough to build it again."""
    return {
        "program": "finetune",
        "architecture": start.architecture,
        "model_args": plain(start.model_args),
        "method": config.task.method,
        "num_classes": labelled.num_classes,
        "classes": plain(labelled.classes),
        "img_size": list(start.img_size),
        "mean": list(start.mean),
        "std": list(start.std),
        "manifest_digest": labelled.train.manifest.digest,
        "shards_per_folder": [len(part) for part in labelled.train.parts],
        "recipe": plain(config),
    }


def write_classifier(
    folder: Path, *, described: dict[str, Any], state: dict[str, Tensor], step: int, weights: str
) -> None:
    """Write the network that ``described`` names with the weights of ``state``.

    Args:
        folder: where to.
        described: what ``describe_network`` said.
        state: all weights and buffers; a linear probe's BatchNorm becomes part of the classifier.
        step: optimizer steps the weights had.
        weights: which they are, such as "last raw".
    """
    name, args = described["architecture"], described["model_args"]
    (head,) = classifiers(skeleton(name, **args))
    kept = ("method", "classes", "manifest_digest", "recipe")
    write_backbone(
        folder,
        architecture=name,
        model_args=args,
        state=plain_classifier(state, name=head),
        mean=described["mean"],
        std=described["std"],
        num_classes=described["num_classes"],
        img_size=tuple(described["img_size"]),
        provenance={**{key: described[key] for key in kept}, "step": step, "weights": weights},
    )
