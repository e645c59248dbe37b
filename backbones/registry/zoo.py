"""The backbones of this package, and timm's names of those whose networks are written here.

``import backbones`` is all that ``timm.create_model("secvit_tiny")`` needs, and yet programs without torch import the
configs and pure functions of this package. So the names are registered when timm is imported, before or after this
package, and a network's module is imported when one is made.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Described:
    """What timm wants to know of networks that are written here."""

    first_conv: str
    """The layer that takes the channels of images."""
    classifier: str = "head"
    side: int = 224
    """Height and width in pixels of the images that they are published for."""
    crop_pct: float = 0.875
    """The share of a validation image's shorter side that is looked at."""

    def config(self) -> dict[str, Any]:
        """The same in the words of timm's configs, for untrained networks."""
        return {
            "num_classes": 1000,
            "input_size": (3, self.side, self.side),
            "pool_size": (self.side // 32, self.side // 32),
            "crop_pct": self.crop_pct,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),  # of ImageNet
            "std": (0.229, 0.224, 0.225),
            "first_conv": self.first_conv,
            "classifier": self.classifier,
        }


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The architectures of one module."""

    names: tuple[str, ...]
    """timm's names of those that ``backbones/main.py list`` shows unasked."""
    ours: Described | None = None
    """Of networks that ``create(name, pretrained, **model_args)`` of the module makes; None where timm has entry
    points."""


ZOO: dict[str, Entry] = {
    "backbones.timm_models.swin": Entry(
        names=tuple(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large"))
    ),
    "backbones.timm_models.swin_v2": Entry(
        names=tuple(f"swinv2_{size}_window8_256" for size in ("tiny", "small", "base"))
    ),
    "backbones.sec.secvit": Entry(
        names=("secvit_tiny", "secvit_small", "secvit_base", "secvit_large"),
        ours=Described(first_conv="patch_embed.proj.0"),
    ),
    "backbones.sec.sec_swin": Entry(
        names=("sec_swin_tiny", "sec_swin_small"), ours=Described(first_conv="patch_embed.proj")
    ),
    "backbones.sec.faster_vit": Entry(
        names=("sec_faster_vit_0", "sec_faster_vit_1", "sec_faster_vit_2"),
        ours=Described(first_conv="patch_embed.conv1"),
    ),
    "backbones.xformer.visible": Entry(
        names=("xformer",),
        ours=Described(first_conv="stem.conv", classifier="head.fc", side=256, crop_pct=0.9),
    ),
    "backbones.timm_models.vit": Entry(
        names=(
            "vit_tiny_patch16_224",
            "vit_small_patch16_224",
            "vit_base_patch16_224",
            "vit_large_patch16_224",
            "vit_huge_patch14_224",
        )
    ),
    "backbones.timm_models.twins": Entry(names=("twins_svt_small", "twins_svt_base", "twins_svt_large")),
    "backbones.timm_models.convnext": Entry(
        names=("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")
    ),
}
"""Modules that hold a ``BACKBONE``."""
default_cfgs: dict[str, Any] = {}
"""What timm's ``register_model`` reads beside an entry point: descriptions by name."""


def register(module: str, entry: Entry) -> None:
    """Add a module from outside, which holds a ``BACKBONE``."""
    ZOO[module] = entry
    if "timm" in sys.modules:
        _tell_timm({module: entry})


def register_with_timm() -> None:
    """Tell timm the names of ``ZOO``, now if timm is there, else as soon as it is imported."""
    if "timm" in sys.modules:
        _tell_timm(ZOO)
    else:
        sys.meta_path.insert(0, _AfterTimm())


def _tell_timm(entries: Mapping[str, Entry]) -> None:
    from timm.models import generate_default_cfgs, register_model  # noqa: PLC0415 # imports torch

    ours = [(module, entry.names, entry.ours.config()) for module, entry in entries.items() if entry.ours]
    default_cfgs.update(
        generate_default_cfgs({f"{name}.untrained": config for _, names, config in ours for name in names})
    )
    for module, names, _ in ours:
        for name in names:
            register_model(_entry_point(module, name))


def _entry_point(module: str, name: str) -> Callable[..., Any]:
    def create(pretrained: bool = False, **model_args: Any) -> Any:
        return importlib.import_module(module).create(name, pretrained, **model_args)

    create.__name__ = name
    return create


class _AfterTimm(MetaPathFinder):
    """Finds timm as others do, and has the names registered once it is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = partial(self._exec_module, loader.exec_module)
        return spec

    def _exec_module(self, exec_module: Callable[[ModuleType], None], module: ModuleType) -> None:
        exec_module(module)
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            _tell_timm(ZOO)
