"""GreenMIM: encode the visible units, decode all, compare the masked ones (NeurIPS 2022, arXiv 2205.13515).

Beside it, the dense way for comparison: every token goes through the encoder, masked ones as a learned token
(SimMIM, arXiv 2111.09886). Both take the same micro-batch and give the same loss.

Legend: b images, s micro-batches of a stack, h w pixels, k visible units, p predicted units, d pixels of a unit.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from backbones.build import (
    build,
    check_stacks,
    feature_dim,
    forward_masked,
    forward_visible,
    layout_spec,
    mask_token_dim,
    pretrainable,
)
from backbones.visible.stacking import Layout
from backbones.weights.handoff import read_backbone
from backbones.weights.initial import init_mim
from engine.commands import resolve
from engine.errors import UserError
from engine.pixels import Pixels
from engine.randomness import torch_seed
from engine.terms import Size
from pretrain.config import PretrainConfig
from pretrain.model.decoder import Decoder, at_units
from pretrain.targets.pixels import normalised
from pretrain.targets.registry import TARGETS

Target = Callable[[Tensor, Size], Tensor]
"""Gives the values to predict of every unit (``pretrain/targets/registry.py``)."""


class GreenMIM(nn.Module):
    """An encoder that sees the visible units only, and a decoder that predicts the others.

    Args:
        encoder: a backbone that computes on visible tokens.
        decoder: predicts the target's values of some units from the features of the visible ones.
        pixels: normalises raw images.
        target: what is predicted.
        normalise_targets: whether each unit's values are normalised by their own mean and variance.
    """

    encoder: Any
    decoder: Any
    pixels: Pixels

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, *, pixels: Pixels, target: Target, normalise_targets: bool
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.pixels = pixels
        self.target = target
        self.unit = layout_spec(encoder).unit
        self.normalise_targets = normalise_targets

    def forward(
        self,
        images: UInt8[Tensor, "*s b 3 h w"],
        *,
        layout: Layout,
        feature_units: Int[Tensor, "*s k"],
        predicted_units: Int[Tensor, "*s p"],
    ) -> Float[Tensor, "*s"]:
        """Compute the mean squared error over the predicted units of a micro-batch, or of each in a stack of several.

        Args:
            images: raw pixels.
            layout: what the mask means for the encoder, on the same device.
            feature_units: the unit that each encoded feature is placed at.
            predicted_units: the units that the loss is over.
        """
        x = self.pixels(images)
        predicted = self.predict(x, layout=layout, feature_units=feature_units, predicted_units=predicted_units)
        return self.compare(predicted, x, predicted_units)

    def predict(
        self, x: Float[Tensor, "*s b 3 h w"], *, layout: Layout, feature_units: Tensor, predicted_units: Tensor
    ) -> Float[Tensor, "*s b p d"]:
        """Predict the target of some units (normalised, where the loss normalises it)."""
        return self.decoder(self.encode(x, layout), feature_units, predicted_units)

    def encode(self, x: Float[Tensor, "*s b 3 h w"], layout: Layout) -> Float[Tensor, "*s b k c"]:
        """Compute the features of the visible units, in raster order."""
        return forward_visible(self.encoder, x, layout)

    def compare(
        self,
        predicted: Float[Tensor, "*s b p d"],
        x: Float[Tensor, "*s b 3 h w"],
        predicted_units: Int[Tensor, "*s p"],
    ) -> Float[Tensor, "*s"]:
        """Compute the mean squared error to the true units (MAE's ``norm_pix_loss`` where they are normalised)."""
        target = at_units(self.target(x, self.unit), predicted_units)
        if self.normalise_targets:
            target = normalised(target)
        return (predicted.to(target.dtype) - target).square().mean(dim=(-3, -2, -1))


class DenseMIM(GreenMIM):
    """The dense way: all tokens through the encoder, a learned token where masked, a linear head."""

    def __init__(self, encoder: Any, *, pixels: Pixels, target: Target, normalise_targets: bool) -> None:
        head = nn.Linear(feature_dim(encoder), target_dim(target, layout_spec(encoder).unit))
        super().__init__(encoder, head, pixels=pixels, target=target, normalise_targets=normalise_targets)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 1, mask_token_dim(encoder)))

    def predict(
        self, x: Float[Tensor, "b 3 h w"], *, layout: Layout, feature_units: Tensor, predicted_units: Tensor
    ) -> Float[Tensor, "b p d"]:
        """Predict the target of some units by the linear head."""
        rows, cols = x.shape[2] // self.unit[0], x.shape[3] // self.unit[1]
        visible = torch.zeros(rows * cols, dtype=torch.bool, device=x.device).index_fill(0, feature_units, True)
        features = forward_masked(self.encoder, x, visible.view(rows, cols), self.mask_token)
        return self.decoder(features.index_select(1, predicted_units))


def build_model(config: PretrainConfig, *, model_args: dict[str, Any] | None = None) -> GreenMIM:
    """Build the model of a recipe with its first weights, a function of ``run.seed`` alone.

    Linear and convolution weights are Xavier-uniform, as in the published models (encoder too). With ``model_args``,
    those of a built model, ``backbone.init`` is not read again: the weights will be loaded over.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(config.run.seed, "init"))
        encoder = bare_encoder(config, model_args) if model_args is not None else build(config.backbone)
        if model_args is None:
            _check_statistics(config)
        if config.mim.micro_batches_per_forward > 1:
            check_stacks(encoder)
        pixels = Pixels(config.augment.mean, config.augment.std)
        mim, target = config.mim, build_target(config.mim.target)
        # The order in which modules draw their first weights is part of what a seed means.
        if mim.encoder == "dense":
            model: GreenMIM = DenseMIM(encoder, pixels=pixels, target=target, normalise_targets=mim.normalise_targets)
            nn.init.trunc_normal_(model.mask_token, std=0.02)
        else:
            decoder = build_decoder(encoder, config, out_dim=target_dim(target, layout_spec(encoder).unit))
            model = GreenMIM(encoder, decoder, pixels=pixels, target=target, normalise_targets=mim.normalise_targets)
        if config.backbone.init is None:
            init_mim(model.encoder, special=pretrainable(encoder).first_weights)
        init_mim(model.decoder)
        if isinstance(model.decoder, Decoder):
            nn.init.normal_(model.decoder.mask_token, std=0.02)
    return model


def _check_statistics(config: PretrainConfig) -> None:
    """Refuse to feed a backbone pixels that are normalised otherwise than what it was trained on."""
    if config.backbone.init is None:
        return
    info, augment = read_backbone(config.backbone.init), config.augment
    if (tuple(info.mean), tuple(info.std)) != (tuple(augment.mean), tuple(augment.std)):
        raise UserError(
            f"backbone.init {config.backbone.init} was trained with mean {info.mean} and std {info.std}, but "
            f"augment.mean is {augment.mean} and augment.std {augment.std}; set them to the folder's"
        )


def bare_encoder(config: PretrainConfig, model_args: dict[str, Any]) -> nn.Module:
    """Build the encoder of a run without its first weights, whose file need not be there any more."""
    return build(replace(config.backbone, init=None), **model_args)


def build_target(name: str) -> Target:
    """Import the function of a target."""
    return resolve(TARGETS[name])


def target_dim(target: Target, unit: Size) -> int:
    """Count the values that a target has for a unit."""
    return target(torch.zeros(1, 3, *unit), unit).shape[-1]


def build_decoder(encoder: nn.Module, config: PretrainConfig, *, out_dim: int) -> Decoder:
    """Build the recipe's decoder for an encoder."""
    return Decoder(
        grid=layout_spec(encoder).units,
        in_dim=feature_dim(encoder),
        out_dim=out_dim,
        dim=config.mim.decoder_dim,
        depth=config.mim.decoder_depth,
        num_heads=config.mim.decoder_heads,
        norm_input=not pretrainable(encoder).ends_in_norm(encoder),
    )
