"""Build backbones by their timm names, and run those that can on visible tokens only."""

import difflib
from collections.abc import Callable
from typing import Any

import timm
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from backbones.config import BackboneConfig
from backbones.exact_windows import use_exact_windows
from backbones.handoff import load_backbone, read_backbone
from backbones.swin import forward_visible_swin
from backbones.swin_v2 import forward_visible_swin_v2
from backbones.visible import LayoutSpec, StageSpec, VisibleLayout
from backbones.window_attention import Implementation

REGISTRY: dict[type[nn.Module], Callable[..., Tensor]] = {
    SwinTransformer: forward_visible_swin,
    SwinTransformerV2: forward_visible_swin_v2,
}
"""The forward on visible tokens of every class that has one."""


def build(config: BackboneConfig, **kwargs: Any) -> nn.Module:
    """Return the backbone: a timm model with exact dense windows, without a classifier unless ``num_classes`` is given.

    ``kwargs`` go to timm. With ``config.init`` the weights come from there, and those that no longer fit are resized.

    Raises:
        ValueError: timm has no such architecture, or ``config.init`` holds another one.
    """
    sizes = _sizes(config)
    model_args = {"num_classes": 0, "drop_path_rate": config.drop_path, **sizes, **kwargs}
    if config.init is None:
        _check_name(config.name)
        model = timm.create_model(config.name, **model_args)
    else:
        stored = read_backbone(config.init)
        if stored.architecture != config.name:
            raise ValueError(
                f"backbone.init {config.init} holds a {stored.architecture}, but backbone.name is {config.name}; "
                f"set --backbone.name {stored.architecture}, or start from another folder"
            )
        sizes = {**stored.model_args, **sizes}
        model = load_backbone(config.init, **model_args)
    object.__setattr__(model, "architecture", (config.name, sizes))
    return use_exact_windows(model)


def architecture(source: BackboneConfig | nn.Module) -> tuple[str, dict[str, Any]]:
    """Return timm's name of an architecture and the arguments with which timm itself makes it in the same size.

    ``source`` is a config, or a model that was built from one.
    """
    if isinstance(source, BackboneConfig):
        return source.name, _sizes(source)
    return source.architecture  # pyright: ignore[reportReturnType]


def layout_spec(model: nn.Module) -> LayoutSpec:
    """Return the sizes that the visible layouts of ``model`` follow from.

    Raises:
        ValueError: the model cannot run on visible tokens, or its mask units do not divide its image size.
    """
    _forward_visible_of(model)
    stages: list[Any] = list(model.layers)  # pyright: ignore[reportArgumentType]
    embed: Any = model.patch_embed
    stride = 2 ** (len(stages) - 1)
    unit = (embed.patch_size[0] * stride, embed.patch_size[1] * stride)
    _check_img_size(embed.img_size, unit)
    return LayoutSpec(
        img_size=tuple(embed.img_size),
        patch=tuple(embed.patch_size),
        unit=unit,
        stages=tuple(_stage_spec(stage) for stage in stages),
    )


def forward_visible(
    model: nn.Module,
    images: Float[Tensor, "b 3 h w"],
    layout: VisibleLayout,
    *,
    attention: Implementation = "auto",
) -> Float[Tensor, "b k c"]:
    """Return the features after the final norm of the visible units, in raster order, from their pixels alone.

    ``images`` are normalised; ``layout`` is on their device; ``attention`` names the implementation.
    """
    return _forward_visible_of(model)(model, images, layout, attention=attention)


def feature_dim(model: nn.Module) -> int:
    """Return the number of channels of the last stage."""
    return int(model.num_features)  # pyright: ignore[reportArgumentType]


def _sizes(config: BackboneConfig) -> dict[str, Any]:
    sizes = {
        "img_size": config.img_size,
        "window_size": config.window,
        "embed_dim": config.embed_dim,
        "depths": config.depths,
        "num_heads": config.num_heads,
    }
    return {key: value for key, value in sizes.items() if value is not None}


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3) or timm.list_models("swin*")[:3]
        raise ValueError(f"backbone.name: timm has no architecture {name!r}; did you mean {' or '.join(close)}?")


def _forward_visible_of(model: nn.Module) -> Callable[..., Tensor]:
    for kind, forward in REGISTRY.items():
        if isinstance(model, kind):
            return forward
    known = ", ".join(kind.__name__ for kind in REGISTRY)
    raise ValueError(f"{type(model).__name__} cannot run on visible tokens only; these can: {known}")


def _check_img_size(img_size: tuple[int, int], unit: tuple[int, int]) -> None:
    if any(size % side for size, side in zip(img_size, unit, strict=True)):
        fits = [sorted({max(s // u, 1) * u, -(-s // u) * u}) for s, u in zip(img_size, unit, strict=True)]
        heights, widths = (" or ".join(map(str, sizes)) for sizes in fits)
        raise ValueError(
            f"backbone.img-size {img_size[0]}x{img_size[1]} is no multiple of the mask unit of {unit[0]}x{unit[1]} px; "
            f"nearest that fit: height {heights}, width {widths}"
        )


def _stage_spec(stage: Any) -> StageSpec:
    block = stage.blocks[0]
    return StageSpec(
        grid=tuple(stage.output_resolution),
        window=tuple(block.window_size),
        shifts=tuple(dict.fromkeys(tuple(block.shift_size) for block in stage.blocks)),
        channels=stage.dim if isinstance(stage.downsample, nn.Identity) else stage.downsample.out_dim,
        merges=not isinstance(stage.downsample, nn.Identity),
    )
