"""The options of `data/main.py write`. Imports no torch: the launcher checks them before a job is queued."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from data.config import DataConfig
from data.parallel import num_cores
from data.shards.class_names import find_class_names, read_class_names
from data.sources.registry import FORMATS
from engine.errors import UserError

AUTO = "auto"


def _format_choices() -> Any:
    return Literal[(AUTO, *FORMATS)]  # known once the command line is read, with those of extensions


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to image files on their way into shards."""

    check: Literal["decode", "header"] = "decode"
    """Decode every image, or read its header only: faster, but a truncated file is found only in training."""
    resize: int | None = None
    """Shrink the shorter side to this many pixels and write JPEG; otherwise the file's own bytes are kept."""
    quality: int = 95
    """Quality of those JPEGs, 1 to 100."""
    max_pixels: int = DataConfig.max_pixels
    """Images that claim more pixels than this are refused."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """Write images into shards: OUT/train and OUT/val where some are held out, else OUT itself.

    Killed, the same command goes on: finished shards are not written again.
    """

    source: str
    """Folder of images, ImageNet, COCO, YOLO, VOC, ADE20K, shards; a table of paths; `scenes` for generated images."""
    out: Path
    """Folder to write to; must not hold anything else."""
    format: Annotated[
        str, tyro.conf.arg(constructor_factory=_format_choices, help_behavior_hint=f"(default: {AUTO})")
    ] = AUTO
    """What the source is; `auto` looks and says what it found."""
    images: Path | None = None
    """table, coco: folder that paths start from (default: the table's; found from the annotations' name)."""
    splits: str | None = None
    """folder, labels, yolo, voc: folders to train and to validate on, as `train,val`; `none`: it is not divided."""
    class_depth: int | None = None
    """folder: how deep the folders lie that are classes (1: at the top, of each split); 0: no classes."""
    val_labels: Path | None = None
    """imagenet: classes of a flat val folder, lines `name wnid` (default: LOC_val_solution.csv near it)."""
    path_column: str | None = None
    """table: column of paths (default: one called path, file, filename, ...)."""
    label_column: str | None = None
    """table: column of labels (default: one called label, class, wnid, ...); `none` for no labels."""
    split_column: str | None = None
    """table: column of splits (default: one called split, subset, is_valid, ...); `none`: it is not divided."""
    no_label: str | None = None
    """table: the label that means none, for example -1 (an empty one always does)."""
    pattern: str = "*.tar"
    """webdataset: which tars of a folder without manifest, for example `train-*.tar` or `{000000..000999}.tar`."""
    first_class: int | None = None
    """webdataset: number of the first class in the tars, 1 where they count from 1 (default: 0)."""
    classes: Path | None = None
    """Class names in label order: JSON list, or one a line; for imagenet the wnids."""
    map_classes: Path | None = None
    """labels: what colours or values of the maps stand for, lines `R G B name` or `V name` in the classes' order."""
    map_suffix: str | None = None
    """labels: what maps have behind their image's name, such as _mask or _gtFine_labelIds (default: looked for)."""
    val_fraction: float = 0.0
    """Share of the images to hold out, the same of every class, in [0, 1)."""
    shuffle: bool = True
    """Write in a random order; without it, in the source's, which for class folders is bad for training."""
    seed: int = 0
    """Seed of order, split and scenes."""
    size: int | None = None
    """Side of the scenes in pixels (default 128); for images, shrink the shorter side to this (default: keep bytes)."""
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
        if not self.source.strip():
            raise UserError("source is empty: expected a folder or file (is a variable of the shell unset?)")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"val-fraction must lie in [0, 1), got {self.val_fraction}")
        if self.count < 1:
            raise UserError(f"count must be at least 1, got {self.count}")
        if self.class_depth is not None and self.class_depth < 0:
            raise UserError(f"class-depth must be at least 0, got {self.class_depth}")
        if self.size is not None and self.size < 32:
            raise UserError(f"size must be at least 32 pixels, got {self.size}")
        if self.size is not None and self.size**2 > self.max_pixels:
            raise UserError(f"images of size {self.size} have more pixels than max-pixels {self.max_pixels} allows")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality must lie in 1 to 100, got {self.quality}")
        if self.quality != 95 and self.size is None:
            raise UserError("quality is that of images that --size shrinks: without it files keep their bytes")

    @property
    def preparation(self) -> Preparation:
        """What is done to each image."""
        return Preparation(check=self.check, resize=self.size, quality=self.quality, max_pixels=self.max_pixels)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names in the list that is given, or else in one that lies in the source."""
        path = self.classes or find_class_names(Path(self.source))
        return None if path is None else tuple(read_class_names(path))
