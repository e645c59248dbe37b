"""Build backbones by their timm names, and run those that can on visible tokens only."""

import difflib
from collections.abc import Iterable
from typing import Any

import timm
from jaxtyping import Bool, Float
from torch import Tensor, nn

from backbones.arguments import timm_arguments
from backbones.config import BackboneConfig
from backbones.ops.exact_windows import use_exact_windows
from backbones.ops.window_attention import Implementation
from backbones.registry.backbone import Backbone, DenseForward
from backbones.registry.lookup import backbone_of, backbones
from backbones.visible.layout import LayoutSpec
from backbones.visible.stacking import Layout, VisibleStack
from backbones.weights.handoff import load_backbone, make_network, read_backbone
from engine.errors import UserError
from engine.terms import Size


def build(config: BackboneConfig, **kwargs: Any) -> nn.Module:
    """Build a timm model with exact dense windows, without a classifier unless ``num_classes`` is given.

    ``kwargs`` go to timm. With ``config.init`` the weights come from there, and those that no longer fit are resized.

    Raises:
        UserError: timm has no such architecture, or ``config.init`` holds another one.
    """
    sizes = timm_arguments(config)
    # the caller's arguments beat the config's
    model_args = {"num_classes": 0, "drop_path_rate": config.drop_path, **sizes, **kwargs}
    if config.init is None:
        _check_name(config.name)
        model = make_network(config.name, model_args)
    else:
        stored = read_backbone(config.init)
        if stored.architecture != config.name:
            raise UserError(
                f"backbone.init {config.init} holds a {stored.architecture}, but backbone.name is {config.name}; "
                f"set --backbone.name {stored.architecture}, or start from another folder"
            )
        # a size that the config leaves open is that of the stored network
        sizes = {**stored.model_args, **sizes}
        model = load_backbone(config.init, **model_args)
    _check_heads(model)
    object.__setattr__(model, "architecture", (config.name, sizes))
    if "img_size" not in sizes:
        model.img_size = config.img_size  # pyright: ignore[reportArgumentType] # what its masks are laid out for
    return use_exact_windows(model)


def architecture(source: BackboneConfig | nn.Module) -> tuple[str, dict[str, Any]]:
    """Name an architecture and the arguments with which timm itself makes it in the same size.

    ``source`` is a config, or a model that was built from one.
    """
    if isinstance(source, BackboneConfig):
        return source.name, timm_arguments(source)
    return source.architecture  # pyright: ignore[reportReturnType]


def pretrainable(model: nn.Module) -> Backbone:
    """Find what lets a network be pretrained.

    Raises:
        UserError: nothing, it cannot run on visible tokens; the message names those that can.
    """
    backbone = backbone_of(model)
    if backbone is None:
        raise UserError(
            f"{type(model).__name__} cannot run on visible tokens only; these can: {_class_names(backbones())}"
        )
    return backbone


def check_stacks(model: nn.Module) -> None:
    """Refuse a backbone that takes one micro-batch at a time.

    Raises:
        UserError: it does; the message names those that take several.
    """
    if not pretrainable(model).stacks:
        stacking = [backbone for backbone in backbones() if backbone.stacks]
        raise UserError(
            f"mim.micro-batches-per-forward must be 1 for {type(model).__name__}; these take several: "
            f"{_class_names(stacking)}"
        )


def layout_spec(model: nn.Module) -> LayoutSpec:
    """Find the sizes that the visible layouts of ``model`` follow from.

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
    """Encode the visible units, from their pixels alone: the features after the final norm, in raster order.

    ``images`` are normalised, of one micro-batch or of the s of a stack; ``layout`` is on their device; ``attention``
    names the implementation.

    Raises:
        UserError: the layout is for images of another size, or BatchNorm would be trained on one visible unit of one
            image.
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
    """Encode all units, in raster order, from all tokens, with ``mask_token`` where a unit is not visible."""
    return dense_forward(model).forward(model, images, visible, mask_token)


def mask_token_dim(model: nn.Module) -> int:
    """The width of the mask token that :func:`forward_masked` takes."""
    return dense_forward(model).token_dim(model)


def dense_forward(model: nn.Module) -> DenseForward:
    """Find how a network runs with mask tokens.

    Raises:
        UserError: it cannot.
    """
    dense = pretrainable(model).dense
    if dense is None:
        raise UserError(f"{type(model).__name__} has no way with mask tokens; set mim.encoder visible")
    return dense


def feature_dim(model: nn.Module) -> int:
    """The number of channels of the last stage."""
    return int(model.num_features)  # pyright: ignore[reportArgumentType]


def _class_names(backbones: Iterable[Backbone]) -> str:
    return ", ".join(dict.fromkeys(backbone.network.__name__ for backbone in backbones))


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3) or timm.list_models("swin*")[:3]
        raise UserError(
            f"backbone.name: timm has no architecture {name!r}; did you mean {' or '.join(close)}? A file "
            "that brings it is named with --extension"
        )


def _check_heads(model: nn.Module) -> None:
    """Refuse heads that do not divide the width: some networks find out only when they run."""
    for attention in model.modules():
        heads, qkv = getattr(attention, "num_heads", None), getattr(attention, "qkv", None)
        if isinstance(heads, int) and isinstance(qkv, nn.Linear) and qkv.out_features % (3 * heads):
            raise UserError(
                f"backbone.num-heads: a layer with {qkv.in_features} channels cannot have {heads} heads of the same "
                f"width"
            )


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
