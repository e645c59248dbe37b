"""Builds micro-batches for evaluation: the whole image, resized and cut at its centre, with its label."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.images.decode import MAX_PIXELS, BadImage
from data.images.transforms import resize_center_crop
from data.shards.shard_set import Sample
from engine.terms import Size

NO_LABEL = -1


@dataclass(frozen=True, kw_only=True)
class EvaluationBuilder:
    """Makes ``{"images", "labels", "ids", "bad"}`` of consecutive samples; nothing in it is random.

    An image that cannot be decoded is grey, keeps its place and is listed in ``bad``: an evaluation leaves none out.
    """

    size: Size
    """Height and width of the result in pixels."""
    crop_ratio: float = 0.875
    """Side of the centre crop over the resized image's side."""
    max_pixels: int = MAX_PIXELS
    """Images that claim more pixels than this are refused before decoding."""

    def __call__(self, samples: list[Sample], *, step: int, micro_batch: int) -> dict[str, Any]:
        """Build one micro-batch; ``step`` and ``micro_batch`` change nothing."""
        images = np.full((len(samples), 3, *self.size), 128, dtype=np.uint8)
        bad: list[tuple[int, str, str]] = []
        for row, sample in enumerate(samples):
            try:
                images[row] = resize_center_crop(
                    sample.image, size=self.size, crop_ratio=self.crop_ratio, max_pixels=self.max_pixels
                )
            except BadImage as error:
                bad.append((sample.id, sample.key, str(error)))
        return {
            "images": torch.from_numpy(images),
            "labels": torch.tensor([NO_LABEL if sample.label is None else sample.label for sample in samples]),
            "ids": torch.tensor([sample.id for sample in samples]),
            "bad": bad,
        }
