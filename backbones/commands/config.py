"""The options of ``backbones/main.py list|show|clusters|import|export``. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from backbones.config import ExportNaming, MergeOrder
from engine.errors import UserError
from engine.terms import Size


@dataclass(frozen=True, kw_only=True)
class List:
    """List architectures that can be pretrained, with counted sizes."""

    pattern: Annotated[str | None, Positional, arg(metavar="PATTERN")] = None
    """Only timm names that match, such as 'swin*'; None shows a choice."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """Describe a timm architecture, a backbone folder or a checkpoint file."""

    what: Annotated[str, Positional, arg(metavar="WHAT")]
    """timm name, backbone folder, checkpoint file or run folder."""
    img_size: Size | None = None
    """Height and width in pixels to count an architecture at; None takes its own."""


@dataclass(frozen=True, kw_only=True)
class DrawClusters:
    """Draw the clusters that SecViT's tokens attend in, and the groups of a masked Swin's windows, on an image."""

    image: Annotated[Path, Positional, arg(metavar="IMAGE")]
    """Image file."""
    backbone: str = "secvit_tiny"
    """Backbone folder of a network with SEC attention, or timm's name of one, with random weights."""
    swin: str = "swin_tiny_patch4_window7_224"
    """timm's name of a network with windows."""
    img_size: Size = (224, 224)
    """Height and width in pixels."""
    mask_ratio: float = 0.75
    """Share of the mask units that are hidden."""
    seed: int = 0
    """Of the mask, and of random weights."""
    out: Path = Path("clusters.png")
    """File to write; a PNG where its name has no ending."""

    def __post_init__(self) -> None:
        if min(self.img_size) < 1 or self.seed < 0:
            raise UserError(
                f"--img-size takes positive numbers and --seed none below 0, got {self.img_size} and {self.seed}"
            )


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a backbone folder from a checkpoint: GreenMIM, SimMIM, microsoft's Swin, SecViT, timm or one of our runs."""

    source: Annotated[Path, Positional, arg(metavar="SOURCE")]
    """.pth, .pt, .bin or .safetensors file, backbone folder, run folder or one of its checkpoints."""
    out: Annotated[Path, Positional, arg(metavar="OUT")]
    """Backbone folder to write."""
    architecture: str | None = None
    """timm's name; None tells a Swin or SecViT from the shapes of its weights."""
    img_size: Size | None = None
    """Height and width in pixels; None keeps the file's. Position embeddings and tables are resized."""
    window: int | None = None
    """Window side in tokens; None keeps the file's. Bias tables are resized."""
    greenmim_merge_order: MergeOrder = "swin"
    """official-2022 for weights trained with GreenMIM's code from before 2023, which merged 2x2 cells row by row.
    The published files probably are such (the published fine-tuning did not swap them); swin for everything else."""
    mean: tuple[float, float, float] | None = None
    """Channel means that images are normalised with; None keeps what is known."""
    std: tuple[float, float, float] | None = None
    """Channel standard deviations that images are normalised with; None keeps what is known."""
    partial: Annotated[bool, FlagCreatePairsOff] = False
    """Take what fits and leave the rest random, instead of refusing."""

    def __post_init__(self) -> None:
        if min((*(self.img_size or ()), 1 if self.window is None else self.window)) < 1:
            raise UserError(f"--img-size and --window take positive numbers, got {self.img_size} and {self.window}")
        if min(self.std or (1.0,)) <= 0:
            raise UserError(f"--std takes positive numbers, got {self.std}")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write weights as one file for another code base."""

    source: Annotated[Path, Positional, arg(metavar="SOURCE")]
    """Backbone folder, run folder, or anything that can be imported."""
    out: Annotated[Path, Positional, arg(metavar="OUT")]
    """File to write: .safetensors, or .pth with the weights under "model"."""
    layout: ExportNaming = "timm"
    """Names of the weights: timm's, or those of microsoft's Swin, SimMIM and GreenMIM."""
