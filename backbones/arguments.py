"""A config's sizes as arguments of timm's families, of which one calls depths what another calls depth."""

from collections.abc import Callable
from typing import Any

import timm

from backbones.config import BackboneConfig, SecConfig
from backbones.sizes import NUM_STAGES
from backbones.zoo import ZOO
from engine.errors import UserError


def timm_arguments(config: BackboneConfig) -> dict[str, Any]:
    """Return what timm has to be told so that the architecture gets the sizes of ``config``.

    Raises:
        UserError: the architecture has no such size.
    """
    sizes = {
        "img_size": config.img_size,
        "window_size": config.window,
        "embed_dim": config.embed_dim,
        "depths": config.depths,
        "num_heads": config.num_heads,
    }
    given = {key: value for key, value in sizes.items() if value is not None}
    family = _family(config.name)
    return _FAMILIES.get(family, dict)(given | _sec_options(config, family))


def takes_img_size(name: str) -> bool:
    """Return whether timm makes an architecture for one size of images."""
    return "img_size" in timm_arguments(BackboneConfig(name=name))


def _sec_options(config: BackboneConfig, family: str) -> dict[str, Any]:
    options = {key: value for key, value in vars(config.sec).items() if value is not None}
    refused = sorted(options.keys() - _SEC_FAMILIES.get(family, frozenset()))
    if refused:
        names = ", ".join(f"backbone.sec.{key.replace('_', '-')}" for key in refused)
        raise UserError(f"{names}: {config.name} has no such option; leave it out")
    return options


def _family(name: str) -> str:
    """Return the module of an architecture, without its package."""
    entry = next((entry.module for entry in ZOO if name in entry.names), None)
    if entry is None:
        entry = timm.model_entrypoint(name).__module__ if timm.is_model(name) else ""
    return entry.rpartition(".")[2]


def _vit(sizes: dict[str, Any]) -> dict[str, Any]:
    _refuse(sizes, "window_size", option="window", family="a plain ViT")
    for key in ("depths", "num_heads"):
        if len(sizes.get(key, (1,))) != 1:
            option = f"backbone.{key.replace('_', '-')}"
            raise UserError(f"{option}: a plain ViT has one stage, so one number is expected, got {sizes[key]}")
    names = {"depths": "depth"}
    return {names.get(key, key): value[0] if key in ("depths", "num_heads") else value for key, value in sizes.items()}


def _twins(sizes: dict[str, Any]) -> dict[str, Any]:
    found = dict(sizes)
    if "window_size" in found:
        found["wss"] = (found.pop("window_size"),) * NUM_STAGES
    if "embed_dim" in found:
        found["embed_dims"] = _doubled(found.pop("embed_dim"))
    return found


def _convnext(sizes: dict[str, Any]) -> dict[str, Any]:
    _refuse(sizes, "window_size", option="window", family="a ConvNeXt")
    _refuse(sizes, "num_heads", option="num-heads", family="a ConvNeXt")
    found = dict(sizes)
    if len(found.get("depths", (1,) * NUM_STAGES)) != NUM_STAGES:
        raise UserError(
            f"backbone.depths: a ConvNeXt has {NUM_STAGES} stages, so {NUM_STAGES} numbers are expected, "
            f"got {len(found['depths'])}: {found['depths']}"
        )
    found.pop("img_size")  # it takes any, and no such argument
    if "embed_dim" in found:
        found["dims"] = _doubled(found.pop("embed_dim"))
    return found


def _xformer(sizes: dict[str, Any]) -> dict[str, Any]:
    _refuse(sizes, "window_size", option="window", family="XFormer")
    _refuse(sizes, "num_heads", option="num-heads", family="XFormer")
    found = dict(sizes)
    if "embed_dim" in found:
        found |= _xformer_widths(found.pop("embed_dim"))
    return found


def _xformer_widths(width: int) -> dict[str, Any]:
    """Return all widths in the proportions of the published network, which has 32 in the first stage."""
    if width % 2:
        raise UserError(f"backbone.embed-dim: XFormer's stem is half as wide as its first stage, got {width}; use even")
    half = width // 2
    return {
        "stem_width": half,
        "widths": tuple(width * i for i in (1, 2, 3, 4, 5)),
        "embed_dims": tuple(half * i for i in (9, 12, 15)),
        "qkv_dim": 3 * width,
        "num_features": 20 * width,
    }


def _without_windows(sizes: dict[str, Any]) -> dict[str, Any]:
    _refuse(sizes, "window_size", option="window", family="a backbone with attention in clusters")
    return sizes


def _doubled(width: int) -> tuple[int, ...]:
    """Return the widths of stages that double from one to the next."""
    return tuple(width * 2**stage for stage in range(NUM_STAGES))


def _refuse(sizes: dict[str, Any], key: str, *, option: str, family: str) -> None:
    if key in sizes:
        raise UserError(f"backbone.{option}: {family} has no such size, got {sizes[key]}; leave it out")


def _secvit(sizes: dict[str, Any]) -> dict[str, Any]:
    return sizes if sizes.get("attention") == "window" else _without_windows(sizes)


_SEC_PARTS = frozenset({"cpe", "lce", "rope", "clusters", "global_token"})
_SEC_FAMILIES: dict[str, frozenset[str]] = {
    "secvit": frozenset(vars(SecConfig())),
    "sec_swin": _SEC_PARTS,
    "faster_vit": _SEC_PARTS,
}
"""The options of `SecConfig` that a family has."""

_FAMILIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "vision_transformer": _vit,
    "twins": _twins,
    "convnext": _convnext,
    "xformer": _xformer,
    "secvit": _secvit,
    "sec_swin": _without_windows,
    "faster_vit": _without_windows,
}
