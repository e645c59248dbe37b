"""How a training image and its label map are changed together: resize, crop, flip, colours (mmsegmentation's pipeline).

Everything is drawn from torch's global generator, which ``data.images.joint_transforms.transformed`` seeds by the
sample's key.

Legend: h w height and width in pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from data.images.joint_transforms import photometric
from engine.pixels import Statistics
from engine.terms import Size
from finetune.segmentation.config import SegmentAugmentConfig
from finetune.segmentation.labels import IGNORE_INDEX

CROP_ATTEMPTS = 10


def fitting_size(size: Size, *, short_side: int, long_side: int, factor: float = 1.0) -> Size:
    """Compute height and width at which an image of ``size`` just keeps both bounds, times ``factor``."""
    scale = factor * min(short_side / min(size), long_side / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


@dataclass(frozen=True, kw_only=True)
class SegmentAugmentation:
    """A transform of ``{"image" uint8 [3, h, w], "label_map" [h, w]}`` to a crop of fixed size."""

    augment: SegmentAugmentConfig
    mean: Statistics
    """Channel means of the pixels in [0, 1]; what lies beyond the image is filled with them."""

    def __call__(self, annotated: dict[str, Any]) -> dict[str, Any]:
        """Change an image and its label map alike."""
        augment = self.augment
        image, labels = annotated["image"], annotated["label_map"].as_subclass(torch.Tensor)
        size = fitting_size(
            (image.shape[1], image.shape[2]),
            short_side=augment.short_side or min(augment.crop),
            long_side=augment.long_side,
            factor=_uniform(*augment.scale),
        )
        labels = _resize_nearest(labels, size)
        top, left = self._place(labels)
        box = (slice(top, top + augment.crop[0]), slice(left, left + augment.crop[1]))
        image = functional.resize(image, list(size), antialias=True)[:, *box]
        image = photometric(augment.photometric)(tv_tensors.Image(image)).as_subclass(torch.Tensor)
        image, labels = self._padded(image, labels[box])
        if _uniform(0, 1) < augment.flip:
            image, labels = image.flip(-1), labels.flip(-1)
        return {"image": image, "label_map": labels}

    def _place(self, labels: Tensor) -> Size:
        """Draw the top left corner of a crop that no class fills too much of."""
        place = (0, 0)
        for _ in range(CROP_ATTEMPTS):
            spans = [max(side - crop, 0) for side, crop in zip(labels.shape, self.augment.crop, strict=True)]
            top, left = (int(torch.randint(span + 1, ())) for span in spans)
            place = (top, left)
            inside = labels[top : top + self.augment.crop[0], left : left + self.augment.crop[1]]
            counts = inside[inside != IGNORE_INDEX].long().bincount()
            if len(counts) and counts.max() <= self.augment.most_of_one_class * counts.sum():
                break
        return place

    def _padded(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        height, width = self.augment.crop
        if labels.shape == (height, width):
            return image, labels
        colour = torch.tensor([round(255 * channel) for channel in self.mean], dtype=image.dtype)
        whole = colour[:, None, None].expand(3, height, width).clone()
        whole[:, : labels.shape[0], : labels.shape[1]] = image
        void = torch.full((height, width), IGNORE_INDEX, dtype=labels.dtype)
        void[: labels.shape[0], : labels.shape[1]] = labels
        return whole, void


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _resize_nearest(labels: Tensor, size: Size) -> Tensor:
    """Resize a label map; each pixel takes the value of the pixel at its centre."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * old / new).long().clamp(max=old - 1)
        for old, new in zip(labels.shape, size, strict=True)
    )
    return labels[rows][:, columns]
