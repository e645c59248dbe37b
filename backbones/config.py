"""Which backbone, its sizes and where its weights come from. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.errors import UserError
from engine.terms import Size

MergeOrder = Literal["swin", "official-2022"]
"""Channel order of merged 2x2 cells; official-2022: row by row, as in GreenMIM's code until January 2023."""
Naming = Literal["timm", "microsoft", "secvit", "greenmim-twins", "simmim-vit"]
"""Whose names the weights of a file have."""
ExportNaming = Literal["timm", "microsoft"]
"""Names that weights can be written under."""
LONGEST_SIDE_PX = 16_384
"""Of the images that a backbone is made for: a slip of the keyboard must not ask for all memory."""


@dataclass(frozen=True, kw_only=True)
class SecConfig:
    """Options of the SEC backbones, for the papers' ablations; None keeps the architecture's own."""

    version: Literal[1, 2] | None = None
    """SecViT only. 2: published code; 1: the article's listing, without rotary positions and the MLP's convolution."""
    stem: Literal["conv", "patch"] | None = None
    """SecViT only. Four 3x3 convolutions, or one 4x4 patch embedding."""
    cpe: bool | None = None
    """3x3 depthwise convolution at the start of each block."""
    lce: bool | None = None
    """5x5 depthwise convolution of the values beside attention."""
    rope: bool | None = None
    """Rotary positions of queries and keys."""
    clusters: tuple[int, ...] | None = None
    """Clusters of the four stages whatever the image; None is 32, 8, 2 and 1 at 224 px and follows the image's size."""
    global_token: Literal["k", "q"] | None = None
    """What tokens are compared with: the mean key or the mean query."""
    attention: Literal["sec", "window", "cswin"] | None = None
    """SecViT only. Attention inside clusters, windows, or CSWin's stripes."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A timm architecture, its size and its first weights."""

    name: str = "swin_base_patch4_window7_224"
    """timm architecture name; `python backbones/main.py list` shows those that pretrain on visible tokens."""
    img_size: Size = (224, 224)
    """Input height and width in pixels."""
    window: int | None = None
    """Attention window side in tokens; None keeps the architecture's own."""
    embed_dim: int | None = None
    """Width of the first stage; None keeps the architecture's own."""
    depths: tuple[int, ...] | None = None
    """Blocks per stage; None keeps the architecture's own."""
    num_heads: tuple[int, ...] | None = None
    """Heads per stage; None keeps the architecture's own."""
    sec: SecConfig = field(default_factory=SecConfig)
    """Options of SecViT and the other SEC backbones."""
    drop_path: float = 0.0
    """Highest stochastic-depth rate, rising linearly over the blocks."""
    init: Path | None = None
    """`backbone/` folder (or an imported checkpoint) to start from; None starts from random weights."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise UserError(f"backbone.drop-path must lie in [0, 1), got {self.drop_path}")
        if self.window is not None and self.window < 1:
            raise UserError(f"backbone.window must be at least 1, got {self.window}")
        for name, numbers in (
            ("embed-dim", (self.embed_dim,) if self.embed_dim is not None else None),
            ("depths", self.depths),
            ("num-heads", self.num_heads),
        ):
            if numbers is not None and (not numbers or min(numbers) < 1):
                raise UserError(f"backbone.{name} must be at least 1, got {numbers}")
        if self.depths and self.num_heads and len(self.depths) != len(self.num_heads):
            raise UserError(
                f"backbone.depths and backbone.num-heads take a number for each stage, got {self.depths} and "
                f"{self.num_heads}"
            )
        if min(self.img_size) < 1:
            raise UserError(f"backbone.img-size must be two positive numbers, got {self.img_size}")
        if max(self.img_size) > LONGEST_SIDE_PX:
            raise UserError(f"backbone.img-size must be at most {LONGEST_SIDE_PX} pixels a side, got {self.img_size}")
