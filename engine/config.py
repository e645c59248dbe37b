"""The config sections that every program shares. Imports no torch."""

from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine.errors import UserError


def may_change(default: Any = MISSING) -> Any:
    """Return a config field that may differ when a run is resumed: it changes no sample, mask, model or schedule.

    Without a default it must be given.
    """
    return field(default=default, metadata={"may_change": True})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lives and what it keeps."""

    folder: Path = may_change(Path("runs/unnamed"))
    """Run folder; a run found there is resumed."""
    seed: int = 0
    """Seed of everything random: samples, crops, masks, initial weights."""
    save_every_steps: int = may_change(1000)
    """Steps between checkpoints; one is always written at the end."""
    keep_last: int = may_change(2)
    """Checkpoints kept besides those of `keep_every_steps`; at least 1, and with 1 there is none before it if a disk damages it."""
    keep_every_steps: int | None = may_change(None)
    """Also keep every checkpoint whose step is a multiple of this."""
    branch_from: Path | None = may_change(None)
    """Checkpoint folder of another run to start this new run from."""
    max_rewinds: int = may_change(5)
    """How often the run may go back to its last checkpoint to leave out a micro-batch that is not finite; then it stops."""
    stall_timeout_s: float | None = may_change(600.0)
    """Seconds without progress in a step after which the run dumps its stacks and ends; 6 times that outside; None: never."""

    def __post_init__(self) -> None:
        if self.max_rewinds < 0:
            raise UserError(f"run.max-rewinds must not be negative, got {self.max_rewinds}; 0 stops at the first one")
        if self.stall_timeout_s is not None and self.stall_timeout_s <= 0:
            raise UserError(f"run.stall-timeout-s must be positive, or None for no limit, got {self.stall_timeout_s}")
        if self.save_every_steps < 1:
            raise UserError(f"run.save-every-steps must be at least 1, got {self.save_every_steps}")
        if self.keep_last < 1:
            raise UserError(f"run.keep-last must be at least 1, got {self.keep_last}")
        if self.keep_every_steps is not None and self.keep_every_steps < 1:
            raise UserError(f"run.keep-every-steps must be at least 1, got {self.keep_every_steps}")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a run says about itself."""

    every_steps: int = may_change(10)
    """Steps between reports; the device is synchronised only then."""
    tensorboard: bool = may_change(True)
    """Also write TensorBoard event files."""
    wandb_project: str | None = may_change(None)
    """Also log to this Weights & Biases project (needs the `wandb` extra)."""
    samples: bool = may_change(False)
    """Also write the sample ids, crops and mask of every micro-batch, one file per process, for audits."""

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise UserError(f"report.every-steps must be at least 1, got {self.every_steps}")


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """How processes share the work; none of it changes samples or masks."""

    engine: Literal["auto", "deepspeed", "ddp", "single"] = may_change("auto")
    """auto: what the launcher asked for (DeepSpeed under `accelerate launch --use_deepspeed`), else DDP, else one process."""
    zero_stage: Literal[0, 1, 2, 3] = may_change(1)
    """DeepSpeed ZeRO stage."""
    precision: Literal["bf16", "fp32", "fp64"] = "bf16"
    """Autocast type; weights, gradient sums and optimizer stay fp32 (all fp64 with fp64, for proofs)."""
    fp8: bool = may_change(False)
    """Multiply in fp8 in the linear layers of transformer blocks, under precision bf16; needs an Ada or Hopper GPU and the `fp8` extra."""
    compile: bool = may_change(False)
    """torch.compile the model."""
    deterministic: bool = may_change(False)
    """Deterministic GPU kernels: slower, bit-identical resume. CPU runs always are."""

    def __post_init__(self) -> None:
        if self.fp8 and self.precision != "bf16":
            raise UserError(f"distributed.fp8 goes with distributed.precision bf16, got {self.precision}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and half-cosine, polynomial or stepwise decay, stepped every iteration."""

    base_lr: float = 1.5e-4
    """Learning rate for a batch of `lr_batch_size`; the peak is base_lr * batch_size / lr_batch_size."""
    lr_batch_size: int = 256
    """Images that `base_lr`, `warmup_lr` and `min_lr` are given for."""
    warmup_lr: float = 0.0
    """Learning rate at step 0, scaled like `base_lr`."""
    min_lr: float = 0.0
    """Learning rate at the end, scaled like `base_lr`."""
    epochs: float = 800.0
    """Length of the run in passes over the samples, mixed ones counted together; `steps` overrides it."""
    warmup_epochs: float = 40.0
    """Linear warm-up in passes over the samples; `warmup_steps` overrides it."""
    steps: int | None = None
    """Length of the run in optimizer steps."""
    warmup_steps: int | None = None
    """Linear warm-up in optimizer steps."""
    decay: Literal["cosine", "poly", "steps"] = "cosine"
    """How the rate falls after the warm-up: half a cosine, (1 - progress) ** `poly_power`, or by `decay_factor` at each of `decay_at`."""
    poly_power: float = 1.0
    """Exponent of the polynomial decay; 1 is a straight line."""
    decay_at: tuple[float, ...] = (8 / 12, 11 / 12)
    """Shares of the run after which `steps` decays: COCO's epochs 8 and 11 of 12."""
    decay_factor: float = 0.1
    """What `steps` multiplies the rate by, each time."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW moment decay rates."""
    eps: float = 1e-8
    """AdamW denominator term."""
    weight_decay: float = 0.05
    """Decoupled weight decay; none for 1-D tensors, bias tables, LayerScale and tokens."""
    layer_decay: float = 1.0
    """Factor on the learning rate from one layer group to the one below; 1 is off."""
    head_lr_scale: float = 1.0
    """Factor on the learning rate of what lies outside the backbone, such as a detector or segmentation head."""
    clip_grad_norm: float | None = None
    """Clip the global gradient norm at this."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay per step; None keeps none."""

    def __post_init__(self) -> None:
        self._check_decay()
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"optimizer.layer-decay must lie in (0, 1], got {self.layer_decay}")
        if self.base_lr <= 0:
            raise UserError(f"optimizer.base-lr must be positive, got {self.base_lr}")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"optimizer.steps must be at least 1, got {self.steps}")
        if self.lr_batch_size < 1:
            raise UserError(f"optimizer.lr-batch-size must be at least 1, got {self.lr_batch_size}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas must lie in [0, 1), got {self.betas}")
        if self.weight_decay < 0 or self.eps <= 0:
            raise UserError(
                f"optimizer.weight-decay must not be negative and optimizer.eps must be positive, "
                f"got {self.weight_decay} and {self.eps}"
            )
        if self.clip_grad_norm is not None and self.clip_grad_norm <= 0:
            raise UserError(f"optimizer.clip-grad-norm must be positive, got {self.clip_grad_norm}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"optimizer.ema-decay must lie in (0, 1), got {self.ema_decay}")

    def _check_decay(self) -> None:
        if self.head_lr_scale <= 0 or self.poly_power <= 0:
            raise UserError(
                f"optimizer.head-lr-scale and optimizer.poly-power must be positive, got {self.head_lr_scale} and "
                f"{self.poly_power}"
            )
        if not 0 < self.decay_factor <= 1:
            raise UserError(f"optimizer.decay-factor must lie in (0, 1], got {self.decay_factor}")
        if list(self.decay_at) != sorted(self.decay_at) or not all(0 < share <= 1 for share in self.decay_at):
            raise UserError(f"optimizer.decay-at takes rising shares of the run in (0, 1], got {self.decay_at}")


def micro_batches_of(rank: int, *, world_size: int, batch_size: int, micro_batch_size: int) -> range:
    """Return the micro-batch numbers that process ``rank`` of ``world_size`` computes in every step.

    Raises:
        UserError: the micro-batches do not divide among the processes; the message lists the counts that do.
    """
    if batch_size % micro_batch_size:
        raise UserError(
            f"data.batch-size {batch_size} is no multiple of data.micro-batch-size {micro_batch_size}; "
            f"use {batch_size // micro_batch_size * micro_batch_size or micro_batch_size}"
        )
    num_micro_batches = batch_size // micro_batch_size
    if num_micro_batches % world_size:
        fitting = ", ".join(str(w) for w in range(1, num_micro_batches + 1) if num_micro_batches % w == 0)
        raise UserError(
            f"{num_micro_batches} micro-batches (data.batch-size {batch_size} / data.micro-batch-size "
            f"{micro_batch_size}) cannot be divided among {world_size} processes; process counts that work: {fitting}"
        )
    share = num_micro_batches // world_size
    return range(rank * share, (rank + 1) * share)
