"""What to read and how. Imports no torch."""

import math
from dataclasses import dataclass, field
from typing import Literal

from data.remote.config import CacheConfig
from engine.config import may_change
from engine.errors import UserError

DecodeMode = Literal["exact", "scaled"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Shards, the global batch and the loader."""

    shards: tuple[str, ...] = may_change()
    """Folders with `manifest.json` and its shards (`data/main.py write` or `index` makes it); may move, not change."""
    weights: tuple[float, ...] = ()
    """Share of each folder in every micro-batch, such as 0.7 0.3; without shares the folders are one data set."""
    batch_size: int = 256
    """Images of one optimizer step, over all processes."""
    micro_batch_size: int = 64
    """Images that share one mask and one forward; fixes order and masks, so it belongs to the recipe."""
    window_shards: int = 16
    """Samples are shuffled within a window of this many shards or `window_samples`, whichever is more."""
    window_samples: int = 16_384
    """Least number of samples in a window of `window_shards`."""
    decode: DecodeMode = "exact"
    """exact: every pixel as in a full decode; scaled: JPEGs come smaller where a crop is 3 times larger than needed."""
    workers: int = may_change(4)
    """Loader processes per training process; 0 loads in the training process."""
    max_pixels: int = may_change(120_000_000)
    """Images that claim more pixels than this are refused before decoding, which takes up to 40 bytes for each."""
    max_bad_share: float = may_change(0.05)
    """The run stops when more than this share of the images so far (the first 1000 at least) could not be decoded."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Remote shards."""

    def __post_init__(self) -> None:
        if self.micro_batch_size < 1:
            raise UserError(f"data.micro-batch-size must be at least 1, got {self.micro_batch_size}")
        if self.batch_size < 1 or self.batch_size % self.micro_batch_size:
            raise UserError(
                f"data.batch-size must be a positive multiple of data.micro-batch-size {self.micro_batch_size}, "
                f"got {self.batch_size}"
            )
        if self.window_shards < 1 or self.window_samples < 1 or self.max_pixels < 1:
            raise UserError(
                f"data.window-shards, data.window-samples and data.max-pixels must be at least 1, "
                f"got {self.window_shards}, {self.window_samples}, {self.max_pixels}"
            )
        if not self.shards:
            raise UserError("data.shards takes at least one folder, got none")
        if self.weights and len(self.weights) != len(self.shards):
            raise UserError(
                f"data.weights takes one weight for each folder of data.shards: {len(self.shards)}, "
                f"got {len(self.weights)}"
            )
        if not all(math.isfinite(weight) and weight > 0 for weight in self.weights):
            raise UserError(f"data.weights must be positive, got {self.weights}; leave out what is not wanted")
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"data.max-bad-share must lie in [0, 1], got {self.max_bad_share}")
        if self.workers < 0:
            raise UserError(f"data.workers must be at least 0, got {self.workers}")
