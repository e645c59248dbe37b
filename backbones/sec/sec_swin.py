"""SEC-Swin (arXiv 2405.13337): Swin's design with attention inside clusters in the place of windows.

Nothing but the attention differs from timm's Swin: its bias tables and shifts fall away, every other parameter is there
(``attn.out_proj`` and ``ffn`` are Swin's ``attn.proj`` and ``mlp``). So only the merging of patches, which takes the
four tokens of a cell in order, says anything about position. Convolutions and rotary positions are options.

Legend: b batch, n o tokens, c d channels.
"""

from collections.abc import Sequence
from typing import Any, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from backbones.registry.sizes import check_choice, doubled
from backbones.sec.attention import GlobalToken
from backbones.sec.network import SecNetwork, create_by
from backbones.sec.stage import check_patches, sec_stages
from backbones.sec.visible import SEC
from backbones.visible.token_grid import TokenGrid

CLUSTERS = (32, 8, 2, 1)
"""Clusters of the stages at 224 px; 1 is full attention."""
NORM_EPS = 1e-5


def make_sec_swin(
    *,
    in_chans: int = 3,
    num_classes: int = 1000,
    global_pool: str = "avg",
    img_size: int | Sequence[int] = 224,
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    mlp_ratio: float = 4.0,
    clusters: Sequence[int] | None = None,
    rope: bool = False,
    cpe: bool = False,
    lce: bool = False,
    global_token: GlobalToken = "k",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.1,
) -> SecNetwork:
    """Make SEC-Swin; the arguments are those of ``backbones.sec.secvit.make_secvit``.

    Raises:
        UserError: sizes are not given for four stages, or do not go together, or an option has no such value.
    """
    check_choice(get_args(GlobalToken), global_token=global_token)
    dims = doubled(embed_dim)
    stages = sec_stages(
        dims,
        depths=depths,
        num_heads=num_heads,
        clusters=clusters,
        published_clusters=CLUSTERS,
        drop_path_rate=drop_path_rate,
        downsample=MergeDownsample,
        rope=rope,
        cpe=cpe,
        mlp_ratio=mlp_ratio,
        mlp_conv=False,  # as Swin
        norm_eps=NORM_EPS,
        lce=lce,
        global_token=global_token,
    )
    return SecNetwork(
        patch_embed=PatchEmbed(in_chans, dims[0]),
        stages=stages,
        dims=dims,
        img_size=img_size,
        head="plain",
        num_classes=num_classes,
        global_pool=global_pool,
        drop_rate=drop_rate,
    )


class PatchEmbed(nn.Module):
    """One convolution of patches of 4x4 pixels and a LayerNorm."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 4, stride=4)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, pixels: Float[Tensor, "b n 3"], levels: Sequence[TokenGrid]) -> Float[Tensor, "b o d"]:
        """Embed patches: the tokens of the third level from the pixels of the first.

        Raises:
            UserError: the image's sides are no multiples of 4.
        """
        check_patches(levels[0])
        return self.norm(levels[2].tokens(self.proj(levels[0].maps(pixels)), len(pixels)))


class MergeDownsample(nn.Module):
    """The tokens of each 2x2 cell side by side, a norm and a projection."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_dim, eps=NORM_EPS)
        self.reduction = nn.Linear(4 * in_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "b n c"], above: TokenGrid, grid: TokenGrid) -> Float[Tensor, "b o d"]:
        """Merge the tokens of ``above`` into those of ``grid``, of half the resolution."""
        height, width = above.tile
        maps = F.pad(above.maps(x), (0, width % 2, 0, height % 2))
        cells = maps.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # bm c rows 2 cols 2
        cells = cells.permute(0, 2, 4, 5, 3, 1).flatten(3)  # -> bm rows cols (2 across, 2 down, c), as in Swin
        return self.reduction(self.norm(cells.reshape(len(x), -1, cells.shape[-1])))


VARIANTS: dict[str, dict[str, Any]] = {
    "sec_swin_tiny": {"drop_path_rate": 0.2},
    "sec_swin_small": {"depths": (2, 2, 18, 2), "drop_path_rate": 0.3},
}


def create(name: str, pretrained: bool = False, **model_args: Any) -> nn.Module:
    """Make the network of one of the published sizes, or its maps with ``features_only``."""
    return create_by(make_sec_swin, name, pretrained, **{**VARIANTS[name], **model_args})


BACKBONE = SEC
