"""XFormer under masked pretraining: on visible tokens only, or on all of them with mask tokens.

Visible tokens were chosen, since nothing has to leak: its 3x3 convolutions can see what is hidden as zero, like the
border of the image; squeeze-excitation can pool over visible tokens and BatchNorm normalise by them; and attention's
sums over tokens leave hidden ones out, whatever part of a 2x2 patch is visible. Tokens of one place in their patches
stay one sequence, with gaps that count as zero in its 3-token kernel. Only attention's core (3 % of the products) runs
on sequences of full length.

Legend: b batch, n o visible tokens of a level and of the next, k visible units, l units, c d channels, e those of the
stem.
"""

from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from timm.models import build_model_with_cfg
from torch import Tensor, nn

from backbones.ops.submanifold import check_places, convolution
from backbones.ops.window_attention import Implementation
from backbones.registry.backbone import Arguments, Backbone, DenseForward
from backbones.registry.sizes import refuse_size
from backbones.visible.layout import Indices, LayoutSpec, Rule, VisibleLayout, compact
from backbones.visible.token_grid import UNIT, TokenGrid, tile_levels
from backbones.visible.tokens import token_map, unit_maps
from backbones.xformer.xformer import PATCH, XFormer, XfUnit
from engine.errors import UserError
from engine.terms import Size

Tokens = Float[Tensor, "b n c"]
NextTokens = Float[Tensor, "b o d"]


@dataclass(frozen=True, kw_only=True)
class LevelSpec:
    """What a layout needs to know about one level of resolution."""

    grid: Size
    """Rows and columns of tokens."""
    channels: int
    """Width."""
    attention: bool
    """Whether tokens attend to each other here."""
    reach: int = 1
    """Tokens that the 3x3 convolutions read around a tile."""


@dataclass(frozen=True, kw_only=True)
class Level(Generic[Indices]):
    """The visible tokens of one level."""

    tokens: TokenGrid[Indices]
    """Where they lie, unit by unit."""
    place: Indices | None
    """[n] where each token stands in the sequences, one after the other."""
    num_places: int
    """Places in all sequences of an image."""

    @property
    def coords(self) -> Indices:
        """[n, 2] row and column of each token."""
        return self.tokens.coords


def forward_visible_xformer(
    model: XFormer, images: Float[Tensor, "b 3 h w"], layout: VisibleLayout, *, attention: Implementation
) -> Float[Tensor, "b k c"]:
    """Compute the features of the visible units, in raster order; ``attention`` has one implementation here."""
    levels: tuple[Level, ...] = layout.stages
    x = levels[0].tokens.tokens(unit_maps(images, layout), len(images))
    x = _conv(model.stem, x, levels[0].tokens, levels[1].tokens)
    above = levels[1]
    for stage, level in zip(model.stages, levels[1:], strict=True):
        blocks: Any = stage
        for block in blocks:
            x = _unit(block, x, level) if isinstance(block, XfUnit) else _mv3(block, x, above.tokens, level.tokens)
            above = level
    return _conv(model.final_conv, x, above.tokens, above.tokens)


def _conv(layer: Any, x: Tokens, above: TokenGrid, below: TokenGrid) -> NextTokens:
    """Run a convolution and its norm from the tokens of one level to those of the same or the next.

    Raises:
        UserError: in training there is one token only.
    """
    check_places(layer.bn, len(x) * len(below.coords))
    if layer.conv.kernel_size == (1, 1):
        return below.tokens(layer(above.maps(x)), len(x))
    return below.tokens(layer.bn(convolution(layer.conv, x, above)), len(x))


def _mv3(block: Any, x: Tokens, above: TokenGrid, below: TokenGrid) -> NextTokens:
    y = _conv(block.expand, x, above, above)
    y = _conv(block.depthwise, y, above, below)
    pooled = y.mean(1)[:, :, None, None]  # over visible tokens
    gate = block.se.gate(block.se.fc2(block.se.act(block.se.fc1(pooled))))
    y = _conv(block.project, y * gate.flatten(1).unsqueeze(1), below, below)
    return x + y if block.residual else y


def _unit(unit: Any, x: Tokens, level: Level) -> Tokens:
    grid = level.tokens
    y = grid.tokens(unit.embed(grid.maps(_conv(unit.local, x, grid, grid))), len(x))
    for layer in unit.layers:
        y = layer.with_core(y, lambda q, k, v, core=layer.core: _attend(core, q, k, v, level))
    y = _conv(unit.project, unit.norm(y), grid, grid)
    return _conv(unit.fuse, torch.cat([x, y], dim=-1), grid, grid)


def _attend(core: Any, q: Tokens, k: Tokens, v: Tokens, level: Level) -> Tokens:
    """Put the tokens to their places in the sequences, attend, and take them back."""
    batch, place = len(q), level.place
    assert place is not None
    shape = batch, level.num_places, q.shape[-1]
    q, k, v = (
        x.new_zeros(shape).index_copy(1, place, x).unflatten(1, (PATCH * PATCH, -1)).flatten(0, 1) for x in (q, k, v)
    )
    real = torch.zeros(level.num_places, dtype=torch.bool, device=q.device).index_fill(0, place, True)
    out = core(q, k, v, real.view(PATCH * PATCH, -1).repeat(batch, 1))
    return out.unflatten(0, (batch, -1)).flatten(1, 2).index_select(1, place)


def _forward_masked(
    model: XFormer,
    images: Float[Tensor, "b 3 h w"],
    visible: Bool[Tensor, "rows cols"],
    mask_token: Float[Tensor, "1 1 1 e"],
) -> Float[Tensor, "b l c"]:
    """Run everything, without the masked pixels, and with the mask token after the stem.

    The stem's BatchNorm counts the zeros in the place of masked pixels, as dense masked pretraining does; only the way
    on visible tokens has statistics that fit whole images.
    """
    pixels = token_map(visible, (images.shape[2], images.shape[3]))
    x = model.stem(torch.where(pixels, images, 0))
    seen = token_map(visible, (x.shape[2], x.shape[3]))
    x = torch.where(seen, x, mask_token.view(1, -1, 1, 1).to(x.dtype))
    return model.final_conv(model.stages(x)).flatten(2).mT


def _spec(model: XFormer) -> LayoutSpec:
    height, width = model.img_size
    widths = (3, *(info["num_chs"] for info in model.feature_info))
    attends = (False, *(any(isinstance(block, XfUnit) for block in stage) for stage in model.stages))  # pyright: ignore
    levels = tuple(
        LevelSpec(grid=(height >> i, width >> i), channels=channels, attention=attention)
        for i, (channels, attention) in enumerate(zip(widths, attends, strict=True))
    )
    return LayoutSpec(img_size=(height, width), patch=(2, 2), unit=(UNIT, UNIT), stages=levels, build=_levels)


def _levels(spec: LayoutSpec, units: Int[np.ndarray, "k 2"], *, rule: Rule) -> tuple[Level, ...]:
    return tuple(
        _level(tokens, level) for tokens, level in zip(tile_levels(spec, units, rule=rule), spec.stages, strict=True)
    )


def _level(tokens: TokenGrid, level: LevelSpec) -> Level:
    rows, cols = (-(-side // PATCH) for side in level.grid)
    patch, inside = np.divmod(tokens.coords.astype(np.int64), PATCH)
    place = (inside @ (PATCH, 1)) * rows * cols + patch @ (cols, 1)
    return Level(tokens=tokens, place=compact(place) if level.attention else None, num_places=PATCH**2 * rows * cols)


def _arguments(sizes: Arguments) -> Arguments:
    refuse_size(sizes, "window_size", family="XFormer")
    refuse_size(sizes, "num_heads", family="XFormer")
    arguments = dict(sizes)
    if "embed_dim" in arguments:
        arguments |= _widths(arguments.pop("embed_dim"))
    return arguments


def _widths(first: int) -> Arguments:
    """Scale all widths alike: the published network has 32 in its ``first`` stage."""
    if first % 2:
        raise UserError(f"backbone.embed-dim: XFormer's stem is half as wide as its first stage, got {first}; use even")
    half = first // 2
    return {
        "stem_width": half,
        "widths": tuple(first * i for i in (1, 2, 3, 4, 5)),
        "embed_dims": tuple(half * i for i in (9, 12, 15)),
        "qkv_dim": 3 * first,
        "num_features": 20 * first,
    }


def create(name: str, pretrained: bool = False, **model_args: Any) -> nn.Module:
    """Make the reconstructed XFormer, or its maps with ``features_only``."""
    features = {"out_indices": (0, 1, 2, 3, 4), "flatten_sequential": True}
    return build_model_with_cfg(XFormer, name, pretrained, feature_cfg=features, **model_args)


BACKBONE = Backbone(
    network=XFormer,
    spec=_spec,
    forward=forward_visible_xformer,
    dense=DenseForward(token_dim=lambda model: model.stem.conv.out_channels, forward=_forward_masked),
    ends_in_norm=lambda _: False,
    arguments=_arguments,
    maps="normed",
)
