"""The config sections that every program shares. Imports no torch."""

from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine.errors import UserError


def may_change(default: Any = MISSING, *, overrides: str | None = None) -> Any:
    """Mark a config field that may differ when a run is resumed: it changes no sample, mask, model or schedule.

    Without a default it must be given. ``overrides`` is as in :func:`overriding`.
    """
    return field(default=default, metadata={"may_change": True} | ({"overrides": overrides} if overrides else {}))


def overriding(name: str) -> Any:
    """Mark a config field that is None, or holds in place of the field ``name``; what is given later wins."""
    return field(default=None, metadata={"overrides": name})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The folder of the run, its seed, and when it saves."""

    folder: Path = may_change(Path("runs/unnamed"))
    """Folder that the run writes; a run that is there already goes on."""
    seed: int = 0
    """Seed of everything random: order of samples, crops, masks, first weights."""
    save_every_steps: int = may_change(1000)
    """Steps between checkpoints, at least 1; one is always written at the end."""
    keep_last: int = may_change(2)
    """Newest checkpoints to keep, at least 1; 2 leave one to go back to where a disk damages the last."""
    keep_every_steps: int | None = may_change(None)
    """Also keep the checkpoints whose step is a multiple of this, at least 1; None keeps no others."""
    branch_from: Path | None = may_change(None)
    """Checkpoint folder of another run that this new run starts from."""
    max_rewinds: int = may_change(5)
    """Times that a run may go back to leave out micro-batches that are not finite, at least 0; then it stops."""
    stall_timeout_s: float | None = may_change(600.0)
    """Seconds without progress after which a run that hangs ends, above 0; 6 times that outside steps; None: never."""

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
    """What a run writes about its progress."""

    every_steps: int = may_change(10)
    """Steps between reports, at least 1; the host waits for the device only then."""
    tensorboard: bool = may_change(True)
    """Also write TensorBoard event files."""
    wandb_project: str | None = may_change(None)
    """Also log to this Weights & Biases project; needs the `wandb` extra."""
    samples: bool = may_change(False)
    """Also write the ids, crops and mask of every micro-batch, one file per process, for audits."""

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise UserError(f"report.every-steps must be at least 1, got {self.every_steps}")


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Precision, and how processes share the work; none of it changes samples or masks."""

    precision: Literal["bf16", "fp32", "fp64"] = "bf16"
    """Type of the forward pass; weights, gradient sums and optimizer stay fp32 (fp64 with fp64, for proofs)."""
    engine: Literal["auto", "deepspeed", "ddp", "single"] = may_change("auto")
    """What joins the processes; auto: DeepSpeed under `accelerate launch --use_deepspeed`, else DDP, or one process."""
    zero_stage: Literal[0, 1, 2, 3] = may_change(1)
    """What DeepSpeed shards; 1: moments, 2: gradients too, 3: weights too, 0: nothing."""
    compile: bool = may_change(False)
    """Compile the model with torch.compile."""
    deterministic: bool = may_change(False)
    """Use deterministic GPU kernels: slower, but resuming gives the same bits; on CPUs they always are."""
    fp8: bool = may_change(False)
    """Multiply in fp8 in transformer blocks' linear layers, under bf16; needs an Ada or Hopper GPU, the `fp8` extra."""

    def __post_init__(self) -> None:
        if self.fp8 and self.precision != "bf16":
            raise UserError(f"distributed.fp8 goes with distributed.precision bf16, got {self.precision}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Length of the run, learning rate and AdamW."""

    epochs: float = 800.0
    """Length of the run in passes over the samples, mixed ones counted together; or give `steps`."""
    base_lr: float = 1.5e-4
    """Learning rate per `lr_batch_size` images, above 0; the peak is base_lr * batch_size / lr_batch_size."""
    warmup_epochs: float = 40.0
    """Linear warm-up in passes over the samples; or give `warmup_steps`."""
    steps: int | None = overriding("epochs")
    """Length of the run in optimizer steps, at least 1; None follows `epochs`."""
    warmup_steps: int | None = overriding("warmup_epochs")
    """Linear warm-up in optimizer steps; None follows `warmup_epochs`."""
    weight_decay: float = 0.05
    """Decoupled weight decay, at least 0; none for 1-D tensors, bias tables, LayerScale and tokens."""
    layer_decay: float = 1.0
    """Factor on the learning rate from one layer group to the one below, in (0, 1]; 1 is off."""
    clip_grad_norm: float | None = None
    """Bound on the global gradient norm, above 0; None is none."""
    ema_decay: float | None = None
    """Decay per step of an average of the weights, in (0, 1), such as 0.9999; None keeps no average."""
    decay: Literal["cosine", "poly", "steps"] = "cosine"
    """Fall of the rate: half a cosine, (1 - progress) ** `poly_power`, or by `decay_factor` at each of `decay_at`."""
    lr_batch_size: int = 256
    """Images that `base_lr`, `warmup_lr` and `min_lr` are given for, at least 1."""
    warmup_lr: float = 0.0
    """Learning rate at step 0, scaled like `base_lr`."""
    min_lr: float = 0.0
    """Learning rate at the end, scaled like `base_lr`."""
    head_lr_scale: float = 1.0
    """Factor on the learning rate outside the backbone, such as that of a detector's head, above 0."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's moments, in [0, 1)."""
    eps: float = 1e-8
    """Term in AdamW's denominator, above 0."""
    poly_power: float = 1.0
    """Exponent of the polynomial decay, above 0; 1 is a straight line."""
    decay_at: tuple[float, ...] = (8 / 12, 11 / 12)
    """Rising shares of the run, in (0, 1], at which `steps` decays: COCO's epochs 8 and 11 of 12."""
    decay_factor: float = 0.1
    """Factor on the rate at each of `decay_at`, in (0, 1]."""

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
    """Divide a step's micro-batches among the processes; give the numbers of those of process ``rank``.

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
