"""The options of `data/main.py index|verify|show|bench` (`write`: data/sources/config.py). Imports no torch."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from data.config import DataConfig, DecodeMode
from data.parallel import num_cores
from data.remote.config import CacheConfig
from engine.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Index:
    """Make manifest and index files for WebDataset tars that were written elsewhere."""

    source: Path
    """Folder with the tars, one tar, or `shard-{000000..000999}.tar`; nothing is written there but in OUT."""
    out: Path
    """Folder for manifest and index files; may be the one with the tars, but is never guessed."""
    pattern: str = "*.tar"
    """Which tars of a folder, for example `train-*.tar` or `shard-{000000..000999}.tar`."""
    classes: Path | None = None
    """Class names in label order (JSON list or one a line); default: classes.json or classes.txt beside the tars."""
    first_class: int | None = None
    """Number of the first class in the tars: 1 where they count from 1 (default: 0)."""
    processes: int = field(default_factory=num_cores)
    """Processes that read the tars."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check sizes, digests, images, keys and labels; exit code 1 where something is broken."""

    shards: str
    """Folder with the manifest, or its URL."""
    decode: int = 1000
    """How many samples to decode, spread over all."""
    full: bool = False
    """Decode all samples."""
    digests: bool = True
    """Compare every tar with its digest."""
    json_out: Path | None = None
    """Also write the findings to this file."""
    processes: int = field(default_factory=num_cores)
    """Processes that read and decode."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Remote shards."""

    def __post_init__(self) -> None:
        """Refuse what cannot be decoded."""
        if self.decode < 0:
            raise UserError(f"decode must be at least 0, got {self.decode}")


@dataclass(frozen=True, kw_only=True)
class Show:
    """Draw a contact sheet and count the classes."""

    shards: str
    """Folder with the manifest, or its URL."""
    out: Path = Path("contact_sheet.png")
    """PNG file to write."""
    count: int = 48
    """How many images."""
    columns: int = 8
    """How many in a row."""
    seed: int = 0
    """Which ones."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Remote shards."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure on one core how fast these shards become random resized crops, and where the time goes."""

    shards: Positional[str]
    """Folder with the manifest, or its URL."""
    images: int = 1024
    """How many images, in training order; those of small data sets come again."""
    size: int = 224
    """Side of the crops in pixels."""
    decode: DecodeMode = "exact"
    """As data.decode in recipes; the other one is measured as well."""
    max_pixels: int = DataConfig.max_pixels
    """As data.max-pixels in recipes: larger images count as ones that do not decode."""
    gpu_images_per_s: float | None = None
    """Images a second that a GPU trains on: says how many cores feed it."""
    json_out: Path | None = None
    """Also write the figures to this file."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Remote shards."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.images < 1 or self.size < 1:
            raise UserError(f"images and size must be at least 1, got {self.images} and {self.size}")
        if self.size**2 > DataConfig.max_pixels:
            raise UserError(f"size must be at most {math.isqrt(DataConfig.max_pixels)} pixels, got {self.size}")
        if self.gpu_images_per_s is not None and self.gpu_images_per_s <= 0:
            raise UserError(f"gpu-images-per-s must be positive, got {self.gpu_images_per_s}")
