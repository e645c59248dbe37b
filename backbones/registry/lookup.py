"""What is known of a network, or of the networks that timm makes by a name."""

import importlib

import timm
from torch import nn

from backbones.registry.backbone import Backbone
from backbones.registry.zoo import ZOO

_ANSWERS: dict[tuple[type[nn.Module], int], Backbone | None] = {}
"""By class, and by the number of backbones that were known. ``torch.compile`` follows no imports, so what it compiles
must find the answer here; whoever has made a visible layout of a network has asked."""


def backbones() -> tuple[Backbone, ...]:
    """List all backbones, those from outside last."""
    return tuple(map(_backbone_in, ZOO))


def backbone_of(model: nn.Module) -> Backbone | None:
    """Find what is known of a network; None if it is none of the backbones."""
    key = (type(model), len(ZOO))
    if key not in _ANSWERS:
        matches = (backbone for backbone in reversed(backbones()) if isinstance(model, backbone.network))
        _ANSWERS[key] = next(matches, None)
    return _ANSWERS[key]


def backbone_named(architecture: str) -> Backbone | None:
    """Find what is known of the networks that timm makes by a name; None if nothing is."""
    for module, entry in ZOO.items():
        if architecture in entry.names:
            return _backbone_in(module)
    if not timm.is_model(architecture):
        return None
    registered_by = timm.model_entrypoint(architecture).__module__
    return next((backbone for backbone in backbones() if backbone.network.__module__ == registered_by), None)


def _backbone_in(module: str) -> Backbone:
    return importlib.import_module(module).BACKBONE
