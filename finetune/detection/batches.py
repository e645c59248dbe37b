"""Builds micro-batches of annotated images of different sizes in a loader worker.

Legend: b images, n objects of one image, h w height and width of the canvas, or of the image, in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from data.images.decode import MAX_PIXELS, BadImage, decode_rgb, decode_samples, read_header
from data.images.joint_transforms import (
    GREY,
    Annotated,
    JointAugmentation,
    RandomShortestSize,
    ScaleJitter,
    joint_transform,
    photometric,
    read_annotated,
    transformed,
    without_degenerate,
)
from data.shards.shard_set import Sample
from engine.terms import Size
from finetune.detection.config import ResizeConfig


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a micro-batch's images hold, one entry an image; crowds are left out: nothing is learnt from them."""

    boxes: tuple[Tensor, ...]
    """[n, 4]: left, top, right, bottom in pixels."""
    labels: tuple[Tensor, ...]
    """[n], class numbers from 0."""
    masks: tuple[Tensor, ...] | None = None
    """[n, h, w], boolean."""

    @classmethod
    def of(cls, annotated: list[dict[str, Tensor]], *, masks: bool) -> "Targets":
        """Take the objects of images as `data.images.joint_transforms` gives them."""
        not_crowd = [~value["crowd"] for value in annotated]
        pairs = list(zip(annotated, not_crowd, strict=True))
        return cls(
            boxes=tuple(value["boxes"][keep].float() for value, keep in pairs),
            labels=tuple(value["labels"][keep] for value, keep in pairs),
            masks=tuple(value["masks"][keep] for value, keep in pairs) if masks else None,
        )

    def to(self, device: torch.device) -> "Targets":
        """Move them to ``device``."""
        return self._changed(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Targets":
        """Copy them to pinned memory."""
        return self._changed(Tensor.pin_memory)

    def as_dicts(self) -> list[dict[str, Tensor]]:
        """Give torchvision's form: one dict an image with ``boxes``, ``labels`` and, where there are any, ``masks``."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return [
            {name: values[row] for name, values in named.items() if values is not None}
            for row in range(len(self.boxes))
        ]

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "Targets":
        masks = None if self.masks is None else tuple(map(change, self.masks))
        return Targets(boxes=tuple(map(change, self.boxes)), labels=tuple(map(change, self.labels)), masks=masks)


@dataclass(frozen=True, kw_only=True)
class DetectionBuilder:
    """Makes ``{"images" [b, 3, h, w], "sizes" [b, 2], "targets", "ids", "bad"}``; images lie in top-left corners.

    The same in any process: what is drawn depends on (seed, step, micro_batch, sample). A sample that cannot be read or
    has a class that there is not is replaced.
    """

    extensions: ClassVar[tuple[str, ...]] = ("json",)
    seed: int
    resize: ResizeConfig
    num_classes: int
    masks: bool
    max_pixels: int = MAX_PIXELS

    def __call__(self, samples: list[Sample], *, step: int, micro_batch: int) -> dict[str, Any]:
        """Make the micro-batch that ``(seed, step, micro_batch)`` names."""
        change = training_transform(self.resize)

        def build(sample: Sample) -> Annotated:
            key = (step, micro_batch, sample.id, sample.repeat)
            annotated = read_annotated(sample, max_pixels=self.max_pixels, masks=self.masks)
            check_annotated(annotated, num_classes=self.num_classes)
            changed = transformed(annotated, change, seed=self.seed, key=key)
            return without_degenerate(changed, min_side_px=self.resize.min_side_px)

        decoded = decode_samples(samples, build)
        images, sizes = on_canvas([value["image"] for value in decoded.values], resize=self.resize)
        values = [_with_canvas(value, size) for value, size in zip(decoded.values, sizes.tolist(), strict=True)]
        return {
            "images": images,
            "sizes": sizes,
            "targets": Targets.of(values, masks=self.masks),
            "ids": torch.tensor([sample.id for sample in decoded.samples]),
            "repeats": torch.tensor([sample.repeat for sample in decoded.samples]),
            "bad": decoded.bad,
        }


@dataclass(frozen=True, kw_only=True)
class EvaluationBuilder:
    """Makes ``{"images", "sizes", "content", "true_sizes", "ids", "bad"}``; unreadable images are grey.

    ``true_sizes`` [b, 2] are heights and widths before resizing, ``content`` after it, ``sizes`` what the network looks
    at.
    """

    resize: ResizeConfig
    max_pixels: int = MAX_PIXELS

    def __call__(self, samples: list[Sample], *, step: int, micro_batch: int) -> dict[str, Any]:
        """Make one micro-batch; ``step`` and ``micro_batch`` change nothing."""
        change = evaluation_transform(self.resize)
        images: list[Tensor] = []
        true_sizes: list[Size] = []
        bad: list[tuple[int, str, str]] = []
        for sample in samples:
            try:
                pixels = decode_rgb(sample.image, header=read_header(sample.image, max_pixels=self.max_pixels))
                image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
            except BadImage as error:
                bad.append((sample.id, sample.key, str(error)))
                image = torch.full((3, 32, 32), GREY, dtype=torch.uint8)
            true_sizes.append((image.shape[1], image.shape[2]))
            images.append(change({"image": image})["image"])
        canvas, sizes = on_canvas(images, resize=self.resize)
        ids = torch.tensor([sample.id for sample in samples])
        return {
            "images": canvas,
            "sizes": sizes,
            "content": torch.tensor([(image.shape[1], image.shape[2]) for image in images]),
            "true_sizes": torch.tensor(true_sizes),
            "ids": ids,
            "bad": bad,
        }


def training_transform(resize: ResizeConfig) -> Callable[[Annotated], Annotated]:
    """Make the change of a training image with its boxes and masks."""
    if resize.mode == "jitter":
        augment = JointAugmentation(
            size=resize.canvas, scale=resize.jitter, flip=resize.flip, photometric=resize.photometric
        )
        return joint_transform(augment)
    if resize.mode == "letterbox":
        scale = ScaleJitter(resize.canvas, scale_range=(1.0, 1.0), antialias=True)
    else:
        scale = RandomShortestSize(list(resize.short_sides), max_size=resize.long_side, antialias=True)
    colours = photometric(resize.photometric)
    return v2.Compose([scale, v2.RandomHorizontalFlip(resize.flip), colours, v2.ClampBoundingBoxes()])


def evaluation_transform(resize: ResizeConfig) -> Callable[[Annotated], Annotated]:
    """Make the change of an image to evaluate: a resize, as in training, without anything random."""
    if resize.mode == "letterbox":
        return ScaleJitter(resize.canvas, scale_range=(1.0, 1.0), antialias=True)
    return RandomShortestSize([resize.test_short_side], max_size=resize.long_side, antialias=True)


def on_canvas(images: list[Tensor], *, resize: ResizeConfig) -> tuple[Tensor, Tensor]:
    """Put images in the top-left corners of one grey canvas; also return the sizes that the network looks at.

    A letterbox counts as a whole, grey included; other images only where they are.
    """
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    if resize.mode == "letterbox":
        height, width = resize.canvas
    padded = [F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1]), value=GREY) for x in images]
    return torch.stack(padded), torch.tensor([(height, width)] * len(sizes) if resize.mode == "letterbox" else sizes)


def check_annotated(annotated: Annotated, *, num_classes: int) -> None:
    """Refuse a sample that cannot be learnt from.

    Raises:
        BadImage: it has no annotations, or a class beyond the last.
    """
    if "boxes" not in annotated:
        raise BadImage("it has no .json with objects")
    labels: Tensor = annotated["labels"]
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise BadImage(f"an object of class {int(labels.max())}, there are {num_classes} classes, from 0")


def _with_canvas(value: Annotated, size: list[int]) -> Annotated:
    """Cut or extend the masks of an image to the size that counts (a letterbox's is the canvas)."""
    if "masks" not in value:
        return value
    masks: Tensor = value["masks"]
    pad = (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1])
    return {**value, "masks": F.pad(masks, pad)}
