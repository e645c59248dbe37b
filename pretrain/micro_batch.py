"""Builds one micro-batch in a loader worker: crops, flips, the mask, and what the mask means for the encoder."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from backbones.visible import LayoutSpec, build_layout
from data.loader import Sample
from data.transforms import augmented_images
from engine.randomness import stream
from pretrain.config import AugmentConfig, MimConfig
from pretrain.masking import UnitMask, unit_mask


@dataclass(frozen=True, kw_only=True)
class PretrainBuilder:
    """Makes the micro-batch that ``(seed, step, micro_batch)`` names; the same in any process."""

    seed: int
    spec: LayoutSpec
    mim: MimConfig
    augment: AugmentConfig
    max_pixels: int

    def __call__(self, samples: list[Sample], *, step: int, micro_batch: int) -> dict[str, Any]:
        """Return uint8 images and the mask's visible layout, with the ids, crops and flips for audits."""
        images, crops, bad = augmented_images(
            samples,
            size=self.spec.img_size,
            scale=self.augment.scale,
            ratio=self.augment.ratio,
            flip=self.augment.flip,
            seed=self.seed,
            step=step,
            micro_batch=micro_batch,
            max_pixels=self.max_pixels,
        )
        mask = self.mask(step, micro_batch)
        return {
            "images": torch.from_numpy(images),
            "ids": torch.tensor([sample.id for sample in samples]),
            "crops": torch.from_numpy(crops),
            "bad": bad,
            **mask_tensors(mask, self._feature_units(mask, step, micro_batch)),
            "layout": build_layout(self.spec, mask.visible, rule=self.mim.grouping),
        }

    def mask(self, step: int, micro_batch: int) -> UnitMask:
        """Return the mask of one micro-batch."""
        unit, size = self.spec.unit, self.spec.img_size
        grid = (size[0] // unit[0], size[1] // unit[1])
        return unit_mask(grid, mask_ratio=self.mim.mask_ratio, seed=self.seed, step=step, micro_batch=micro_batch)

    def _feature_units(self, mask: UnitMask, step: int, micro_batch: int) -> np.ndarray:
        """Return the unit of each encoded feature: its own, or permuted as in older code."""
        units = mask.visible_units
        if self.mim.feature_positions == "own":
            return units
        return stream(self.seed, "misplace", step, micro_batch).permutation(units)


def mask_tensors(mask: UnitMask, feature_units: np.ndarray) -> dict[str, torch.Tensor]:
    """Return the mask's unit lists as the tensors that the model takes."""
    return {
        "feature_units": torch.from_numpy(feature_units.astype(np.int64)),
        "predicted_units": torch.from_numpy(mask.predicted_units.astype(np.int64)),
    }
