"""Fixed two-dimensional position embeddings.

Legend: l places of a grid in raster order, c channels.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from engine.terms import Size


def sine_cosine_position(grid: Size, dim: int) -> Float[Tensor, "1 l c"]:
    """Build the fixed 2-D position embedding: the first half of the channels codes the column, the second the row."""
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    rows, cols = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )
    angles = [axis.reshape(-1, 1) * omega for axis in (cols, rows)]
    parts = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1).unsqueeze(0).float()
