"""Every choice of a classification run. Imports no torch."""

import re
from dataclasses import dataclass, field
from typing import Literal

from data.config import DataConfig
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig, may_change
from engine.errors import UserError
from finetune.config import StartConfig, check_evaluation

RAND_AUGMENT = r"rand(-((m|n|mmax)\d+|(mstd|p)\d+(\.\d+)?|inc[01]|t(weights|3a|3aw|0)?))*"
"""The policies that timm understands."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is trained, on how many labels."""

    method: Literal["finetune", "linear", "knn"] = "finetune"
    """finetune: backbone and head; linear: BatchNorm and a linear layer on the frozen backbone; knn: no training."""
    num_classes: int | None = None
    """Number of classes; None takes the manifest's."""
    freeze: Literal["none", "backbone"] | int = "none"
    """What of the backbone is not trained: none, all, or its stem and first n stages (blocks, if it has no stages)."""
    label_fraction: float = 1.0
    """Share of each class's samples to train on, at least one; which ones depends on the manifest and `run.seed`."""
    labels_per_class: int | None = None
    """Train on this many samples of each class instead; which ones depends on the manifest and `run.seed`."""
    repeats: int = 1
    """Repeated augmentation: an epoch visits 1/repeats of the samples, this many times each with other crops."""
    neighbours: int = 20
    """k of kNN."""
    temperature: float = 0.07
    """Temperature of the neighbours' votes."""

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise UserError(f"task.label-fraction must lie in (0, 1], got {self.label_fraction}")
        if self.labels_per_class is not None and self.labels_per_class < 1:
            raise UserError(f"task.labels-per-class must be at least 1, got {self.labels_per_class}")
        if self.labels_per_class is not None and self.label_fraction < 1:
            raise UserError("task.label-fraction and task.labels-per-class exclude each other: set one of them")
        if self.num_classes is not None and self.num_classes < 2:
            raise UserError(f"task.num-classes must be at least 2, got {self.num_classes}")
        if isinstance(self.freeze, int) and self.freeze < 0:
            raise UserError(f"task.freeze must be none, backbone or a number of stages from 0 on, got {self.freeze}")
        if self.repeats < 1 or self.neighbours < 1 or self.temperature <= 0:
            raise UserError("task.repeats and task.neighbours must be at least 1 and task.temperature positive")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images are changed; the defaults are the published fine-tuning recipe (SimMIM, GreenMIM)."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area in a crop."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Narrowest and widest aspect ratio of a crop."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How crops, and the images of evaluations, are resized."""
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment policy in timm's notation; None is off."""
    color_jitter: float = 0.4
    """Strength of brightness, contrast and saturation jitter; as in timm, not applied beside RandAugment."""
    erase_prob: float = 0.25
    """Probability that a rectangle of an image is replaced by noise (timm's `pixel` mode, once)."""
    mixup_alpha: float = 0.8
    """Mixup's Beta parameter; 0 is off."""
    cutmix_alpha: float = 1.0
    """CutMix's Beta parameter; 0 is off."""
    mix_prob: float = 1.0
    """Probability that a micro-batch is mixed at all."""
    mix_switch_prob: float = 0.5
    """Probability of CutMix rather than mixup where both are on."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"augment.scale must be two rising shares in (0, 1], got {self.scale}")
        for name in ("flip", "erase_prob", "mix_prob", "mix_switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name.replace('_', '-')} is a probability, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"augment.label-smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.rand_augment is not None and not re.fullmatch(RAND_AUGMENT, self.rand_augment):
            raise UserError(
                "augment.rand-augment takes None, or rand with parts such as m9 (strength), n2 (operations an image), "
                "mstd0.5 (deviation of the strength), mmax10, p0.5 (probability), inc1 (rising strengths), tweights, "
                f"t3a or t3aw (operations): rand-m9-mstd0.5-inc1; got {self.rand_augment!r}"
            )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return self.mix_prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


@dataclass(frozen=True, kw_only=True)
class ClassifyEvaluationConfig:
    """When and how accuracy is measured; the last step is always measured."""

    every_epochs: float = may_change(1.0)
    """Passes over the training samples between evaluations; or give `every_steps`."""
    every_steps: int | None = may_change(None, overrides="every_epochs")
    """Optimizer steps between evaluations."""
    crop_ratio: float = 0.875
    """Side of the centre crop over the resized image's side (224 of 256)."""
    micro_batch_size: int = may_change(64)
    """Images of one forward in evaluations."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_ratio <= 1:
            raise UserError(f"evaluation.crop-ratio must lie in (0, 1], got {self.crop_ratio}")
        check_evaluation(self)


def _published_optimizer() -> OptimizerConfig:
    return OptimizerConfig(
        base_lr=1.25e-3,
        lr_batch_size=512,
        warmup_lr=2.5e-7,
        min_lr=2.5e-7,
        epochs=100,
        warmup_epochs=20,
        betas=(0.9, 0.999),
        layer_decay=0.9,
        clip_grad_norm=5.0,
    )


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Teach a pretrained backbone to classify labelled images, and measure how well it does."""

    data: DataConfig
    val_shards: str
    """Folder with the labelled shards that accuracy is measured on."""
    backbone: StartConfig = field(default_factory=StartConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    evaluation: ClassifyEvaluationConfig = field(default_factory=ClassifyEvaluationConfig)
    optimizer: OptimizerConfig = field(default_factory=_published_optimizer)
    run: RunConfig = field(default_factory=RunConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    eval_only: str | None = may_change(None)
    """What to measure without training; now the command `evaluate WHAT`."""

    def __post_init__(self) -> None:
        if self.task.method == "finetune" and self.augment.mixes and self.data.micro_batch_size % 2:
            raise UserError(
                f"mixup and CutMix pair the images of a micro-batch: data.micro-batch-size must be even, "
                f"got {self.data.micro_batch_size}; or set augment.mix-prob to 0"
            )
