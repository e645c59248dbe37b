"""The parts of SecViT: stems, stages, blocks.

All run on the tokens of a grid, whether these are all or the visible ones.

Legend: b batch, n o tokens, c d channels.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.drop import DropPath
from torch import Tensor, nn

from backbones.ops.submanifold import depthwise, normed_convolution
from backbones.recompute.blocks import run_block
from backbones.registry.sizes import NUM_STAGES, check_stages
from backbones.sec.attention import SecAttention, rotation
from backbones.visible.token_grid import TokenGrid
from engine.errors import UserError

NORM_EPS = 1e-6
LAYER_SCALE = 1e-6


class SecStage(nn.Module):
    """Downsampling, but in the first stage, and blocks; ``block`` are further arguments of these.

    Raises:
        UserError: the heads do not divide the channels.
    """

    def __init__(
        self,
        dim: int,
        *,
        downsample: nn.Module | None,
        num_heads: int,
        drop_paths: Sequence[float],
        rope: bool,
        **block: Any,
    ) -> None:
        super().__init__()
        step = 4 * num_heads if rope else num_heads
        if dim % step:
            raise UserError(
                f"{num_heads} heads of {dim} channels: expected a multiple of {step} channels"
                f"{', for rotary positions' * rope}; change embed_dim or num_heads"
            )
        self.head_dim, self.rope = dim // num_heads, rope
        self.downsample = downsample
        self.blocks = nn.ModuleList(SecBlock(dim, num_heads=num_heads, drop_path=rate, **block) for rate in drop_paths)

    def forward(
        self, x: Float[Tensor, "b n c"], *, above: TokenGrid, grid: TokenGrid, recompute: bool = False
    ) -> Float[Tensor, "b o d"]:
        """Run this stage: the tokens of ``grid`` from those of the grid ``above``."""
        if self.downsample is not None:
            x = self.downsample(x, above, grid)
        turn = None
        if self.rope:
            turn = rotation(grid.coords, self.head_dim, dtype=torch.promote_types(x.dtype, torch.float32))
        for block in self.blocks:
            x = run_block(block, x, grid, turn, recompute=recompute)
        return x


def sec_stages(
    dims: Sequence[int],
    *,
    depths: Sequence[int],
    num_heads: Sequence[int],
    clusters: Sequence[int] | None,
    published_clusters: Sequence[int],
    drop_path_rate: float,
    downsample: Callable[[int, int], nn.Module],
    first: int = 0,
    scaled: Sequence[int] = (),
    windows: Sequence[int] = (7,) * NUM_STAGES,
    **block: Any,
) -> list[nn.Module]:
    """Make the stages from number ``first`` on; ``block`` are further arguments of all their blocks.

    ``clusters`` are taken whatever the image; without them the published ones follow its size. ``scaled`` are the
    stages whose branches have a learned scale, ``windows`` the sides of windows (or widths of stripes) in the place of
    clusters.

    Raises:
        UserError: sizes are not given for four stages, or do not go together.
    """
    # counts that a user gives hold for every image size, so only our own are scaled from 224 px
    at_224 = published_clusters if clusters is None else clusters
    check_stages(depths=depths, num_heads=num_heads, clusters=at_224)
    rates = rising(drop_path_rate, depths)
    return [
        SecStage(
            dims[i],
            downsample=downsample(dims[i - 1], dims[i]) if i else None,
            num_heads=num_heads[i],
            drop_paths=rates[i],
            scaled=i in scaled,
            num_clusters=at_224[i],
            scale_clusters=clusters is None,
            window=windows[i],
            **block,
        )
        for i in range(first, NUM_STAGES)
    ]


class PlainStage(nn.Module):
    """Downsampling, but in the first stage, and blocks that are called with tokens and their grid."""

    def __init__(self, *, downsample: nn.Module | None, blocks: Iterable[nn.Module], recomputes: bool = True) -> None:
        super().__init__()
        self.downsample, self.recomputes = downsample, recomputes
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self, x: Float[Tensor, "b n c"], *, above: TokenGrid, grid: TokenGrid, recompute: bool = False
    ) -> Float[Tensor, "b o d"]:
        """Run this stage: the tokens of ``grid`` from those of the grid ``above``."""
        if self.downsample is not None:
            x = self.downsample(x, above, grid)
        for block in self.blocks:
            x = run_block(block, x, grid, recompute=recompute) if self.recomputes else block(x, grid)
        return x


class SecBlock(nn.Module):
    """Position by a convolution, attention, MLP."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        drop_path: float,
        cpe: bool,
        mlp_ratio: float,
        mlp_conv: bool,
        scaled: bool,
        norm_eps: float = NORM_EPS,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.pos = _depthwise3(dim) if cpe else None
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = SecAttention(dim, num_heads=num_heads, **attention)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.ffn = ConvMlp(dim, int(dim * mlp_ratio), conv=mlp_conv)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.gamma_1, self.gamma_2 = (
            nn.Parameter(torch.full((dim,), LAYER_SCALE)) if scaled else None for _ in range(2)
        )

    def forward(self, x: Float[Tensor, "b n c"], grid: TokenGrid, turn: Tensor | None) -> Float[Tensor, "b n c"]:
        """Run this block on the tokens of ``grid``; ``turn`` are their rotary positions."""
        if self.pos is not None:
            x = depthwise(self.pos, x, grid, residual=True)
        x = x + self.drop_path(_scaled(self.attn(self.norm1(x), grid, turn), self.gamma_1))
        return x + self.drop_path(_scaled(self.ffn(self.norm2(x), grid), self.gamma_2))


class ConvMlp(nn.Module):
    """Two linear layers with GELU and a residual depthwise convolution between them."""

    def __init__(self, dim: int, hidden: int, *, conv: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = _depthwise3(hidden) if conv else None
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b n c"], grid: TokenGrid) -> Float[Tensor, "b n c"]:
        """Run the MLP on the tokens of ``grid``."""
        x = F.gelu(self.fc1(x))
        if self.dwconv is not None:
            x = depthwise(self.dwconv, x, grid, residual=True)
        return self.fc2(x)


class ConvDownsample(nn.Module):
    """3x3 convolution of stride 2 and a norm."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Float[Tensor, "b n c"], above: TokenGrid, grid: TokenGrid) -> Float[Tensor, "b o d"]:
        """Convolve the tokens of ``above`` down to those of ``grid``, of half the resolution."""
        return grid.tokens(normed_convolution(self.reduction, self.norm, x, above), len(x))


class ConvStem(nn.Module):
    """Four 3x3 convolutions with norms, two of stride 2."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for source, target, stride in (
            (in_chans, dim // 2, 2),
            (dim // 2, dim // 2, 1),
            (dim // 2, dim // 2, 1),
            (dim // 2, dim, 2),
        ):
            layers += [nn.Conv2d(source, target, 3, stride=stride, padding=1), nn.BatchNorm2d(target), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, pixels: Float[Tensor, "b n 3"], levels: Sequence[TokenGrid]) -> Float[Tensor, "b o d"]:
        """Turn the pixels of the first level into the tokens of the third."""
        whole, half, quarter = levels[:3]
        x, proj = pixels, list(self.proj)
        for i, (above, below) in enumerate(((whole, half), (half, half), (half, half), (half, quarter))):
            conv, norm, *act = proj[3 * i : 3 * i + 3]
            maps = normed_convolution(conv, norm, x, above)  # pyright: ignore[reportArgumentType]
            x = below.tokens(act[0](maps) if act else maps, len(x))
        return x


class PatchStem(nn.Module):
    """One convolution of patches of 4x4 pixels and a norm."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(in_chans, dim, 4, stride=4), nn.BatchNorm2d(dim))

    def forward(self, pixels: Float[Tensor, "b n 3"], levels: Sequence[TokenGrid]) -> Float[Tensor, "b o d"]:
        """Embed patches: the tokens of the third level from the pixels of the first.

        Raises:
            UserError: the image's sides are no multiples of 4.
        """
        check_patches(levels[0])
        return levels[2].tokens(self.proj(levels[0].maps(pixels)), len(pixels))


STEMS: dict[str, Any] = {"conv": ConvStem, "patch": PatchStem}


def check_patches(pixels: TokenGrid) -> None:
    """Refuse images that patches of 4x4 pixels do not divide.

    Raises:
        UserError: they do not.
    """
    height, width = pixels.tile
    if height % 4 or width % 4:
        raise UserError(f"a stem of 4x4 patches takes images of multiples of 4 pixels, got {height}x{width}")


def rising(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Spread stochastic depth over the blocks of each stage, rising linearly from 0 to ``last``."""
    rates = iter(last * i / max(sum(depths) - 1, 1) for i in range(sum(depths)))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def _depthwise3(dim: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else x * gamma
