"""SEC-FasterViT (arXiv 2405.13337): FasterViT's convolutional stages 1 and 2, attention in clusters in stages 3 and 4.

This is a RECONSTRUCTION. The paper gives two sentences and no code: FasterViT's published design (arXiv 2306.06189) is
kept, but its hierarchical attention, windows and carrier tokens with their embeddings, is replaced by SEC attention,
with 2 clusters in stage 3 and full attention in stage 4. Its parameter count is what follows from that; none is
published.

Legend: b batch, n o tokens, c d channels.
"""

from collections.abc import Sequence
from typing import Any, get_args

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.drop import DropPath
from torch import Tensor, nn

from backbones.ops.submanifold import convolution, normed_convolution
from backbones.registry.sizes import check_choice, check_stages, doubled
from backbones.sec.attention import GlobalToken
from backbones.sec.network import SecNetwork, create_by
from backbones.sec.stage import PlainStage, rising, sec_stages
from backbones.sec.visible import SEC
from backbones.visible.token_grid import TokenGrid

CLUSTERS = (1, 1, 2, 1)
"""Clusters of the stages at 224 px; 1 is full attention, and in stages 1 and 2 nothing attends."""
STEM_EPS, NORM_EPS = 1e-4, 1e-5


def make_sec_faster_vit(
    *,
    in_chans: int = 3,
    num_classes: int = 1000,
    global_pool: str = "avg",
    img_size: int | Sequence[int] = 224,
    stem_dim: int = 64,
    embed_dim: int = 64,
    depths: Sequence[int] = (2, 3, 6, 5),
    num_heads: Sequence[int] = (2, 4, 8, 16),
    mlp_ratio: float = 4.0,
    clusters: Sequence[int] | None = None,
    rope: bool = False,
    cpe: bool = False,
    lce: bool = False,
    global_token: GlobalToken = "k",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.2,
) -> SecNetwork:
    """Make SEC-FasterViT; the arguments are those of ``backbones.sec.secvit.make_secvit``.

    Raises:
        UserError: sizes are not given for four stages, or do not go together, or an option has no such value.
    """
    check_stages(depths=depths)
    check_choice(get_args(GlobalToken), global_token=global_token)
    dims, rates = doubled(embed_dim), rising(drop_path_rate, depths)
    convolutional = [
        PlainStage(
            downsample=NormedDownsample(dims[i - 1], dims[i]) if i else None,
            blocks=[ConvBlock(dims[i], drop_path=rate) for rate in rates[i]],
            recomputes=False,  # would move the blocks' batch statistics twice
        )
        for i in (0, 1)
    ]
    attending = sec_stages(
        dims,
        first=2,
        depths=depths,
        num_heads=num_heads,
        clusters=clusters,
        published_clusters=CLUSTERS,
        drop_path_rate=drop_path_rate,
        downsample=NormedDownsample,
        rope=rope,
        cpe=cpe,
        mlp_ratio=mlp_ratio,
        mlp_conv=False,
        norm_eps=NORM_EPS,
        lce=lce,
        global_token=global_token,
    )
    return SecNetwork(
        patch_embed=Stem(in_chans, stem_dim, dims[0]),
        stages=[*convolutional, *attending],
        dims=dims,
        img_size=img_size,
        head="normed",
        num_classes=num_classes,
        global_pool=global_pool,
        drop_rate=drop_rate,
    )


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2 with norms and ReLU."""

    def __init__(self, in_chans: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, hidden, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden, eps=STEM_EPS)
        self.conv2 = nn.Conv2d(hidden, dim, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim, eps=STEM_EPS)

    def forward(self, pixels: Float[Tensor, "b n 3"], levels: Sequence[TokenGrid]) -> Float[Tensor, "b o d"]:
        """Turn the pixels of the first level into the tokens of the third."""
        whole, half, quarter = levels[:3]
        x = half.tokens(normed_convolution(self.conv1, self.norm1, pixels, whole).relu(), len(pixels))
        return quarter.tokens(normed_convolution(self.conv2, self.norm2, x, half).relu(), len(x))


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with norms, residual."""

    def __init__(self, dim: int, *, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(dim, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(dim, eps=NORM_EPS)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Float[Tensor, "b n c"], grid: TokenGrid) -> Float[Tensor, "b n c"]:
        """Run this block on the tokens of ``grid``."""
        y = grid.tokens(F.gelu(normed_convolution(self.conv1, self.norm1, x, grid), approximate="tanh"), len(x))
        return x + self.drop_path(grid.tokens(normed_convolution(self.conv2, self.norm2, y, grid), len(x)))


class NormedDownsample(nn.Module):
    """A LayerNorm and a 3x3 convolution of stride 2."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim, eps=1e-6)
        self.reduction = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b n c"], above: TokenGrid, grid: TokenGrid) -> Float[Tensor, "b o d"]:
        """Convolve the tokens of ``above`` down to those of ``grid``, of half the resolution."""
        return grid.tokens(convolution(self.reduction, self.norm(x), above), len(x))


VARIANTS: dict[str, dict[str, Any]] = {
    "sec_faster_vit_0": {},
    "sec_faster_vit_1": {"depths": (1, 3, 8, 5), "embed_dim": 80, "stem_dim": 32},
    "sec_faster_vit_2": {"depths": (3, 3, 8, 5), "embed_dim": 96},
}


def create(name: str, pretrained: bool = False, **model_args: Any) -> nn.Module:
    """Make the network of one of the published sizes, or its maps with ``features_only``."""
    return create_by(make_sec_faster_vit, name, pretrained, **{**VARIANTS[name], **model_args})


BACKBONE = SEC
