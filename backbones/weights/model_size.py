"""How big a network is, counted: parameters, multiply-accumulates, and the channels and strides of its maps.

Nothing is computed: the forward runs on PyTorch's meta device, and the products that it asks for are counted. Published
"FLOPs" are multiply-accumulates, for some papers without the products between queries, keys and values: both are given.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from backbones.weights.handoff import skeleton
from engine.errors import UserError, is_refusal
from engine.terms import Size

_ATTENTION = ("bmm", "baddbmm", "attention")
"""Words in the names of operators that multiply activations with each other."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What was counted of one forward of one image."""

    img_size: Size
    """Height and width in pixels."""
    parameters: int
    """Trained numbers, with the classifier if there is one."""
    macs: int
    """Multiply-accumulates of all matrix products and convolutions."""
    attention_macs: int
    """Those of them that multiply activations with each other."""
    channels: tuple[int, ...]
    """Of the maps at each stride."""
    strides: tuple[int, ...]
    """Pixels per place of the maps, finest first."""


def measure(architecture: str, *, img_size: Size | None = None, **model_args: Any) -> ModelSize:
    """Count timm's ``architecture``, made with ``model_args``, for an image of ``img_size`` or its own size.

    Raises:
        UserError: timm does not know the architecture or refuses an argument, or images of this size are too small for
            it.
    """
    return measure_model(made_for(architecture, img_size, model_args), img_size=img_size)


def measure_model(model: nn.Module, *, img_size: Size | None = None) -> ModelSize:
    """Count a network without memory for its weights.

    Raises:
        UserError: images of this size are too small for it.
    """
    network: Any = model.eval()
    size: Size = img_size or tuple(network.pretrained_cfg["input_size"][1:])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        try:
            network(torch.empty(1, 3, *size, device="meta"))
        except (RuntimeError, AssertionError) as error:
            if not is_refusal(error):
                raise
            architecture = network.pretrained_cfg["architecture"]
            raise UserError(f"{architecture} cannot take images of {size[0]}x{size[1]} px: {error}") from None
    # the counter has two operations per multiply-accumulate
    flops = counter.get_flop_counts()["Global"]
    between = sum(count for operator, count in flops.items() if any(word in str(operator) for word in _ATTENTION))
    maps = {info["reduction"]: info["num_chs"] for info in network.feature_info}
    return ModelSize(
        img_size=size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=sum(flops.values()) // 2,
        attention_macs=between // 2,
        channels=tuple(maps.values()),
        strides=tuple(maps),
    )


def made_for(architecture: str, img_size: Size | None, model_args: dict[str, Any]) -> nn.Module:
    """Make a network without memory for its weights, for images of ``img_size``.

    Raises:
        UserError: timm does not know the architecture or refuses an argument, or the size is not positive.
    """
    if img_size is None:
        return skeleton(architecture, **model_args)
    if min(img_size) < 1:
        raise UserError(f"expected an image size of two positive numbers, got {img_size[0]} and {img_size[1]}")
    try:
        return skeleton(architecture, img_size=img_size, **model_args)
    except UserError:  # most convolutional networks take no such argument, and any image
        model = skeleton(architecture, **model_args)
    model.img_size = img_size  # pyright: ignore[reportArgumentType] # what its masks are laid out for
    return model
