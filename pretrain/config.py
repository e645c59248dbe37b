"""Every choice of a pretraining run. Imports no torch."""

from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal

from backbones.config import BackboneConfig
from data.config import DataConfig
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig, may_change
from engine.errors import UserError
from pretrain.targets.registry import PIXELS, TARGETS


@dataclass(frozen=True, kw_only=True)
class MimConfig:
    """Masked image modelling: what is hidden, who predicts it, and how."""

    mask_ratio: float = 0.75
    """Share of an image's units that are hidden, in [0, 1); at least one stays visible. 0 predicts all units."""
    target: str = PIXELS
    """What the decoder predicts of a hidden unit: pixels, or what a file of `--extension` registers."""
    normalise_targets: bool = True
    """Normalise each unit's target values by their own mean and variance before the loss."""
    decoder_dim: int = 512
    """Width of the decoder, a multiple of 4 and of `decoder_heads`."""
    decoder_depth: int = 1
    """Transformer blocks in the decoder, at least 1."""
    decoder_heads: int = 16
    """Attention heads in the decoder, at least 1."""
    activation_gib: float | None = may_change(None)
    """GiB of activations that a process may keep, above 0: blocks are recomputed until they fit; None keeps all."""
    micro_batches_per_forward: int = may_change(1)
    """Micro-batches in one pass of a Swin or Swin V2, at least 1, each with its mask: for GPUs that one leaves idle."""
    grouping: Literal["optimal", "greedy", "largest_window", "tiles"] = "optimal"
    """How windows are packed into groups; tiles: for the fused attention kernel on GPUs, the others: for comparison."""
    encoder: Literal["visible", "dense"] = "visible"
    """What the encoder sees; visible: visible tokens (GreenMIM), dense: mask tokens too, and a linear head (SimMIM)."""
    feature_positions: Literal["own", "permuted"] = "own"
    """Where the decoder puts visible features; permuted misplaces them as older code did, for comparison only."""

    def __post_init__(self) -> None:
        if not 0 <= self.mask_ratio < 1:
            raise UserError(
                f"mim.mask-ratio must lie in [0, 1) so that something stays visible, got {self.mask_ratio}; "
                "0.75 is usual"
            )
        if min(self.decoder_heads, self.decoder_dim) < 1:
            raise UserError(
                f"mim.decoder-heads and mim.decoder-dim must be at least 1, got {self.decoder_heads} and "
                f"{self.decoder_dim}"
            )
        if self.decoder_dim % self.decoder_heads or self.decoder_dim % 4:
            raise UserError(
                f"mim.decoder-dim must be a multiple of 4 and of mim.decoder-heads {self.decoder_heads}, "
                f"got {self.decoder_dim}"
            )
        if self.decoder_depth < 1:
            raise UserError(f"mim.decoder-depth must be at least 1, got {self.decoder_depth}")
        if self.target not in TARGETS:
            raise UserError(
                f"mim.target must be one of {', '.join(TARGETS)}, got {self.target!r}; where a file brings it, name "
                "the file with --extension"
            )
        if self.micro_batches_per_forward < 1:
            raise UserError(f"mim.micro-batches-per-forward must be at least 1, got {self.micro_batches_per_forward}")
        if self.micro_batches_per_forward > 1 and self.encoder == "dense":
            raise UserError("mim.micro-batches-per-forward needs mim.encoder visible")
        if self.activation_gib is not None and self.activation_gib <= 0:
            raise UserError(f"mim.activation-gib must be positive, or None for no limit, got {self.activation_gib}")
        if self.activation_gib is not None and self.encoder == "dense":
            raise UserError(
                "mim.activation-gib needs mim.encoder visible, since timm's own forward runs the dense encoder; "
                "leave it out, or make data.micro-batch-size smaller"
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random crops and flips, and the statistics that pixels are normalised with."""

    scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area in a crop, in (0, 1]."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Narrowest and widest ratio of a crop's width to its height, above 0."""
    flip: float = 0.5
    """Probability of a horizontal flip, in [0, 1]."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means of pixels that lie in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Channel standard deviations of pixels that lie in [0, 1], above 0."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"augment.scale must be two rising shares in (0, 1], got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"augment.ratio must be two rising positive numbers, got {self.ratio}")
        if not 0 <= self.flip <= 1:
            raise UserError(f"augment.flip is a probability, got {self.flip}")
        if min(self.std) <= 0:
            raise UserError(f"augment.std must be positive, got {self.std}")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Evaluation of the encoder on labelled shards while it trains."""

    every_steps: int | None = may_change(None)
    """Steps between probes, at least 1, one at step 0 and one at the end; None never probes."""
    train_shards: Path | None = may_change(None)
    """Labelled shards that the probes learn from."""
    val_shards: Path | None = may_change(None)
    """Labelled shards that the probes are measured on."""
    max_samples: int = may_change(5000)
    """Samples used of each, at least 1, from the start of their shards."""
    linear: bool = may_change(True)
    """Also train a linear probe beside kNN."""

    def __post_init__(self) -> None:
        if (self.every_steps is not None and self.every_steps < 1) or self.max_samples < 1:
            raise UserError(
                f"probe.every-steps and probe.max-samples must be at least 1, got {self.every_steps} and "
                f"{self.max_samples}"
            )
        if self.every_steps is not None and (self.train_shards is None or self.val_shards is None):
            raise UserError("probe.every-steps needs labelled shards: set probe.train-shards and probe.val-shards")
        if self.every_steps is None and (self.train_shards is not None or self.val_shards is not None):
            raise UserError(
                "probe.train-shards and probe.val-shards are measured on every probe.every-steps steps: set that too, "
                "or leave the shards out"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain a vision backbone on unlabelled images by masked image modelling."""

    data: DataConfig
    run: RunConfig = field(default_factory=RunConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mim: MimConfig = field(default_factory=MimConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        if self.mim.grouping == "tiles" and self.distributed.precision == "fp64":
            raise UserError(
                "mim.grouping tiles is for a kernel without fp64: set distributed.precision, or grouping optimal"
            )
        if self.mim.activation_gib is not None and self.distributed.fp8:
            raise UserError(
                "mim.activation-gib is planned from what bf16 keeps, and distributed.fp8 keeps less: leave one of them "
                "out"
            )
        if self.mim.micro_batches_per_forward > 1 and self.backbone.drop_path > 0:
            raise UserError(
                f"mim.micro-batches-per-forward {self.mim.micro_batches_per_forward} needs backbone.drop-path 0, since "
                f"what is dropped is drawn for each micro-batch, got {self.backbone.drop_path}"
            )


def num_visible(num_units: int, mask_ratio: float) -> int:
    """Count the visible units, floor(units * (1 - ratio)) and at least 1.

    The arithmetic is exact, on the ratio as it is written: 0.9 of 100 leaves 10.
    """
    return max(1, int(num_units * (1 - Decimal(str(mask_ratio)))))
