"""Where a network comes from: its architecture, its size and its first weights."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import get_pretrained_cfg
from torch import nn

from backbones.arguments import takes_img_size
from backbones.build import architecture
from backbones.config import BackboneConfig
from backbones.ops.exact_windows import use_exact_windows
from backbones.weights.handoff import BackboneInfo, load_backbone, make_network, read_backbone, skeleton
from engine.errors import UserError, is_refusal
from engine.pixels import Statistics
from engine.randomness import torch_seed
from engine.terms import Size
from finetune.config import StartConfig

logger = logging.getLogger(__name__)

IMAGENET_MEAN: Statistics = (0.485, 0.456, 0.406)
IMAGENET_STD: Statistics = (0.229, 0.224, 0.225)
RESIZABLE = ("img_size", "window_size")
"""Arguments that may differ from those of the weights: what depends on them is resized."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A network as it will be built."""

    architecture: str
    """timm's name."""
    model_args: dict[str, Any]
    """What timm makes it with, without the classifier."""
    img_size: Size
    """Input height and width in pixels."""
    mean: Statistics
    """Channel means of its pixels in [0, 1]."""
    std: Statistics
    """Channel standard deviations of its pixels in [0, 1]."""
    folder: Path | None
    """Where its weights lie; None starts from random ones."""
    exact_windows: bool = True
    """Whether windows are those of the true grid, or padded as timm has them."""


def resolve_start(config: StartConfig) -> Start:
    """Decide on the network that ``config`` asks for: what it leaves out comes from the folder of the weights.

    Raises:
        UserError: neither weights nor architecture are named, or they do not fit; the message names both.
    """
    if config.init is None:
        return _from_scratch(config)
    info = _read(config.init)
    if config.name not in (None, info.architecture):
        raise UserError(
            f"backbone.init {config.init} holds a {info.architecture}, but backbone.name asks for {config.name}; leave "
            f"backbone.name out, or choose weights of a {config.name}"
        )
    return Start(
        architecture=info.architecture,
        model_args=_model_args(config, info=info),
        img_size=config.img_size or info.img_size,
        mean=config.mean or _statistics(info.mean),
        std=config.std or _statistics(info.std),
        folder=config.init,
        exact_windows=config.windows == "exact",
    )


def build_network(start: Start, *, num_classes: int, drop_path: float = 0.0, seed: int = 0) -> nn.Module:
    """Build timm's network with its first weights, its windows and a classifier (none for 0 classes).

    What the weights' folder does not hold, such as the classifier of a pretraining run, is drawn from ``seed``.

    Raises:
        UserError: the weights cannot be read, or do not fit.
    """
    options: dict[str, Any] = {**start.model_args, "num_classes": num_classes}
    if drop_path:
        options["drop_path_rate"] = drop_path
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(torch_seed(seed, "init"))
        if start.folder is None:
            network = make_network(start.architecture, options)
            return use_exact_windows(network) if start.exact_windows else network
        try:
            return load_backbone(start.folder, exact_windows=start.exact_windows, **options)
        except (RuntimeError, TypeError, AssertionError) as error:
            if not is_refusal(error):
                raise
            raise UserError(
                f"the weights in {start.folder} do not fit a {start.architecture} made with {start.model_args}: {error}"
            ) from error


def _read(folder: Path) -> BackboneInfo:
    inside = folder / "backbone"
    if not (folder / "config.json").is_file() and (inside / "config.json").is_file():
        raise UserError(f"backbone.init {folder} is a run folder; did you mean {inside}?")
    return read_backbone(folder)


def _from_scratch(config: StartConfig) -> Start:
    if config.name is None:
        raise UserError("nothing to start from: give pretrained weights with --backbone.init, or --backbone.name")
    backbone = BackboneConfig(
        name=config.name,
        window=config.window,
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        sec=config.sec,
    )
    name, args = architecture(backbone)
    sized = args.pop("img_size", None) is not None  # a ConvNeXt takes any size and no such argument
    if sized and config.img_size is not None:
        args["img_size"] = config.img_size
    skeleton(name, **args)  # refuses what timm does not know
    return Start(
        architecture=name,
        model_args=args,
        img_size=config.img_size or default_img_size(name),
        mean=config.mean or IMAGENET_MEAN,
        std=config.std or IMAGENET_STD,
        folder=None,
        exact_windows=config.windows == "exact",
    )


def default_img_size(name: str) -> Size:
    """Look up the input height and width that timm's architecture ``name`` is made for."""
    config = get_pretrained_cfg(name)
    height, width = (224, 224) if config is None else config.input_size[-2:]
    return height, width


def _model_args(config: StartConfig, *, info: BackboneInfo) -> dict[str, Any]:
    options = {
        "img_size": config.img_size,
        "window_size": config.window,
        "embed_dim": config.embed_dim,
        "depths": config.depths,
        "num_heads": config.num_heads,
    }
    sec = {key: value for key, value in vars(config.sec).items() if value is not None}
    options = {key: value for key, value in options.items() if value is not None} | sec
    if not takes_img_size(info.architecture):
        options.pop("img_size", None)
    stored = dict.fromkeys(sec) | {"img_size": info.img_size, **info.model_args}
    for key in [key for key, value in options.items() if key in stored and _plain(stored[key]) != _plain(value)]:
        if key not in RESIZABLE:
            option = f"backbone.{'sec.' * (key in sec)}{key.replace('_', '-')}"
            raise UserError(
                f"backbone.init {config.init} holds a {info.architecture} with {key} {stored[key]}, but {option} asks "
                f"for {options[key]}; leave {option} out"
            )
        logger.info("%s: %s of the weights, %s asked for: tables are resized", key, stored[key], options[key])
    return {**info.model_args, **options}


def _statistics(values: tuple[float, ...]) -> Statistics:
    red, green, blue = values
    return red, green, blue


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
