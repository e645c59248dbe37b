"""Fit weights to a model of another window or image size: only bias tables and position embeddings are resized.

A relative position bias table says what a pair of tokens gains by their offset. In a larger window the small offsets
keep their places and the large ones are spread: known values lie on a geometric grid 1, 1 + q, 1 + q + q^2, ... that
ends at the new largest offset, or before it, since q is at most 1.5; a cubic spline reads between them, and beyond the
grid its last value holds (BEiT's and SimMIM's way). In a smaller window the offsets that remain keep their values
exactly. Swin V2 has no tables and needs none of this.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from timm.layers import resample_abs_pos_embed  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from engine.errors import UserError
from engine.terms import Size

TABLE = "relative_position_bias_table"
POSITIONS = "pos_embed"
MOST_RATIO = 1.5
"""Largest q, as usual."""


@dataclass(frozen=True, kw_only=True)
class Resized:
    """A tensor that was resized: window sides of a bias table, grid sides of a position embedding."""

    name: str
    before: Size
    after: Size

    def __str__(self) -> str:
        return f"{self.name} {self.before[0]}x{self.before[1]} -> {self.after[0]}x{self.after[1]}"


def fit_state(
    state: Mapping[str, Tensor], model: nn.Module, *, source: nn.Module | None = None
) -> tuple[dict[str, Tensor], list[Resized]]:
    """Bring every table and position embedding of ``state`` to the size that ``model`` has, and list what was resized.

    ``source`` is a model of the size that ``state`` comes from (one on the meta device will do); without it windows and
    grids are taken to be square.

    Raises:
        UserError: a table's rows are no square and its window is not known, or heads or channels differ.
    """
    fitted: dict[str, Tensor] = {}
    resized: list[Resized] = []
    # a tensor says nothing about its window: the module that has it, here and in the source, does
    modules = dict(model.named_modules())
    sources = dict(source.named_modules()) if source is not None else {}
    for name, value in state.items():
        owner, _, last = name.rpartition(".")
        change = None
        if last == TABLE and owner in modules:
            value, change = _fit_table(name, value, modules[owner], sources.get(owner))
        elif name == POSITIONS and getattr(model, POSITIONS, None) is not None:
            value, change = _fit_positions(value, model, source)
        fitted[name] = value
        if change is not None:
            resized.append(change)
    return fitted, resized


def resize_bias_table(
    table: Float[Tensor, "rows heads"], *, before: Size, after: Size
) -> Float[Tensor, "new_rows heads"]:
    """Spread or crop the bias table of a window of ``before`` tokens for one of ``after`` tokens."""
    old, new = ((2 * h - 1, 2 * w - 1) for h, w in (before, after))
    rows, cols = (torch.from_numpy(_spline(n, m)) for n, m in zip(old, new, strict=True))
    grid = table.reshape(*old, -1).double()
    return torch.einsum("ap,bq,pqh->abh", rows, cols, grid).reshape(new[0] * new[1], -1).to(table.dtype)


def _fit_table(name: str, table: Tensor, module: Any, source: Any | None) -> tuple[Tensor, Resized | None]:
    after: Size = tuple(module.window_size)
    expected: Tensor = module.relative_position_bias_table
    # BEiT's table ends in three rows for the class token, which has no place
    others = len(expected) - (2 * after[0] - 1) * (2 * after[1] - 1)
    before: Size = tuple(source.window_size) if source is not None else _square_window(name, len(table) - others, after)
    if before == after:
        return table, None
    if table.shape[-1] != expected.shape[-1]:
        raise UserError(f"{name} has {table.shape[-1]} heads, the model {expected.shape[-1]}: another architecture?")
    places, tokens = table[: len(table) - others], table[len(table) - others :]
    resized = torch.cat([resize_bias_table(places, before=before, after=after), tokens])
    return resized, Resized(name=name, before=before, after=after)


def _square_window(name: str, rows: int, after: Size) -> Size:
    if rows == (2 * after[0] - 1) * (2 * after[1] - 1):
        return after
    side = round(rows**0.5)
    if side * side != rows or side % 2 == 0:
        raise UserError(f"{name} has {rows} rows, which no square window gives; expected (2w-1)^2")
    return (side + 1) // 2, (side + 1) // 2


def _fit_positions(positions: Tensor, model: Any, source: Any | None) -> tuple[Tensor, Resized | None]:
    prefix: int = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 0)
    after: Size = tuple(model.patch_embed.grid_size)
    side = round((positions.shape[1] - prefix) ** 0.5)
    before: Size = tuple(source.patch_embed.grid_size) if source is not None else (side, side)
    if positions.shape[1] - prefix == after[0] * after[1] and (source is None or before == after):
        return positions, None
    if before[0] * before[1] != positions.shape[1] - prefix:
        raise UserError(f"{POSITIONS} has {positions.shape[1] - prefix} places, which no square grid gives")
    resampled = resample_abs_pos_embed(positions, new_size=list(after), old_size=list(before), num_prefix_tokens=prefix)
    return resampled, Resized(name=POSITIONS, before=before, after=after)


def _spline(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Matrix to resize one axis: from ``old`` values on the geometric grid to ``new`` on the integers around 0."""
    if new <= old:
        return np.eye(old)[(old - new) // 2 :][:new]
    grid = _geometric_grid(old // 2, new // 2)
    places = np.clip(np.arange(new) - new // 2, grid[0], grid[-1]).astype(np.float64)
    if old < 4:
        return _polynomial(grid, places)
    return _not_a_knot(grid, places)


def _geometric_grid(steps: int, reach: int) -> Float[np.ndarray, " grid"]:
    """Place the grid offsets: -s_n .. 0 .. s_n, s_k = 1 + q + ... + q^(k-1), s_n = ``reach`` as far as possible."""
    low, high = 1.0, MOST_RATIO  # with more the few known values of a small window would swing between far places
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(middle**k for k in range(steps)) > reach else (middle, high)
    side = np.cumsum(low ** np.arange(steps))
    return np.concatenate([-side[::-1], [0.0], side])


def _polynomial(grid: Float[np.ndarray, " old"], places: Float[np.ndarray, " new"]) -> Float[np.ndarray, "new old"]:
    powers = np.arange(len(grid))
    return np.linalg.solve((grid[:, None] ** powers).T, (places[:, None] ** powers).T).T


def _not_a_knot(grid: Float[np.ndarray, " old"], places: Float[np.ndarray, " new"]) -> Float[np.ndarray, "new old"]:
    """Cubic spline through values at ``grid``, read at ``places``, as a matrix on the values."""
    n, gap = len(grid), np.diff(grid)
    left, right = np.zeros((n, n)), np.zeros((n, n))  # left @ second derivatives = right @ values
    for i in range(1, n - 1):
        left[i, i - 1 : i + 2] = gap[i - 1] / 6, (gap[i - 1] + gap[i]) / 3, gap[i] / 6
        right[i, i - 1 : i + 2] = 1 / gap[i - 1], -1 / gap[i - 1] - 1 / gap[i], 1 / gap[i]
    left[0, :3] = gap[1], -gap[0] - gap[1], gap[0]  # the third derivative is continuous at the second point
    left[-1, -3:] = gap[-1], -gap[-2] - gap[-1], gap[-2]
    curvature = np.linalg.solve(left, right)
    k = np.clip(np.searchsorted(grid, places, side="right") - 1, 0, n - 2)
    values = np.eye(n)
    a, b = ((grid[k + 1] - places) / gap[k])[:, None], ((places - grid[k]) / gap[k])[:, None]
    bend = (gap[k] ** 2 / 6)[:, None]
    return a * values[k] + b * values[k + 1] + bend * ((a**3 - a) * curvature[k] + (b**3 - b) * curvature[k + 1])
