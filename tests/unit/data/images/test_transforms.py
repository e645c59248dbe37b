"""Crops: boxes as torchvision draws them, pixels as PIL resizes them, both functions of the key alone."""

import io
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.images import transforms
from data.images.decode import decode_part, decode_rgb, read_header
from data.images.transforms import (
    Crop,
    crop_resize,
    crops_resize,
    random_crop,
    resize,
    resize_center_crop,
)
from engine.randomness import stream


def by_pil(data, crop, size):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    image = image.resize(size[::-1], Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(image, np.float64).transpose(2, 0, 1)
    return pixels[:, :, ::-1] if crop.flip else pixels


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 999))
def test_boxes_lie_in_the_image(height, width, seed):
    crop = random_crop(height, width, rng=stream(seed, "crop"))
    assert 0 <= crop.top <= crop.top + crop.height <= height
    assert 0 <= crop.left <= crop.left + crop.width <= width
    assert crop.height > 0
    assert crop.width > 0


def test_boxes_follow_torchvisions_distribution():
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.zeros(3, 300, 400)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(1200)])
    ours = np.array([random_crop(300, 400, rng=stream(0, "crop", n)) for n in range(1200)])
    spread = theirs.std(axis=0) / math.sqrt(1200)
    assert (np.abs(ours[:, :4].mean(axis=0) - theirs.mean(axis=0)) < 5 * math.sqrt(2) * spread).all()
    np.testing.assert_allclose(ours[:, :4].std(axis=0), theirs.std(axis=0), rtol=0.12)
    assert 0.44 < ours[:, 4].mean() < 0.56


def test_a_box_that_never_fits_becomes_the_central_one():
    assert random_crop(10, 1000, rng=stream(0, "crop"), scale=(0.9, 1.0))[:4] == (0, 493, 10, 13)
    assert random_crop(1000, 10, rng=stream(0, "crop"), scale=(0.9, 1.0))[:4] == (493, 0, 13, 10)


@pytest.mark.parametrize("crop", [Crop(0, 0, 240, 320), Crop(31, 57, 120, 99, True), Crop(5, 9, 224, 224)])
def test_crops_equal_pils(encoded, crop):
    data = encoded(2, height=240, width=320)
    found = crop_resize(data, crop, size=(112, 96))
    assert found.shape == (3, 112, 96)
    assert np.abs(found - by_pil(data, crop, (112, 96))).max() <= 8  # JPEG decoders differ
    assert np.abs(found - by_pil(data, crop, (112, 96))).mean() < 1


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(0, 4), st.sampled_from(["bicubic", "bilinear"]))
def test_exact_crops_equal_those_of_a_full_decode_bit_for_bit(encoded, key, number, interpolation):
    data = encoded(number, height=230, width=310, quality=95)
    crop = random_crop(230, 310, rng=stream(key, "crop"), scale=(0.05, 1.0))
    part = decode_rgb(data)[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    expected = resize(part, size=(48, 40), interpolation=interpolation)
    found = crop_resize(data, crop, size=(48, 40), interpolation=interpolation, decode="exact")
    np.testing.assert_array_equal(found, expected[:, :, ::-1] if crop.flip else expected)


def test_scaled_decoding_changes_large_crops_a_little_and_small_ones_not_at_all(encoded):
    data = encoded(2, height=900, width=1200, quality=92)
    for crop, changes in ((Crop(104, 200, 704, 800, True), True), (Crop(104, 200, 191, 191), False)):
        exact, scaled = (crop_resize(data, crop, size=(64, 64), decode=mode) for mode in ("exact", "scaled"))
        difference = exact.astype(float) - scaled
        assert bool(difference.any()) == changes
        assert math.sqrt((difference**2).mean()) < 1


@pytest.mark.parametrize(
    ("height", "width", "shrink"), [(95, 500, 1), (96, 96, 1), (193, 192, 2), (400, 390, 4), (999, 768, 8)]
)
def test_a_crop_stays_larger_than_its_target_when_it_is_decoded_smaller(encoded, monkeypatch, height, width, shrink):
    seen = []
    monkeypatch.setattr(
        transforms,
        "decode_part",
        lambda *args, **options: seen.append(options["shrink"]) or decode_part(*args, **options),
    )
    data = encoded(1, height=1000, width=1000)
    crop_resize(data, Crop(0, 0, height, width), size=(64, 64), decode="scaled")
    assert seen == [shrink]
    assert min(height, width) / shrink >= 64 or shrink == 1


def test_several_crops_come_from_one_decoding_as_they_do_alone(encoded):
    data = encoded(3, height=240, width=320)
    crops = [Crop(0, 0, 200, 210, True), Crop(31, 57, 60, 50), Crop(100, 9, 140, 96)]
    sizes = [(112, 112), (48, 48), (48, 40)]
    found = crops_resize(data, crops, sizes=sizes, header=read_header(data))
    for pixels, crop, size in zip(found, crops, sizes, strict=True):
        np.testing.assert_array_equal(pixels, crop_resize(data, crop, size=size))


def test_crops_of_turned_images_are_upright(encoded):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(2, height=64, width=96, exif=exif.tobytes())
    upright = decode_rgb(data)
    assert upright.shape == (96, 64, 3)
    found = crop_resize(data, Crop(0, 0, 48, 32), size=(48, 32))
    np.testing.assert_array_equal(found, upright[:48, :32].transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (256, 256)])
@pytest.mark.parametrize("size", [(224, 224), (112, 224)])
def test_evaluation_sees_what_resize_and_centre_crop_show(encoded, height, width, size):
    data = encoded(1, height=height, width=width)
    found = resize_center_crop(data, size=size, crop_ratio=0.875)
    factor = 0.875 * min(height / size[0], width / size[1])
    h, w = size[0] * factor, size[1] * factor
    expected = by_pil(data, Crop((height - h) / 2, (width - w) / 2, h, w), size)
    assert np.abs(found - expected).mean() < 1.5
    assert found.shape == (3, *size)


def test_an_image_of_the_right_size_keeps_its_pixels(encoded):
    data = encoded(0, height=32, width=32, format="PNG")
    np.testing.assert_array_equal(
        resize_center_crop(data, size=(32, 32), crop_ratio=1.0), decode_rgb(data).transpose(2, 0, 1)
    )
