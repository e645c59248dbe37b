"""Augmentation from timm's parts, each application a pure function of a key.

timm and torchvision draw from the global generators of `random`, numpy and torch. ``seeded`` sets those from the key
just before and puts them back after, so the same key gives the same image in any process.

Legend: b images, c classes, h w height and width in pixels.
"""

import contextlib
import functools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from timm.data.auto_augment import posterize as timm_posterize
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_pil_interp
from torch import Tensor
from torchvision.transforms import ColorJitter

from engine.pixels import Statistics
from engine.randomness import torch_seed
from engine.terms import Size
from finetune.classification.config import AugmentConfig

TRANSLATE_SHARE = 0.45
"""Largest translation of RandAugment as a share of the image's shorter side; timm's choice."""


@contextlib.contextmanager
def seeded(seed: int, *key: int | str) -> Iterator[None]:
    """Within it, the global generators of `random`, numpy and torch start from ``(seed, *key)``."""
    number = torch_seed(seed, *key)
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm draws from it
    with torch.random.fork_rng(devices=()):
        random.seed(number)
        np.random.seed(number % 2**32)  # noqa: NPY002
        torch.manual_seed(number)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


@functools.cache
def image_transform(augment: AugmentConfig, *, img_size: Size, mean: Statistics) -> Any:
    """Make the change of one cropped PIL image: RandAugment, else colour jitter, else None."""
    if augment.rand_augment is not None:
        fill = tuple(min(255, round(255 * channel)) for channel in mean)
        options = {
            "translate_const": int(min(img_size) * TRANSLATE_SHARE),
            "img_mean": fill,
            "interpolation": str_to_pil_interp(augment.interpolation),
        }
        transform = rand_augment_transform(augment.rand_augment, options)
        for operation in transform.ops:
            if operation.aug_fn is timm_posterize:
                operation.aug_fn = _posterize
        return transform
    if augment.color_jitter > 0:
        return ColorJitter(*(augment.color_jitter,) * 3)
    return None


def _posterize(image: Image.Image, bits_to_keep: int, **_settings: Any) -> Image.Image:
    """Posterize as older Pillow did: with no bits kept, which its version 13 refuses, the image is black."""
    if bits_to_keep:
        return timm_posterize(image, bits_to_keep)
    return Image.new(image.mode, image.size)


def augment_image(pixels: np.ndarray, transform: Any, *, seed: int, key: tuple[int | str, ...]) -> np.ndarray:
    """Change a uint8 image [3, h, w] by ``transform`` with the randomness of ``key``."""
    with seeded(seed, "augment", *key):
        image = transform(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))))
    return np.asarray(image, np.uint8).transpose(2, 0, 1)


class BatchAugmentation:
    """What is done to a whole normalised micro-batch on the device: random erasing, then mixup or CutMix."""

    def __init__(self, augment: AugmentConfig, *, num_classes: int, seed: int, device: torch.device) -> None:
        self._seed, self._num_classes, self._smoothing = seed, num_classes, augment.label_smoothing
        self._erase = None
        if augment.erase_prob > 0:
            self._erase = RandomErasing(augment.erase_prob, mode="pixel", max_count=1, device=str(device))
        self._mix = None
        if augment.mixes:
            self._mix = Mixup(
                mixup_alpha=augment.mixup_alpha,
                cutmix_alpha=augment.cutmix_alpha,
                prob=augment.mix_prob,
                switch_prob=augment.mix_switch_prob,
                label_smoothing=augment.label_smoothing,
                num_classes=num_classes,
            )

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], labels: Int64[Tensor, " b"], *, step: int, micro_batch: int
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b c"]]:
        """Change the images (in place); return them with their soft targets."""
        with seeded(self._seed, "mix", step, micro_batch):
            if self._erase is not None:
                images = self._erase(images)
            if self._mix is not None:
                return self._mix(images, labels)
        return images, mixup_target(labels, self._num_classes, smoothing=self._smoothing)
