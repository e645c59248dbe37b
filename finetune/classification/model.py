"""Classifiers: a timm network with its linear head, a BatchNorm before it for linear probes; built, and handed off."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backbones.ops.exact_windows import uneven_windows
from backbones.weights.handoff import classifiers, skeleton, write_backbone
from engine.distributed.batch_norm import step_batch_norm
from engine.errors import UserError
from finetune.classification.config import ClassifyConfig
from finetune.network.freezing import freeze
from finetune.network.start import Start, build_network
from finetune.network.weights import start_from

logger = logging.getLogger(__name__)

PROBE_NORM_EPS = 1e-6


def build_model(config: ClassifyConfig, *, start: Start, num_classes: int) -> nn.Module:
    """Build the network with its first weights, ready to be trained by the run's method."""
    linear = config.task.method == "linear"
    drop_path = 0.0 if linear else config.backbone.drop_path
    network = build_network(start, num_classes=num_classes, drop_path=drop_path, seed=config.run.seed)
    classifier_name(network)
    bare = skeleton(start.architecture, **start.model_args)
    if start.exact_windows and (uneven := uneven_windows(bare, start.img_size)):
        logger.warning("%s (--backbone.windows timm trains with timm's)", uneven)
    if linear:
        network = add_probe_norm(network)
    freeze(network, what="backbone" if linear else config.task.freeze)
    return network


def build_bare(metadata: Mapping[str, Any]) -> nn.Module:
    """Build the network that a checkpoint describes with random weights, to load others into."""
    network = build_network(start_from(metadata), num_classes=metadata["num_classes"])
    return step_batch_norm(add_probe_norm(network)) if metadata["method"] == "linear" else network


def classifier_name(network: nn.Module) -> str:
    """Name the network's linear classifier, such as ``head.fc``.

    Raises:
        UserError: timm names none, or several.
    """
    name = network.pretrained_cfg.get("classifier")  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    if not isinstance(name, str):
        raise UserError(f"{type(network).__name__} has no single classifier that could be trained (timm says {name})")
    return name


def add_probe_norm(network: nn.Module) -> nn.Module:
    """Put a BatchNorm without scale and shift before the classifier, in place, and return the network."""
    name = classifier_name(network)
    linear = network.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    norm = nn.BatchNorm1d(linear.in_features, affine=False, eps=PROBE_NORM_EPS)
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, nn.Sequential(norm, linear))
    return network


def plain_classifier(state: dict[str, Tensor], *, name: str) -> dict[str, Tensor]:
    """Fold the probe's BatchNorm, if there is one, into an ordinary linear classifier.

    W (x - mean) / std + b = (W / std) x + (b - (W / std) mean).
    """
    inner = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    if "0.running_mean" not in inner:
        return state
    scale = (inner["0.running_var"].double() + PROBE_NORM_EPS).rsqrt()
    weight = inner["1.weight"].double() * scale
    bias = inner["1.bias"].double() - weight @ inner["0.running_mean"].double()
    others: dict[str, Any] = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
    dtype = inner["1.weight"].dtype
    return {**others, f"{name}.weight": weight.to(dtype), f"{name}.bias": bias.to(dtype)}


def write_classifier(
    folder: Path, *, metadata: Mapping[str, Any], state: dict[str, Tensor], step: int, weights: str
) -> None:
    """Hand a trained network off as a folder that timm reads, classifier included.

    Args:
        folder: where to.
        metadata: of the network, as a checkpoint has it.
        state: all weights and buffers; a linear probe's BatchNorm becomes part of the classifier.
        step: optimizer steps the weights had.
        weights: which they are, such as "last raw".
    """
    name, model_args = metadata["architecture"], metadata["model_args"]
    (head,) = classifiers(skeleton(name, **model_args))
    origin = {key: metadata[key] for key in ("method", "classes", "manifest_digest", "recipe", "windows")}
    write_backbone(
        folder,
        architecture=name,
        model_args=model_args,
        state=plain_classifier(state, name=head),
        mean=metadata["mean"],
        std=metadata["std"],
        num_classes=metadata["num_classes"],
        img_size=tuple(metadata["img_size"]),
        crop_pct=metadata["recipe"]["evaluation"]["crop_ratio"],
        label_names=metadata["classes"],
        provenance={**origin, "step": step, "weights": weights},
    )
