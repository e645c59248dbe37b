"""Builds micro-batches of images and label maps in a loader worker: crops for training, whole images for evaluation."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from data.images.decode import BadImage, decode_samples
from data.images.joint_transforms import read_annotated, transformed
from data.shards.shard_set import Sample
from engine.pixels import Statistics
from finetune.segmentation.augmentation import SegmentAugmentation
from finetune.segmentation.config import LabelConfig, SegmentAugmentConfig
from finetune.segmentation.labels import IGNORE_INDEX, ClassError, class_map, class_table

UNREADABLE_SIDE = 32


@dataclass(frozen=True, kw_only=True)
class SegmentBuilder:
    """Makes ``{"images" uint8 [b, 3, h, w], "label_maps" int16 [b, h, w], "shown" [m, 2], "ids", "repeats", "bad"}``.

    ``shown`` lists the (image, class) pairs in the label maps. A sample that cannot be read, or whose label map has a
    value that is no class or nothing but void, is replaced and listed in ``bad``. The same in any process.
    """

    extensions: ClassVar[tuple[str, ...]] = ("seg.png",)
    seed: int
    augment: SegmentAugmentConfig
    labels: LabelConfig
    num_classes: int
    mean: Statistics
    max_pixels: int

    def __call__(self, samples: list[Sample], *, step: int, micro_batch: int) -> dict[str, Any]:
        """Make the micro-batch that ``(seed, step, micro_batch)`` names."""
        transform = SegmentAugmentation(augment=self.augment, mean=self.mean)
        table = class_table(self.labels, num_classes=self.num_classes)

        def build(sample: Sample) -> dict[str, Tensor]:
            annotated = read_sample(sample, table, max_pixels=self.max_pixels)
            if not (annotated["label_map"] != IGNORE_INDEX).any():
                raise BadImage("its label map is empty: every pixel is void")
            key = (step, micro_batch, sample.id, sample.repeat)
            return transformed(annotated, transform, seed=self.seed, key=key)

        decoded = decode_samples(samples, build)
        label_maps = torch.stack([value["label_map"] for value in decoded.values])
        return {
            "images": torch.stack([value["image"] for value in decoded.values]),
            "label_maps": label_maps,
            "shown": classes_shown(label_maps),
            "ids": torch.tensor([sample.id for sample in decoded.samples]),
            "repeats": torch.tensor([sample.repeat for sample in decoded.samples]),
            "bad": decoded.bad,
        }


@dataclass(frozen=True, kw_only=True)
class WholeImageBuilder:
    """Makes ``{"images", "label_maps", "ids", "bad"}``, lists of whole images and their classes; nothing is random.

    A sample that cannot be read is a small grey image, void all over, listed in ``bad``: an evaluation leaves none out.
    """

    extensions: ClassVar[tuple[str, ...]] = ("seg.png",)
    labels: LabelConfig
    num_classes: int
    max_pixels: int

    def __call__(self, samples: list[Sample], *, step: int, micro_batch: int) -> dict[str, Any]:
        """Make one micro-batch; ``step`` and ``micro_batch`` change nothing."""
        table = class_table(self.labels, num_classes=self.num_classes)
        images: list[Tensor] = []
        label_maps: list[Tensor] = []
        bad: list[tuple[int, str, str]] = []
        for sample in samples:
            try:
                annotated = read_sample(sample, table, max_pixels=self.max_pixels)
            except BadImage as error:
                bad.append((sample.id, sample.key, str(error)))
                side = UNREADABLE_SIDE
                annotated = {
                    "image": torch.full((3, side, side), 128, dtype=torch.uint8),
                    "label_map": torch.full((side, side), IGNORE_INDEX, dtype=torch.int16),
                }
            images.append(annotated["image"].as_subclass(torch.Tensor))
            label_maps.append(annotated["label_map"].as_subclass(torch.Tensor))
        ids = torch.tensor([sample.id for sample in samples])
        return {"images": images, "label_maps": label_maps, "ids": ids, "bad": bad}


def read_sample(sample: Sample, table: np.ndarray, *, max_pixels: int) -> dict[str, Tensor]:
    """Read ``image`` uint8 [3, h, w] and ``label_map`` int16 [h, w] of classes.

    Raises:
        BadImage: one of them cannot be read, they differ in size, or a value is neither a class nor void.
    """
    if "seg.png" not in sample.members:
        raise ClassError("it has no label map (.seg.png)")
    annotated = read_annotated(sample, max_pixels=max_pixels)
    classes = class_map(annotated["label_map"].numpy(), table)
    return {"image": annotated["image"], "label_map": torch.from_numpy(classes)}


def classes_shown(label_maps: Tensor) -> Tensor:
    """List the pairs of image number and class that label maps [b, h, w] show, as [m, 2] in rising order."""
    pairs = [
        (number, shown)
        for number, label_map in enumerate(label_maps)
        for shown in label_map.unique().tolist()
        if shown != IGNORE_INDEX
    ]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
