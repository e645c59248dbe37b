"""What of a network is not trained: without gradients, and as in evaluation (no drop path, fixed statistics)."""

from typing import Any, Literal, cast

from timm.models import group_parameters
from torch import nn

from backbones.weights.handoff import is_classifier
from engine.errors import UserError


def freeze(network: nn.Module, *, what: Literal["none", "backbone"] | int) -> None:
    """Freeze nothing, all but the head, or the stem and the first ``what`` stages.

    Stages are what timm's ``group_matcher`` counts; for networks without stages these are blocks.

    Raises:
        UserError: the network has fewer stages.
    """
    if what == "none":
        return
    stages = stage_numbers(network)
    last = max((n for name, n in stages.items() if not is_classifier(name, network)), default=0)
    if isinstance(what, int) and what >= last:
        raise UserError(
            f"task.freeze asks for {what} stages, {type(network).__name__} has {last - 1}; use backbone for all"
        )
    for name, parameter in network.named_parameters():
        in_backbone = not is_classifier(name, network)
        if in_backbone and (what == "backbone" or stages[name] <= what):
            parameter.requires_grad_(False)


def stage_numbers(network: nn.Module) -> dict[str, int]:
    """Number each parameter's stage: 0 for the stem, then 1, 2, ...; final norm and head come after the last."""
    matcher = cast(Any, network).group_matcher(coarse=True)
    return cast(dict[str, int], group_parameters(network, matcher, reverse=True))


def set_training_mode(network: nn.Module) -> None:
    """Put the network in training mode, and every part of it that is frozen in evaluation mode."""
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
