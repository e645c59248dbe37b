"""A config's sizes as arguments of timm's families, of which one calls depths what another calls depth."""

from typing import Any

import timm
from timm.models import get_pretrained_cfg

from backbones.config import BackboneConfig
from backbones.registry.lookup import backbone_named
from engine.errors import UserError


def timm_arguments(config: BackboneConfig) -> dict[str, Any]:
    """Say what timm has to be told so that the architecture gets the sizes of ``config``.

    Raises:
        UserError: the architecture has no such size or option.
    """
    backbone = backbone_named(config.name)
    options = _given(vars(config.sec))
    refused = sorted(options.keys() - (backbone.sec_options if backbone else frozenset()))
    if refused:
        names = ", ".join(f"backbone.sec.{key.replace('_', '-')}" for key in refused)
        raise UserError(f"{names}: {config.name} has no such option; leave it out")
    sizes = {
        "img_size": config.img_size,
        "window_size": config.window,
        "embed_dim": config.embed_dim,
        "depths": config.depths,
        "num_heads": config.num_heads,
    }
    arguments = _given(sizes) | options
    if backbone is not None:
        return backbone.arguments(arguments)
    published = get_pretrained_cfg(config.name) if timm.is_model(config.name) else None
    if published is not None and not published.fixed_input_size:
        del arguments["img_size"]  # such as a ResNet's: it takes any size and no such argument
    return arguments


def takes_img_size(name: str) -> bool:
    """Tell whether timm makes an architecture for one size of images."""
    return "img_size" in timm_arguments(BackboneConfig(name=name))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}
