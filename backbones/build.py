"""Build backbones by their timm names, and run those that can on visible tokens only."""

import difflib
from typing import Any

import timm
from jaxtyping import Bool, Float
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from backbones.arguments import timm_arguments
from backbones.config import BackboneConfig
from backbones.ops.exact_windows import use_exact_windows
from backbones.ops.window_attention import Implementation
from backbones.pretrainable import DenseWay, Pretrainable
from backbones.sec.network import SecNetwork
from backbones.sec.visible import SEC
from backbones.timm_models.convnext import CONVNEXT
from backbones.timm_models.swin import SWIN
from backbones.timm_models.swin_v2 import SWIN_V2
from backbones.timm_models.twins import TWINS
from backbones.timm_models.vit import VIT
from backbones.visible.layout import LayoutSpec
from backbones.visible.stacking import Layout, VisibleStack
from backbones.weights.handoff import load_backbone, read_backbone
from backbones.xformer.visible import XFORMER
from backbones.xformer.xformer import XFormer
from engine.errors import UserError
from engine.terms import Size

REGISTRY: dict[type[nn.Module], Pretrainable] = {
    SwinTransformer: SWIN,
    SwinTransformerV2: SWIN_V2,
    VisionTransformer: VIT,
    Twins: TWINS,
    ConvNeXt: CONVNEXT,
    XFormer: XFORMER,
    SecNetwork: SEC,
}
"""The classes that can be pretrained, and how each runs on visible tokens."""


def build(config: BackboneConfig, **kwargs: Any) -> nn.Module:
    """Return the backbone: a timm model with exact dense windows, without a classifier unless ``num_classes`` is given.

    ``kwargs`` go to timm. With ``config.init`` the weights come from there, and those that no longer fit are resized.

    Raises:
        UserError: timm has no such architecture, or ``config.init`` holds another one.
    """
    sizes = timm_arguments(config)
    model_args = {"num_classes": 0, "drop_path_rate": config.drop_path, **sizes, **kwargs}
    if config.init is None:
        _check_name(config.name)
        model = timm.create_model(config.name, **model_args)
    else:
        stored = read_backbone(config.init)
        if stored.architecture != config.name:
            raise UserError(
                f"backbone.init {config.init} holds a {stored.architecture}, but backbone.name is {config.name}; "
                f"set --backbone.name {stored.architecture}, or start from another folder"
            )
        sizes = {**stored.model_args, **sizes}
        model = load_backbone(config.init, **model_args)
    object.__setattr__(model, "architecture", (config.name, sizes))
    if "img_size" not in sizes:
        model.img_size = config.img_size  # pyright: ignore[reportArgumentType] # what its masks are laid out for
    return use_exact_windows(model)


def architecture(source: BackboneConfig | nn.Module) -> tuple[str, dict[str, Any]]:
    """Return timm's name of an architecture and the arguments with which timm itself makes it in the same size.

    ``source`` is a config, or a model that was built from one.
    """
    if isinstance(source, BackboneConfig):
        return source.name, timm_arguments(source)
    return source.architecture  # pyright: ignore[reportReturnType]


def pretrainable(model: nn.Module) -> Pretrainable:
    """Return what the class of ``model`` brings to be pretrained.

    Raises:
        UserError: nothing, it cannot run on visible tokens.
    """
    for kind, ways in REGISTRY.items():
        if isinstance(model, kind):
            return ways
    known = ", ".join(kind.__name__ for kind in REGISTRY)
    raise UserError(f"{type(model).__name__} cannot run on visible tokens only; these can: {known}")


def check_stacks(model: nn.Module) -> None:
    """Refuse a backbone that takes one micro-batch at a time.

    Raises:
        UserError: it does; the message names those that take several.
    """
    if not pretrainable(model).stacks:
        known = ", ".join(kind.__name__ for kind, ways in REGISTRY.items() if ways.stacks)
        raise UserError(
            f"mim.micro-batches-per-forward must be 1 for {type(model).__name__}; these take several: {known}"
        )


def layout_spec(model: nn.Module) -> LayoutSpec:
    """Return the sizes that the visible layouts of ``model`` follow from.

    Raises:
        UserError: the model cannot run on visible tokens, or its mask units do not divide its image size.
    """
    spec = pretrainable(model).spec(model)
    _check_img_size(spec.img_size, spec.unit)
    return spec


def forward_visible(
    model: nn.Module,
    images: Float[Tensor, "*s b 3 h w"],
    layout: Layout,
    *,
    attention: Implementation = "auto",
) -> Float[Tensor, "*s b k c"]:
    """Return the features after the final norm of the visible units, in raster order, from their pixels alone.

    ``images`` are normalised, of one micro-batch or of the s of a stack; ``layout`` is on their device; ``attention`` names
    the implementation.

    Raises:
        UserError: the layout is for images of another size, or BatchNorm would be trained on one visible unit of one image.
    """
    _check_images(images, layout.spec)
    features = pretrainable(model).forward(model, images, layout, attention=attention)
    return features.unflatten(0, images.shape[:2]) if isinstance(layout, VisibleStack) else features


def forward_masked(
    model: nn.Module,
    images: Float[Tensor, "b 3 h w"],
    visible: Bool[Tensor, "rows cols"],
    mask_token: Float[Tensor, "1 1 1 e"],
) -> Float[Tensor, "b l c"]:
    """Return the features of all units in raster order, from all tokens, with ``mask_token`` where a unit is not visible."""
    return dense_way(model).forward(model, images, visible, mask_token)


def mask_token_dim(model: nn.Module) -> int:
    """Return the width of the mask token that :func:`forward_masked` takes."""
    return dense_way(model).token_dim(model)


def dense_way(model: nn.Module) -> DenseWay:
    """Return how ``model`` runs with mask tokens.

    Raises:
        UserError: it cannot.
    """
    dense = pretrainable(model).dense
    if dense is None:
        raise UserError(f"{type(model).__name__} has no way with mask tokens; set mim.encoder visible")
    return dense


def feature_dim(model: nn.Module) -> int:
    """Return the number of channels of the last stage."""
    return int(model.num_features)  # pyright: ignore[reportArgumentType]


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3) or timm.list_models("swin*")[:3]
        raise UserError(f"backbone.name: timm has no architecture {name!r}; did you mean {' or '.join(close)}?")


def _check_images(images: Tensor, spec: LayoutSpec) -> None:
    height, width = images.shape[-2:]
    if (height, width) != spec.img_size:
        raise UserError(
            f"images of {height}x{width} px, but the layout is of images of {spec.img_size[0]}x{spec.img_size[1]} px; "
            f"build it with the layout_spec of a model that was made for this size"
        )


def _check_img_size(img_size: Size, unit: Size) -> None:
    if any(size % side for size, side in zip(img_size, unit, strict=True)):
        fits = [sorted({max(s // u, 1) * u, -(-s // u) * u}) for s, u in zip(img_size, unit, strict=True)]
        heights, widths = (" or ".join(map(str, sizes)) for sizes in fits)
        raise UserError(
            f"backbone.img-size {img_size[0]}x{img_size[1]} is no multiple of the mask unit of {unit[0]}x{unit[1]} px; "
            f"nearest that fit: height {heights}, width {widths}"
        )
