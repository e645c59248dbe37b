"""The options of `data/main.py write`. Imports no torch: the launcher checks them before a job is queued."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.config import DataConfig
from data.parallel import num_cores
from engine.errors import UserError

Format = Literal["auto", "folder", "imagenet", "coco", "labels", "table", "webdataset", "scenes"]


@dataclass(frozen=True, kw_only=True)
class Write:
    """Write images into shards: OUT/train and OUT/val where some are held out, else OUT itself.

    Killed, the same command goes on: finished shards are not written again.
    """

    source: str
    """Folder of images, ImageNet, COCO, ADE20K or shards, a CSV or Parquet table, or `scenes` for generated pictures."""
    out: Path
    """Folder to write to; must not hold anything else."""
    format: Format = "auto"
    """What the source is; `auto` looks and says what it found."""
    images: Path | None = None
    """table, coco: folder that paths start from (default: the table's; found from the annotations' name)."""
    val_labels: Path | None = None
    """imagenet: classes of a flat val folder, lines `name wnid` (default: LOC_val_solution.csv near it)."""
    path_column: str | None = None
    """table: column of paths (default: one called path, file, filename, ...)."""
    label_column: str | None = None
    """table: column of labels (default: one called label, class, wnid, ...); `none` for no labels."""
    pattern: str = "*.tar"
    """webdataset: which tars of a folder without manifest."""
    classes: Path | None = None
    """Class names in label order: JSON list, or one a line; for imagenet the wnids."""
    val_fraction: float = 0.0
    """Share of the images to hold out, the same of every class, in [0, 1)."""
    shuffle: bool = True
    """Write in a random order; without it, in the source's, which for class folders is bad for training."""
    seed: int = 0
    """Seed of order, split and scenes."""
    size: int | None = None
    """Side of the scenes in pixels (default 128); for images, shrink the shorter side to this (default: keep the files' bytes)."""
    quality: int = 95
    """JPEG quality of the images that --size shrinks, 1 to 100."""
    count: int = 4000
    """How many scenes."""
    check: Literal["decode", "header"] = "decode"
    """Decode every image before it is written, or only read its header."""
    max_pixels: int = DataConfig.max_pixels
    """Images that claim more pixels are left out."""
    max_bad: int = 100
    """Stop when more files than this cannot be read; those left out are listed in OUT/bad.jsonl."""
    samples_per_shard: int = 10_000
    """Most samples of a shard."""
    shard_mib: int = 256
    """A shard that has grown past this many MiB is closed."""
    processes: int = field(default_factory=num_cores)
    """Processes that read, check and draw; the result does not depend on it."""

    def __post_init__(self) -> None:
        """Refuse what cannot be written."""
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"val-fraction must lie in [0, 1), got {self.val_fraction}")
        if self.count < 1:
            raise UserError(f"count must be at least 1, got {self.count}")
        if self.size is not None and self.size < 32:
            raise UserError(f"size must be at least 32 pixels, got {self.size}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality must lie in 1 to 100, got {self.quality}")
        if self.quality != 95 and self.size is None:
            raise UserError("quality is that of images that --size shrinks: without it files keep their bytes")
