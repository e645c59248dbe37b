"""Which backbone and where its weights come from. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A timm architecture, its size and its first weights."""

    name: str = "swin_base_patch4_window7_224"
    """timm architecture name; `python backbones/main.py list` shows those that pretrain on visible tokens."""
    img_size: tuple[int, int] = (224, 224)
    """Input height and width in pixels."""
    window: int | None = None
    """Attention window side in tokens; None keeps the architecture's own."""
    embed_dim: int | None = None
    """Width of the first stage; None keeps the architecture's own."""
    depths: tuple[int, ...] | None = None
    """Blocks per stage; None keeps the architecture's own."""
    num_heads: tuple[int, ...] | None = None
    """Heads per stage; None keeps the architecture's own."""
    drop_path: float = 0.0
    """Highest stochastic-depth rate, rising linearly over the blocks."""
    init: Path | None = None
    """`backbone/` folder (or an imported checkpoint) to start from; None starts from random weights."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"backbone.drop-path must lie in [0, 1), got {self.drop_path}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"backbone.window must be at least 1, got {self.window}")
        if min(self.img_size) < 1:
            raise ValueError(f"backbone.img-size must be two positive numbers, got {self.img_size}")
