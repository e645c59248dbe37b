"""A micro-batch's crops, made stage by stage, are those of its images one by one, bad ones included."""

import numpy as np
import pytest

from data.images import crop_batch as batch_module
from data.images.crop_batch import crop_batch, groups, plan_crops
from data.images.decode import BadImage, replace_bad
from data.images.transforms import crop_resize, random_crop
from data.shards.shard_set import Sample
from engine.randomness import stream


@pytest.fixture
def samples(encoded):
    images = [encoded(n, height=90 + 7 * n, width=130) for n in range(6)]
    images[2] = encoded(2, format="PNG")
    images[4] = b"\xff\xd8\xff no image"
    images[5] = images[5][: len(images[5]) // 2]  # its header is sound
    return [Sample(id=n, key=str(n), image=image, label=None) for n, image in enumerate(images)]


def draw(sample, header):
    return random_crop(header.height, header.width, rng=stream(0, "crop", sample.id, sample.repeat))


@pytest.mark.parametrize("decode", ["exact", "scaled"])
@pytest.mark.parametrize("group_pixels", [1, 20_000, 2**24])
def test_stage_by_stage_gives_what_image_after_image_gives(samples, monkeypatch, group_pixels, decode):
    monkeypatch.setattr(batch_module, "GROUP_PIXELS", group_pixels)
    found = crop_batch(samples, draw, size=(24, 32), decode=decode)
    assert [isinstance(result, BadImage) for result in found] == [False] * 4 + [True] * 2
    for sample, (pixels, crop) in zip(samples, found[:4], strict=False):
        np.testing.assert_array_equal(pixels, crop_resize(sample.image, crop, size=(24, 32), decode=decode))


def test_large_images_do_not_wait_for_each_other(samples, monkeypatch):
    plans = plan_crops(samples, draw)
    sizes = [plan.header.height * plan.header.width for plan in plans if not isinstance(plan, BadImage)]
    monkeypatch.setattr(batch_module, "GROUP_PIXELS", sizes[0] + sizes[1])
    assert [len(group) for group in groups(plans)] == [2, 3, 1]
    assert [plan for group in groups(plans) for plan in group] == plans
    assert list(groups([])) == []


def test_bad_samples_are_replaced_by_a_crop_of_their_own(samples):
    decoded = replace_bad(samples, lambda some: crop_batch(some, draw, size=(24, 24)))
    assert [sample.id for sample in decoded.samples] == [0, 1, 2, 3, 0, 0]
    assert [sample.repeat for sample in decoded.samples] == [0, 0, 0, 0, -5, -6]
    assert [number for number, _, _ in decoded.bad] == [4, 5]
    assert not np.array_equal(decoded.values[4][0], decoded.values[0][0])
    with pytest.raises(BadImage, match="none of the 2 samples"):
        replace_bad(samples[4:], lambda some: crop_batch(some, draw, size=(24, 24)))
