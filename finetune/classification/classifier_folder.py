"""Hands a fine-tuned network off as a folder that timm reads, classifier included."""

from pathlib import Path
from typing import Any

from torch import Tensor

from backbones.weights.handoff import classifiers, skeleton, write_backbone
from finetune.classification.head import plain_classifier


def write_classifier(
    folder: Path, *, described: dict[str, Any], state: dict[str, Tensor], step: int, weights: str
) -> None:
    """Write the network that ``described`` names with the weights of ``state``.

    Args:
        folder: where to.
        described: what :func:`finetune.network.weights.describe` said, and the method.
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
