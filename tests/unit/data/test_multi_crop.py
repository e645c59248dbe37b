"""A builder may return several crops of each image, of several sizes: nothing in the loader needs to know."""

from dataclasses import dataclass

import numpy as np
import torch

from data.images.decode import read_header
from data.images.transforms import crop_resize, crops_resize, random_crop
from data.loading.loader import training_batches
from data.loading.order import Order
from engine.randomness import stream

GLOBAL, LOCAL = (32, 32), (16, 16)
SIZES = [GLOBAL] * 2 + [LOCAL] * 4


def crops_of(sample, *, step, micro_batch):
    header = read_header(sample.image)
    rng = stream(0, "crop", step, micro_batch, sample.id, sample.repeat)
    scales = {GLOBAL: (0.4, 1.0), LOCAL: (0.05, 0.4)}
    return header, [random_crop(header.height, header.width, rng=rng, scale=scales[size]) for size in SIZES]


@dataclass(frozen=True)
class MultiCropBuilder:
    def __call__(self, samples, *, step, micro_batch):
        views = []
        for sample in samples:
            header, crops = crops_of(sample, step=step, micro_batch=micro_batch)
            views.append(crops_resize(sample.image, crops, sizes=SIZES, header=header))
        return {
            "global_crops": np.stack([np.stack(view[:2]) for view in views]),
            "local_crops": np.stack([np.stack(view[2:]) for view in views]),
            "ids": [sample.id for sample in samples],
        }


def test_a_builder_may_return_several_crops_of_each_image(write):
    shards = write(12)
    order = Order(shards.sizes, batch_size=6, micro_batch_size=3, seed=0)
    loads = [
        list(
            training_batches(
                shards, order, MultiCropBuilder(), micro_batches=range(2), first_step=0, last_step=2, workers=workers
            )
        )
        for workers in (0, 2)
    ]
    for alone, shared in zip(*loads, strict=True):
        assert alone["global_crops"].shape == (3, 2, 3, 32, 32)
        assert alone["local_crops"].shape == (3, 4, 3, 16, 16)
        assert alone["ids"] == shared["ids"]
        assert torch.equal(alone["global_crops"], shared["global_crops"])
        assert torch.equal(alone["local_crops"], shared["local_crops"])


def test_each_of_several_crops_is_what_it_is_alone(write):
    sample = write(3).read(0, 1)
    header, crops = crops_of(sample, step=0, micro_batch=0)
    together = crops_resize(sample.image, crops, sizes=SIZES, header=header)
    for crop, size, pixels in zip(crops, SIZES, together, strict=True):
        np.testing.assert_array_equal(pixels, crop_resize(sample.image, crop, size=size))
