"""Exact windows for timm's dense Swin, Swin V2 and Twins: those of the true grid, without padding or wrap-around.

timm attends to the tokens it pads with and, rolling before it pads, joins the last rows with the first wherever a
grid is no multiple of its window. The blocks here pad first, roll the padded grid and let no token see padding or
another region: windows lie from the top-left corner, the first ones cut short by a shift. Where nothing is padded
timm's own code runs. Parameters, state-dict names and everything else stay timm's.

Legend: b batch, w windows, t tokens of a window, c channels.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models import swin_transformer, swin_transformer_v2, twins
from timm.models.swin_transformer import window_partition
from torch import Tensor, nn

from engine.terms import Size


class ExactSwinBlock(swin_transformer.SwinTransformerBlock):
    """timm's Swin block with exact windows."""

    def _attn(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        if _fits(x, self.window_size):
            return super()._attn(x)
        return _exact_attention(self.attn, x, window=self.window_size, shift=self.shift_size)


class ExactSwinV2Block(swin_transformer_v2.SwinTransformerV2Block):
    """timm's Swin V2 block with exact windows."""

    def _attn(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        if _fits(x, self.window_size):
            return super()._attn(x)
        return _exact_attention(self.attn, x, window=self.window_size, shift=self.shift_size)


class ExactLocallyGroupedAttn(twins.LocallyGroupedAttn):
    """timm's attention inside the windows of Twins, with exact windows."""

    def forward(self, x: Float[Tensor, "b n c"], size: Size) -> Float[Tensor, "b n c"]:
        """Let the tokens of a grid of ``size`` attend to those in their own exact window."""
        attn: Any = self
        grid, window = x.unflatten(1, size), (attn.ws, attn.ws)
        if _fits(grid, window):
            return super().forward(x, size)
        return _exact_attention(partial(_in_windows, attn), grid, window=window, shift=(0, 0)).flatten(1, 2)


def _in_windows(attn: Any, x: Float[Tensor, "bw t c"], *, mask: Float[Tensor, "w t t"]) -> Float[Tensor, "bw t c"]:
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    mask = mask.repeat(len(x) // len(mask), 1, 1).unsqueeze(1)
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attn.proj_drop(attn.proj(x.transpose(1, 2).flatten(2)))


EXACT_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {
    swin_transformer.SwinTransformerBlock: ExactSwinBlock,
    swin_transformer_v2.SwinTransformerV2Block: ExactSwinV2Block,
    twins.LocallyGroupedAttn: ExactLocallyGroupedAttn,
}


def use_exact_windows(model: nn.Module) -> nn.Module:
    """Give every Swin block and Twins attention inside ``model`` exact windows, in place, and return the model."""
    for module in model.modules():
        module.__class__ = EXACT_BLOCKS.get(type(module), type(module))
    return model


def uneven_windows(model: nn.Module, img_size: Size) -> str | None:
    """Say where windows do not divide the grids of an image, and at which sizes they would; None where they do.

    There a network with exact windows answers otherwise than timm's own. ``model`` is one on the meta device.
    """
    met: list[tuple[Size, Size]] = []
    hooks = [
        module.register_forward_pre_hook(partial(_note_grid, met))
        for module in model.modules()
        if isinstance(module, tuple(EXACT_BLOCKS))
    ]
    if not hooks:
        return None
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, *img_size, device="meta"))
    for hook in hooks:
        hook.remove()
    uneven = [pair for pair in met if any(side % window for side, window in zip(*pair, strict=True))]
    if not uneven:
        return None
    grids = ", ".join(dict.fromkeys(f"{height}x{width}" for (height, width), _ in uneven))
    sides = [_even_sides(img_size[axis], [(grid[axis], window[axis]) for grid, window in met]) for axis in (0, 1)]
    sizes = sides[0] if sides[0] == sides[1] else [f"{sides[0][0]}x{sides[1][0]}", f"{sides[0][-1]}x{sides[1][-1]}"]
    even = " or ".join(map(str, sizes))
    return (
        f"at {img_size[0]}x{img_size[1]} px its grids of {grids} tokens are no multiples of its windows; it has exact "
        f"windows there, where plain timm pads them and computes otherwise; both agree at {even} px"
    )


def _note_grid(met: list[tuple[Size, Size]], module: Any, inputs: tuple[Any, ...]) -> None:
    side: int | None = getattr(module, "ws", None)
    if side is not None:  # of a Twins
        met.append((tuple(inputs[1]), (side, side)))
    else:
        met.append((tuple(inputs[0].shape[1:3]), tuple(module.window_size)))


def _even_sides(side: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Find the sides next to ``side`` whose grids all windows divide; small grids cut their windows, others have the
    largest."""
    window = max(window for _, window in pairs)
    unit = math.lcm(*(side // grid * window for grid, _ in pairs))
    return sorted({max(1, side // unit) * unit, -(-side // unit) * unit})


def _fits(x: Tensor, window: Size) -> bool:
    return x.shape[1] % window[0] == 0 and x.shape[2] % window[1] == 0


def _exact_attention(
    attention: Callable[..., Tensor], x: Float[Tensor, "b h w c"], *, window: Size, shift: tuple[int, int]
) -> Float[Tensor, "b h w c"]:
    height, width = x.shape[1:3]
    bottom, right = -height % window[0], -width % window[1]
    padded = F.pad(x, (0, 0, 0, right, 0, bottom))
    rolled = padded.roll((-shift[0], -shift[1]), dims=(1, 2))
    windows = window_partition(rolled, window).flatten(1, 2)
    mask = _mask((height, width), window=window, shift=shift, like=x)
    windows = attention(windows, mask=mask)
    rolled = _reverse(windows, window, like=rolled)
    return rolled.roll(shift, dims=(1, 2))[:, :height, :width]


def _mask(size: Size, *, window: Size, shift: tuple[int, int], like: Tensor) -> Float[Tensor, "w t t"]:
    """Build the attention mask: 0 where a token (of the padded, rolled grid) sees another, minus infinity elsewhere."""
    row_region, row_real = _axis(size[0], window=window[0], shift=shift[0], device=like.device)
    col_region, col_real = _axis(size[1], window=window[1], shift=shift[1], device=like.device)
    region = _windows_of(row_region[:, None] * 2 + col_region, window)
    real = _windows_of(row_real[:, None] & col_real, window)
    sees = (region[:, :, None] == region[:, None, :]) & real[:, None, :]
    sees |= ~real[:, :, None]  # padding sees anything, to be finite: what it computes is cut off
    return torch.zeros(sees.shape, dtype=like.dtype, device=like.device).masked_fill(~sees, -torch.inf)


def _axis(size: int, *, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tell, per row of the padded and rolled grid, whether it wrapped around and whether it is not padding."""
    total = size + -size % window
    rolled = torch.arange(total, device=device)
    original = (rolled + shift) % total
    return (rolled >= total - shift).long(), original < size


def _windows_of(grid: Tensor, window: Size) -> Tensor:
    return window_partition(grid[None, :, :, None], window).flatten(1)


def _reverse(windows: Float[Tensor, "bw t c"], window: Size, *, like: Tensor) -> Float[Tensor, "b h w c"]:
    batch, height, width, channels = like.shape
    rows, cols = height // window[0], width // window[1]
    x = windows.view(batch, rows, cols, *window, channels)  # b (rows cols) (wh ww) c -> b (rows wh) (cols ww) c
    return x.transpose(2, 3).reshape(batch, height, width, channels)
