"""Every choice of a segmentation run. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from data.config import DataConfig
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig, may_change
from engine.errors import UserError
from engine.terms import Size
from finetune.config import EvaluationConfig, StartConfig


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """The head, and what of the backbone it takes. Defaults are SegViT's (arXiv 2210.05844)."""

    head: Literal["segvit", "uper_net", "semantic_fpn", "all_mlp"] = "segvit"
    """segvit takes layers of a plain ViT or stages of another backbone; the others take a pyramid of any backbone."""
    dim: int | None = None
    """Width of the head in channels; None is the published: half the backbone's for segvit, else 512, 256 and 256."""
    num_heads: int | None = None
    """Heads of segvit's attentions; None is one for each 32 channels."""
    layers: tuple[int, ...] | None = None
    """segvit on a plain ViT: numbers of the blocks, from 0, after which maps are taken; None: each third of them."""
    strides: tuple[int, ...] | None = None
    """Strides of the maps taken from a pyramid, in pixels; None is 8 16 32 for segvit and 4 8 16 32 for the others."""
    class_token: Literal["drop", "keep"] = "drop"
    """segvit on a plain ViT: whether the class token goes through the blocks; it is never part of a map."""
    cascade: bool = True
    """segvit: one attention-to-mask stage for each map; false: one, on the deepest map alone."""
    loss: Literal["atm", "ce"] = "atm"
    """segvit: atm classifies queries and compares masks; ce is pixel cross-entropy on the combined map, an ablation."""
    shrink: Literal["none", "qd", "qd+qu"] = "none"
    """segvit on a plain ViT: qd halves rows and columns of the tokens inside; qu enlarges maps by learned queries."""
    shrink_block: int | None = None
    """The block that shrinks, from 0; None is the one after a third of the depth."""
    shrink_of: Literal["q", "qkv"] = "q"
    """What of that block sees the fewer tokens: its queries alone, or all of it."""
    score_stride: int = may_change(1)
    """segvit: pixels per place at which class and mask shares are multiplied; 1 is published, 4 is cheaper."""

    def __post_init__(self) -> None:
        others = [name for name in SEGVITS if getattr(self, name) != getattr(SegmenterConfig, name)]
        if self.head != "segvit" and others:
            raise UserError(
                f"{', '.join('segmenter.' + name.replace('_', '-') for name in others)}: an option of SegViT's; leave "
                f"it out for {self.head}, or set segmenter.head segvit"
            )
        if self.shrink_block is not None and self.shrink == "none":
            raise UserError("segmenter.shrink-block needs segmenter.shrink qd or qd+qu")
        if self.num_heads is not None and self.num_heads < 1:
            raise UserError(f"segmenter.num-heads must be at least 1, got {self.num_heads}")
        if self.strides is not None and (not self.strides or list(self.strides) != sorted(set(self.strides))):
            raise UserError(f"segmenter.strides must be rising numbers of pixels, got {self.strides}")
        if self.dim is not None and (self.dim < 8 or self.dim % 8):
            raise UserError(f"segmenter.dim must be a positive multiple of 8, got {self.dim}")
        if self.dim is not None and self.num_heads is not None and self.dim % self.num_heads:
            raise UserError(f"segmenter.num-heads {self.num_heads} does not divide segmenter.dim {self.dim}")
        if self.shrink == "qd+qu" and not self.cascade:
            raise UserError(
                "segmenter.cascade false takes the deepest map alone, and shrink qd+qu gathers from all: leave one out"
            )
        if self.score_stride < 1:
            raise UserError(f"segmenter.score-stride must be at least 1, got {self.score_stride}")


SEGVITS = (
    "num_heads",
    "layers",
    "class_token",
    "cascade",
    "loss",
    "shrink",
    "shrink_block",
    "shrink_of",
    "score_stride",
)
"""Options that other heads do not have."""


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """What the values of the label maps mean."""

    values: Literal["classes", "zero_is_void", "cityscapes"] = "classes"
    """classes: class numbers from 0; zero_is_void: from 1 (ADE20K); cityscapes: label ids, of which 19 are classes."""
    void: tuple[int, ...] = (255,)
    """Values of pixels that belong to no class and are ignored."""
    num_classes: int | None = None
    """Number of classes; None takes the manifest's."""

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 2:
            raise UserError(f"labels.num-classes must be at least 2, got {self.num_classes}")
        if any(not 0 <= value < 2**16 for value in self.void):
            raise UserError(f"labels.void takes values of label maps of up to 16 bits, 0 to 65535, got {self.void}")
        if self.values == "cityscapes" and self.num_classes not in (None, 19):
            raise UserError(
                f"labels.values cityscapes tells 19 classes apart, labels.num-classes asks for {self.num_classes}"
            )


@dataclass(frozen=True, kw_only=True)
class SegmentAugmentConfig:
    """How training images and their label maps are changed; the defaults are the published recipes'."""

    crop: Size = (512, 512)
    """Height and width of training crops in pixels; smaller images are padded: mean colour, void in the label map."""
    short_side: int | None = None
    """Shorter side that images are brought to before `scale`; None is the crop's shorter side."""
    long_side: int = 2048
    """Longer side that is not exceeded before `scale`."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor on that size."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    most_of_one_class: float = 0.75
    """Crops with a larger share of one class are drawn again, up to ten times; 1 takes the first."""
    photometric: float = 0.5
    """Probability of each change of brightness, contrast, saturation and hue."""

    def __post_init__(self) -> None:
        if min(self.crop) < 1 or (self.short_side or 1) < 1 or self.long_side < 1:
            raise UserError("augment.crop, augment.short-side and augment.long-side must be positive")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"augment.scale must be two rising positive factors, got {self.scale}")
        for name in ("flip", "photometric", "most_of_one_class"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name.replace('_', '-')} must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How a label map of a whole image is made."""

    mode: Literal["whole", "slide"] = may_change("whole")
    """whole: the image at once; slide: overlapping windows, whose scores are averaged where they overlap."""
    window: Size | None = may_change(None)
    """slide: height and width of a window in pixels; None is the training crop."""
    step: Size | None = may_change(None)
    """slide: rows and columns between windows in pixels; None is two thirds of a window."""
    short_side: int | None = may_change(None)
    """Shorter side that images are brought to; None keeps their size."""
    long_side: int = may_change(2048)
    """Longer side that is not exceeded then."""
    scales: tuple[float, ...] = may_change((1.0,))
    """Factors on that size whose scores are averaged."""
    flip: bool = may_change(False)
    """Also average with the flipped image's scores."""

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"inference.scales must be positive factors, at least one, got {self.scales}")
        if (self.short_side is not None and self.short_side < 1) or self.long_side < 1:
            raise UserError(
                f"inference.short-side and inference.long-side must be positive, got {self.short_side}, "
                f"{self.long_side}"
            )
        for name in ("window", "step"):
            if min(getattr(self, name) or (1,)) < 1:
                raise UserError(f"inference.{name} must be two positive numbers, got {getattr(self, name)}")
        if self.window and self.step and any(s > w for s, w in zip(self.step, self.window, strict=True)):
            raise UserError(
                f"inference.step {self.step} is more than inference.window {self.window}: pixels would be left out"
            )
        if self.step and not self.window:
            raise UserError("inference.step needs inference.window")


def _published_optimizer() -> OptimizerConfig:
    return OptimizerConfig(
        base_lr=2e-5,
        lr_batch_size=16,
        head_lr_scale=10.0,
        decay="poly",
        steps=160_000,
        warmup_steps=1500,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        clip_grad_norm=35.0,
    )


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Teach a pretrained backbone to segment images, and measure how well it does."""

    data: DataConfig
    val_shards: str
    """Folder with the shards that are measured on."""
    backbone: StartConfig = field(default_factory=StartConfig)
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    augment: SegmentAugmentConfig = field(default_factory=SegmentAugmentConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    evaluation: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(every_epochs=10.0))
    optimizer: OptimizerConfig = field(default_factory=_published_optimizer)
    run: RunConfig = field(default_factory=RunConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    eval_only: str | None = may_change(None)
    """What to measure without training; now the command `evaluate WHAT`."""

    def __post_init__(self) -> None:
        if self.segmenter.head == "uper_net" and self.data.micro_batch_size < 2:
            raise UserError(
                "uper_net pools the whole image and normalises over the micro-batch: data.micro-batch-size must be at "
                f"least 2, got {self.data.micro_batch_size}"
            )


def window_of(config: SegmentConfig) -> Size:
    """Height and width of a sliding window in pixels."""
    return config.inference.window or config.augment.crop
