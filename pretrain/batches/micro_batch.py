"""Builds one micro-batch in a loader worker: crops, flips, the mask, and what the mask means for the encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from backbones.visible.layout import LayoutSpec
from data.config import DecodeMode
from data.images.crop_batch import crop_batch
from data.images.decode import BadImage, Header, Pixels, replace_bad
from data.images.transforms import Crop, random_crop
from data.shards.shard_set import Sample
from engine.randomness import stream
from pretrain.batches.mask_inputs import mask_inputs
from pretrain.batches.masking import UnitMask, unit_mask
from pretrain.config import AugmentConfig, MimConfig


@dataclass(frozen=True, kw_only=True)
class PretrainBuilder:
    """Makes the micro-batch that ``(seed, step, micro_batch)`` names; the same in any process."""

    seed: int
    spec: LayoutSpec
    mim: MimConfig
    augment: AugmentConfig
    max_pixels: int
    decode: DecodeMode = "exact"

    def __call__(self, samples: list[Sample], *, step: int, micro_batch: int) -> dict[str, Any]:
        """Make uint8 images and the mask's visible layout, with the ids, crops and flips for audits."""
        decoded = replace_bad(samples, lambda some: self._crops(some, step, micro_batch))
        return {
            "images": torch.from_numpy(np.stack([pixels for pixels, _ in decoded.values])),
            "ids": torch.tensor([sample.id for sample in decoded.samples]),
            "repeats": torch.tensor([sample.repeat for sample in decoded.samples]),
            "crops": torch.tensor([crop for _, crop in decoded.values], dtype=torch.float32),
            "bad": decoded.bad,
            **self.of_mask(step, micro_batch),
        }

    def of_mask(self, step: int, micro_batch: int) -> dict[str, Any]:
        """Make what the mask of one micro-batch means for the network."""
        mask = self.mask(step, micro_batch)
        return mask_inputs(self.spec, mask, self._feature_units(mask, step, micro_batch), rule=self.mim.grouping)

    def _crops(self, samples: Sequence[Sample], step: int, micro_batch: int) -> list[tuple[Pixels, Crop] | BadImage]:
        augment = self.augment

        def draw(sample: Sample, header: Header) -> Crop:
            rng = stream(self.seed, "crop", step, micro_batch, sample.id, sample.repeat)
            return random_crop(
                header.height,
                header.width,
                rng=rng,
                scale=augment.scale,
                ratio=augment.ratio,
                flip_probability=augment.flip,
            )

        size = self.spec.img_size
        return crop_batch(samples, draw, size=size, decode=self.decode, max_pixels=self.max_pixels)

    def mask(self, step: int, micro_batch: int) -> UnitMask:
        """Draw the mask of one micro-batch."""
        ratio = self.mim.mask_ratio
        return unit_mask(self.spec.units, mask_ratio=ratio, seed=self.seed, step=step, micro_batch=micro_batch)

    def _feature_units(self, mask: UnitMask, step: int, micro_batch: int) -> np.ndarray:
        """Name the unit of each encoded feature: its own, or permuted as in older code."""
        units = mask.visible_units
        if self.mim.feature_positions == "own":
            return units
        return stream(self.seed, "misplace", step, micro_batch).permutation(units)
