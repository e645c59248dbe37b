"""Builds one micro-batch of labelled training images in a loader worker."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.config import DecodeMode
from data.decode import decode_samples, read_header
from data.loader import Sample
from data.transforms import Crop, crop_resize, random_crop
from engine.pixels import Statistics
from engine.randomness import stream
from finetune.augmentation import augment_image, image_transform
from finetune.config import AugmentConfig


@dataclass(frozen=True, kw_only=True)
class TrainingBuilder:
    """Makes the micro-batch that ``(seed, step, micro_batch)`` names; the same in any process."""

    seed: int
    img_size: tuple[int, int]
    mean: Statistics
    augment: AugmentConfig
    max_pixels: int
    decode: DecodeMode = "exact"

    def __call__(self, samples: list[Sample], *, step: int, micro_batch: int) -> dict[str, Any]:
        """Return uint8 images and labels, with the ids and crops for audits; an unreadable image is replaced."""
        transform = image_transform(self.augment, img_size=self.img_size, mean=self.mean)

        def decode(sample: Sample) -> tuple[np.ndarray, Crop]:
            key = (step, micro_batch, sample.id, sample.repeat)
            pixels, crop = self._crop(sample, key)
            if transform is not None:
                pixels = augment_image(pixels, transform, seed=self.seed, key=key)
            return pixels, crop

        decoded = decode_samples(samples, decode)
        return {
            "images": torch.from_numpy(np.stack([pixels for pixels, _ in decoded.values])),
            "labels": torch.tensor([sample.label for sample in decoded.samples], dtype=torch.int64),
            "ids": torch.tensor([sample.id for sample in decoded.samples]),
            "repeats": torch.tensor([sample.repeat for sample in decoded.samples]),
            "crops": torch.tensor([crop for _, crop in decoded.values], dtype=torch.float32),
            "bad": decoded.bad,
        }

    def _crop(self, sample: Sample, key: tuple[int, ...]) -> tuple[np.ndarray, Crop]:
        header = read_header(sample.image, max_pixels=self.max_pixels)
        crop = random_crop(
            header.height,
            header.width,
            rng=stream(self.seed, "crop", *key),
            scale=self.augment.scale,
            ratio=self.augment.ratio,
            flip_probability=self.augment.flip,
        )
        pixels = crop_resize(
            sample.image,
            crop,
            size=self.img_size,
            interpolation=self.augment.interpolation,
            decode=self.decode,
            header=header,
        )
        return pixels, crop
