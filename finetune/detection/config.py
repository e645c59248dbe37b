"""Every choice of a detection run. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from data.config import DataConfig
from engine.config import DistributedConfig, OptimizerConfig, ReportConfig, RunConfig, may_change
from engine.errors import UserError
from engine.terms import Size
from finetune.config import EvaluationConfig, StartConfig
from finetune.detection.registry import DETECTORS

FULL_BATCH = 8
"""Images of a micro-batch from which on the backbone's BatchNorm may learn."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What stands on the backbone's pyramid."""

    kind: str = "mask_rcnn"
    """retinanet, yolo find boxes; mask_rcnn, cascade (stages at IoU 0.5, 0.6, 0.7) masks too; extensions add more."""
    masks: bool = True
    """mask_rcnn, cascade: also find masks; false needs boxes only in the data (Faster and Cascade R-CNN)."""
    width: int | None = None
    """Channels of the feature pyramid and of the convolutions on it; None is the published: 256, for yolo 96."""
    box_width: int = 1024
    """mask_rcnn, cascade: width of the two linear layers on each region."""
    anchor_samples: int = 256
    """mask_rcnn, cascade: anchors per image that the proposals learn from."""
    roi_samples: int = 512
    """mask_rcnn, cascade: regions per image that each stage learns from."""
    proposals: tuple[int, int] = (2000, 1000)
    """mask_rcnn, cascade: proposals per level before suppression (in training also per image after it), and per image
    after it in evaluation."""
    anchor_scale: float | None = None
    """Side of the smallest anchors over their stride; None is the published: 4 for retinanet, 8 for the others."""
    score_threshold: float = 0.05
    """Detections with lower scores are not reported."""
    nms_threshold: float | None = None
    """IoU from which on the lower of two detections of a class is dropped; None is 0.5, for yolo 0.45."""
    max_detections: int = 100
    """Most detections per image."""
    frozen_norm: bool | None = None
    """Whether the backbone's BatchNorm keeps statistics and scales; None: where fewer than 8 images have one size."""

    def __post_init__(self) -> None:
        if self.kind not in DETECTORS:
            raise UserError(
                f"detector.kind takes {', '.join(DETECTORS)}, got {self.kind!r}; --extension FILE adds those of a file"
            )
        counts = (self.box_width, self.anchor_samples, self.roi_samples, self.max_detections, *self.proposals)
        if min(counts) < 1 or (self.width is not None and self.width < 8):
            raise UserError("the detector's counts must be at least 1 and detector.width at least 8")
        if self.anchor_scale is not None and self.anchor_scale <= 0:
            raise UserError(f"detector.anchor-scale must be positive, got {self.anchor_scale}")
        if self.nms_threshold is not None and not 0 < self.nms_threshold <= 1:
            raise UserError(f"detector.nms-threshold must lie in (0, 1], got {self.nms_threshold}")
        if not 0 <= self.score_threshold < 1:
            raise UserError(f"detector.score-threshold must lie in [0, 1), got {self.score_threshold}")

    @property
    def has_masks(self) -> bool:
        """Whether it finds masks."""
        return self.masks and DETECTORS[self.kind].masks


@dataclass(frozen=True, kw_only=True)
class ResizeConfig:
    """How images are resized, flipped and coloured; the defaults are COCO's 1x."""

    mode: Literal["short_side", "letterbox", "jitter"] = "short_side"
    """short_side: to a short side, the long one limited; letterbox: to fit a canvas; jitter: at random scales."""
    short_sides: tuple[int, ...] = (800,)
    """short_side: lengths in pixels of which each training image draws one, such as 480 512 ... 800."""
    long_side: int = 1333
    """short_side: largest length of the long side in pixels."""
    test_short_side: int = 800
    """short_side, jitter: short side in evaluations, in pixels."""
    canvas: Size = (1024, 1024)
    """letterbox, jitter: height and width in pixels of what the network sees."""
    jitter: tuple[float, float] = (0.1, 2.0)
    """jitter: smallest and largest factor on the size at which the image just fits into the canvas."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    photometric: float = 0.0
    """Probability of each change of brightness, contrast, saturation and hue."""
    min_side_px: float = 1.0
    """Objects whose box is smaller than this in either direction after the changes are not learnt."""

    def __post_init__(self) -> None:
        if not self.short_sides or min(*self.short_sides, self.long_side, self.test_short_side, *self.canvas) < 1:
            raise UserError("resize.short-sides, long-side, test-short-side and canvas are positive numbers of pixels")
        if self.min_side_px <= 0:
            raise UserError(f"resize.min-side-px must be positive, got {self.min_side_px}")
        if not 0 < self.jitter[0] <= self.jitter[1]:
            raise UserError(f"resize.jitter takes two rising positive factors, got {self.jitter}")
        if not (0 <= self.flip <= 1 and 0 <= self.photometric <= 1):
            raise UserError(
                f"resize.flip and resize.photometric are probabilities, got {self.flip}, {self.photometric}"
            )


def _published_optimizer() -> OptimizerConfig:
    return OptimizerConfig(
        base_lr=1e-4,
        lr_batch_size=16,
        epochs=12,
        warmup_steps=500,
        decay="steps",
        betas=(0.9, 0.999),
        weight_decay=0.05,
    )


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """Teach a pretrained backbone to find objects in images, and measure how well it does."""

    data: DataConfig
    val_shards: str
    """Folder with the annotated shards that average precision is measured on."""
    backbone: StartConfig = field(default_factory=StartConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    resize: ResizeConfig = field(default_factory=ResizeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    optimizer: OptimizerConfig = field(default_factory=_published_optimizer)
    run: RunConfig = field(default_factory=RunConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    eval_only: str | None = may_change(None)
    """What to measure without training; now the command `evaluate WHAT`."""

    def __post_init__(self) -> None:
        kind = self.detector.kind
        if DETECTORS[kind].letterbox and self.resize.mode != "letterbox":
            raise UserError(
                f"detector.kind {kind} sees letterboxed images: set resize.mode letterbox and resize.canvas"
            )


def norm_is_frozen(config: DetectConfig) -> bool:
    """Whether the backbone's BatchNorm keeps its statistics in this run."""
    if config.detector.frozen_norm is not None:
        return config.detector.frozen_norm
    return config.resize.mode == "short_side" or config.data.micro_batch_size < FULL_BATCH


def largest_size(resize: ResizeConfig) -> Size:
    """Height and width of the largest canvas that an image may need, in pixels."""
    if resize.mode != "short_side":
        return resize.canvas
    return resize.long_side, resize.long_side
