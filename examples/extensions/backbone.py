"""A backbone from outside the packages: depthwise convolutions and attention between channels (XCiT, 2106.09681).

python pretrain/main.py --extension examples/extensions/backbone.py --backbone.name covit_tiny --data.shards DIR ...
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from backbones.ops.submanifold import depthwise
from backbones.registry.sizes import doubled
from backbones.registry.zoo import Described, Entry, register
from backbones.sec.network import SecNetwork, create_by
from backbones.sec.stage import ConvDownsample, ConvStem, PlainStage, rising
from backbones.sec.visible import SEC
from backbones.visible.token_grid import TokenGrid


class Block(nn.Module):
    """A convolution, attention and an MLP: of all tokens of an image, or of the visible ones."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj, self.mlp = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), Mlp(dim, 4 * dim)
        self.temperature, self.drop_path = nn.Parameter(torch.ones(dim // 16, 1, 1)), DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b n c"], grid: TokenGrid) -> Float[Tensor, "b n c"]:
        """Run the block on the tokens of ``grid``."""
        x = depthwise(self.conv, x, grid, residual=True)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, -1, 16)).permute(2, 0, 3, 4, 1)  # b h d n
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature).softmax(-1)  # b h d d
        x = x + self.drop_path(self.proj((weights @ v).flatten(1, 2).mT))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CoViT(SecNetwork):
    """Four stages of such blocks; ``network`` is what every network takes."""

    def __init__(self, *, embed_dim: int = 48, depths: tuple[int, ...] = (2, 2, 6, 2), **network: Any) -> None:
        dims, stages = doubled(embed_dim), list[nn.Module]()
        for i, rates in enumerate(rising(network.pop("drop_path_rate", 0.0), depths)):
            downsample = ConvDownsample(dims[i - 1], dims[i]) if i else None
            stages.append(PlainStage(downsample=downsample, blocks=[Block(dims[i], rate) for rate in rates]))
        stem = ConvStem(network.pop("in_chans", 3), dims[0])
        super().__init__(patch_embed=stem, stages=stages, dims=dims, head="plain", **network)


create = partial(create_by, CoViT)  # what timm asks for by a name
BACKBONE = replace(SEC, network=CoViT, arguments=dict, sec_options=frozenset())
register(__name__, Entry(names=("covit_tiny",), ours=Described(first_conv="patch_embed.proj.0")))
