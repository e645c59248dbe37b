"""Sizes of architectures that can be pretrained, as ``backbones/main.py list`` shows them. Imports no torch.

Counting takes seconds, and torch: those of the zoo stand in counts.json, which
``python benchmarks/tables/backbone_counts.py`` writes again.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.terms import Size

COUNTS = Path(__file__).with_name("counts.json")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What is counted of one architecture."""

    parameters: int
    macs: int
    """Multiply-accumulates of an image."""
    img_size: Size
    """Height and width in pixels of that image."""
    strides: tuple[int, ...]
    """Pixels per place of its maps, finest first."""
    unit: Size
    """Height and width of a mask unit in pixels."""
    encoders: tuple[str, ...]
    """Values of ``mim.encoder`` that it can be pretrained with."""


def read_counts() -> dict[str, Counts]:
    """Read the sizes that were counted before, by timm's names."""
    content: dict[str, dict[str, Any]] = json.loads(COUNTS.read_text())
    return {name: Counts(**_with_tuples(counts)) for name, counts in content.items()}


def sides(size: Size) -> str:
    """Write a height and width, or one number where they are the same."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _with_tuples(counts: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in counts.items()}
