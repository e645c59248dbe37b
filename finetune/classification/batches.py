"""Builds one micro-batch of labelled training images in a loader worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.config import DecodeMode
from data.images.crop_batch import crop_batch
from data.images.decode import BadImage, Header, Pixels, replace_bad
from data.images.transforms import Crop, random_crop
from data.shards.shard_set import Sample
from engine.pixels import Statistics
from engine.randomness import stream
from engine.terms import Size
from finetune.classification.augmentation import augment_image, image_transform
from finetune.classification.config import AugmentConfig


@dataclass(frozen=True, kw_only=True)
class TrainingBuilder:
    """Makes the micro-batch that ``(seed, step, micro_batch)`` names; the same in any process."""

    seed: int
    img_size: Size
    mean: Statistics
    augment: AugmentConfig
    max_pixels: int
    decode: DecodeMode = "exact"

    def __call__(self, samples: list[Sample], *, step: int, micro_batch: int) -> dict[str, Any]:
        """Make uint8 images and labels, with ids and crops for audits; an unreadable image is replaced."""
        decoded = replace_bad(samples, lambda some: self._crops(some, step, micro_batch))
        images = [pixels for pixels, _ in decoded.values]
        transform = image_transform(self.augment, img_size=self.img_size, mean=self.mean)
        if transform is not None:
            keys = [(step, micro_batch, sample.id, sample.repeat) for sample in decoded.samples]
            images = [
                augment_image(pixels, transform, seed=self.seed, key=key)
                for pixels, key in zip(images, keys, strict=True)
            ]
        return {
            "images": torch.from_numpy(np.stack(images)),
            "labels": torch.tensor([sample.label for sample in decoded.samples], dtype=torch.int64),
            "ids": torch.tensor([sample.id for sample in decoded.samples]),
            "repeats": torch.tensor([sample.repeat for sample in decoded.samples]),
            "crops": torch.tensor([crop for _, crop in decoded.values], dtype=torch.float32),
            "bad": decoded.bad,
        }

    def _crops(self, samples: Sequence[Sample], step: int, micro_batch: int) -> list[tuple[Pixels, Crop] | BadImage]:
        augment = self.augment
        box = {"scale": augment.scale, "ratio": augment.ratio, "flip_probability": augment.flip}

        def draw(sample: Sample, header: Header) -> Crop:
            rng = stream(self.seed, "crop", step, micro_batch, sample.id, sample.repeat)
            return random_crop(header.height, header.width, rng=rng, **box)

        return crop_batch(
            samples,
            draw,
            size=self.img_size,
            interpolation=augment.interpolation,
            decode=self.decode,
            max_pixels=self.max_pixels,
        )
