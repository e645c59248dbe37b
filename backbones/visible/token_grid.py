"""Where the tokens of a stage lie: tiles of neighbouring tokens, and what is around each tile.

Tokens come tile by tile, raster order inside a tile. A dense map is one tile with nothing around it; of a masked image
each visible unit is a tile, and the tokens around it are those of visible units or nothing. So a convolution reads
``halo``, whether all tokens are there or some, and what is not there counts as zero, like the border of the image.

Legend: b batch, k visible units, m tiles, h w rows and columns of a tile, p q the same with a halo, n = m h w tokens,
c channels, r reach of a halo.
"""

from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from backbones.visible.layout import Indices, LayoutSpec, Rule, compact
from engine.terms import Size

UNIT = 32
"""Side of a mask unit in pixels, for networks that end at stride 32."""


@dataclass(frozen=True, kw_only=True)
class GridSpec:
    """What a layout needs to know about one level of resolution."""

    grid: Size
    """Rows and columns of tokens."""
    channels: int
    """Width."""
    reach: int
    """How many tokens around a tile the level's largest convolution reads."""


@dataclass(frozen=True, kw_only=True)
class TokenGrid(Generic[Indices]):
    """The tokens of one level: numpy arrays from the loader's workers, tensors in the forward pass."""

    tile: Size
    """Rows and columns of a tile."""
    coords: Indices
    """[n, 2] row and column of each token in the whole grid."""
    windows: Indices | None
    """[m, p, q] token at each place of a tile and around it, n for none; None: one tile and nothing around."""
    num_units: int
    """Units of 32 px that the tokens cover."""

    def maps(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "bm c h w"]:
        """Lay the tiles of all images out as maps for convolutions (channels last in memory)."""
        return x.reshape(-1, *self.tile, x.shape[-1]).permute(0, 3, 1, 2)

    def tokens(self, maps: Float[Tensor, "bm c h w"], batch: int) -> Float[Tensor, "b n c"]:
        """Put maps back into tokens, the inverse of `maps`."""
        return maps.permute(0, 2, 3, 1).reshape(batch, -1, maps.shape[1])

    def halo(self, x: Float[Tensor, "b n c"], reach: int) -> tuple[Float[Tensor, "bm c p q"], int]:
        """Maps of the tiles with ``reach`` tokens around them, and by how many zeros they still have to be padded."""
        windows: Any = self.windows
        if windows is None:
            return self.maps(x), reach
        spare = (windows.shape[1] - self.tile[0]) // 2 - reach  # of the level's largest convolution
        inner = slice(spare, -spare or None)
        windows = windows[:, inner, inner]
        rows = F.pad(x, (0, 0, 0, 1)).index_select(1, windows.flatten())
        return rows.view(-1, *windows.shape[1:], x.shape[-1]).permute(0, 3, 1, 2), 0


def dense_grid(height: int, width: int, *, num_units: int, device: torch.device) -> TokenGrid:
    """Make the grid of a whole image, which is one tile."""
    rows, cols = (torch.arange(side, device=device) for side in (height, width))
    coords = torch.stack(torch.meshgrid(rows, cols, indexing="ij"), dim=-1).flatten(0, 1)
    return TokenGrid(tile=(height, width), coords=coords, windows=None, num_units=num_units)


def tile_levels(spec: LayoutSpec, units: Int[np.ndarray, "k 2"], *, rule: Rule) -> tuple[TokenGrid, ...]:
    """Make a grid per level of ``spec.stages`` for visible units at these rows and columns; ``rule`` is for windows."""
    del rule
    return tuple(_tiles(spec, level, units) for level in spec.stages)


def _tiles(spec: LayoutSpec, level: Any, units: Int[np.ndarray, "k 2"]) -> TokenGrid:
    tile = level.grid[0] // spec.units[0], level.grid[1] // spec.units[1]
    reach = level.reach
    coords = (units[:, None] * tile + _offsets(tile)).reshape(-1, 2)
    token_at = np.full((level.grid[0] + 2 * reach, level.grid[1] + 2 * reach), len(coords))
    token_at[coords[:, 0] + reach, coords[:, 1] + reach] = np.arange(len(coords))
    window = tile[0] + 2 * reach, tile[1] + 2 * reach
    places = units[:, None] * tile + _offsets(window)
    windows = token_at[places[..., 0], places[..., 1]].reshape(-1, *window)
    return TokenGrid(tile=tile, coords=compact(coords), windows=compact(windows), num_units=len(units))


def _offsets(sides: Size) -> Int[np.ndarray, "hw 2"]:
    return np.argwhere(np.ones(sides, dtype=bool))
