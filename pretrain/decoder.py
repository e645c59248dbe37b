"""The light decoder: visible features and mask tokens at their own units, a ViT block or more, pixels out.

Legend: b images, k visible units, l units, p predicted units, c encoder width, d pixels of a unit.
Source: GreenMIM section 3.1 (the decoder of MAE), methods of MAE for the fixed sine-cosine embedding.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from backbones.positions import sine_cosine_position

LAYER_NORM_EPS = 1e-6


class Decoder(nn.Module):
    """Predict the pixels of some units from the features of the visible ones."""

    position: Tensor

    def __init__(
        self,
        *,
        grid: tuple[int, int],
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
        features: Float[Tensor, "b k c"],
        visible_units: Int[Tensor, " k"],
        predicted_units: Int[Tensor, " p"],
    ) -> Float[Tensor, "b p d"]:
        """Return the predicted units; feature j belongs to unit ``visible_units[j]``."""
        x = place_features(
            self.embed(self.norm_input(features)), self.mask_token, visible_units, self.position.shape[1]
        )
        x = x + self.position.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x.index_select(1, predicted_units)))


def place_features(
    features: Float[Tensor, "b k c"],
    mask_token: Float[Tensor, "1 1 c"],
    visible_units: Int[Tensor, " k"],
    num_units: int,
) -> Float[Tensor, "b l c"]:
    """Put feature j at unit ``visible_units[j]`` and the mask token at every other unit."""
    tokens = mask_token.to(features.dtype).expand(features.shape[0], num_units, -1)
    return tokens.index_copy(1, visible_units, features)
