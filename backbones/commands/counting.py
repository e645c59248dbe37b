"""Count the size of an architecture that can be pretrained."""

from torch import nn

from backbones.build import layout_spec, pretrainable
from backbones.commands.counts import Counts
from backbones.weights.handoff import skeleton
from backbones.weights.model_size import measure_model
from engine.errors import UserError


def count(architecture: str) -> Counts | None:
    """Count timm's ``architecture`` at its own image size; None where it cannot be pretrained."""
    model = skeleton(architecture)
    try:
        spec = layout_spec(model)
    except UserError:
        return None
    size = measure_model(model)
    return Counts(
        parameters=size.parameters,
        macs=size.macs,
        img_size=size.img_size,
        strides=size.strides,
        unit=spec.unit,
        encoders=encoders(model),
    )


def encoders(model: nn.Module) -> tuple[str, ...]:
    """Name the values of ``mim.encoder`` that a network can be pretrained with."""
    return ("visible",) if pretrainable(model).dense is None else ("visible", "dense")
