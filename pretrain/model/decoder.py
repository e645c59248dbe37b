"""The light decoder: visible features and mask tokens at their own units, a ViT block or more, the target's values.

Legend: b images, s micro-batches of a stack, k visible units, l units, p predicted units, c width, d values of a unit.
Source: GreenMIM section 3.1 (the decoder of MAE), methods of MAE for the fixed sine-cosine embedding.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from backbones.ops.positions import sine_cosine_position
from backbones.recompute.blocks import run_block
from engine.terms import Size

LAYER_NORM_EPS = 1e-6


class Decoder(nn.Module):
    """Predict the target's values of some units from the features of the visible ones."""

    position: Tensor

    def __init__(
        self,
        *,
        grid: Size,
        in_dim: int,
        out_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        norm_input: bool = False,
    ) -> None:
        super().__init__()
        self.norm_input = nn.LayerNorm(in_dim, eps=LAYER_NORM_EPS) if norm_input else nn.Identity()
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("position", sine_cosine_position(grid, dim), persistent=False)
        norm: Any = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)
        self.blocks = nn.ModuleList([Block(dim, num_heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)])
        self.norm = norm(dim)
        self.predict = nn.Linear(dim, out_dim)

    def forward(
        self,
        features: Float[Tensor, "*s b k c"],
        visible_units: Int[Tensor, "*s k"],
        predicted_units: Int[Tensor, "*s p"],
    ) -> Float[Tensor, "*s b p d"]:
        """Predict units; feature j belongs to unit ``visible_units[j]``."""
        x = place_features(
            self.embed(self.norm_input(features)), self.mask_token, visible_units, self.position.shape[1]
        )
        x = x + self.position.to(x.dtype)
        *blocks, last = self.blocks
        images = x.flatten(0, -3)
        for block in blocks:
            images = run_block(block, images)
        seen = run_block(last, images.view(x.shape), predicted_units, forward=block_at)
        return self.predict(self.norm(seen))


def block_at(block: Any, x: Float[Tensor, "*s b l c"], units: Int[Tensor, "*s p"]) -> Float[Tensor, "*s b p c"]:
    """Run timm's block for some units only, where the others are not read: its MLP, two thirds of it, sees no more."""
    images = x.flatten(0, -3)
    x = x + block.drop_path1(block.ls1(block.attn(block.norm1(images)))).view(x.shape)
    x = at_units(x, units)
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def place_features(
    features: Float[Tensor, "*s b k c"],
    mask_token: Float[Tensor, "1 1 c"],
    visible_units: Int[Tensor, "*s k"],
    num_units: int,
) -> Float[Tensor, "*s b l c"]:
    """Put feature j at unit ``visible_units[j]`` and the mask token at every other unit."""
    if visible_units.ndim > 1:
        each = zip(features, visible_units, strict=True)
        return torch.stack([place_features(own, mask_token, units, num_units) for own, units in each])
    tokens = mask_token.to(features.dtype).expand(features.shape[0], num_units, -1)
    return tokens.index_copy(1, visible_units, features)


def at_units(x: Float[Tensor, "*s b l c"], units: Int[Tensor, "*s p"]) -> Float[Tensor, "*s b p c"]:
    """Select units, of each micro-batch its own."""
    if units.ndim == 1:
        return x.index_select(1, units)
    return torch.stack([own.index_select(1, chosen) for own, chosen in zip(x, units, strict=True)])
