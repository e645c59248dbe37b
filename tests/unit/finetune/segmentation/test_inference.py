"""Sliding windows equal the whole image where they must; flips and sizes are averaged; every pixel is covered."""

import pytest
import torch
import torch.nn.functional as F

from finetune.segmentation.config import InferenceConfig
from finetune.segmentation.inference import infer, windows

WINDOW = (16, 24)


def pointwise(images):
    """Scores that depend on the pixel alone."""
    return torch.cat([images.sum(1, keepdim=True), images[:, :1] ** 2], dim=1)


def positional(images):
    """Scores that depend on the place in the window, too."""
    return pointwise(images) + torch.arange(images.shape[3]) / 10


@pytest.mark.parametrize("size", [(16, 24), (17, 25), (40, 60), (10, 100), (50, 20)])
@pytest.mark.parametrize("step", [(16, 24), (5, 7), (16, 1)])
def test_windows_cover_every_pixel_and_stay_inside(size, step):
    seen = torch.zeros(size)
    for rows, columns in windows(size, window=WINDOW, step=step):
        assert rows.start >= 0
        assert rows.stop <= size[0]
        assert columns.start >= 0
        assert columns.stop <= size[1]
        assert (rows.stop - rows.start, columns.stop - columns.start) == (min(16, size[0]), min(24, size[1]))
        seen[rows, columns] += 1
    assert seen.min() >= 1


@pytest.mark.parametrize("step", [None, (5, 7), (16, 24)])
def test_sliding_equals_whole_for_scores_of_single_pixels(step):
    images = torch.randn(2, 3, 37, 53)
    slide = InferenceConfig(mode="slide", window=WINDOW, step=step)
    torch.testing.assert_close(infer(pointwise, images, config=slide, window=WINDOW), pointwise(images))


def test_sliding_equals_whole_for_an_image_that_fits_into_a_window():
    images = torch.randn(1, 3, 16, 20)
    slide = InferenceConfig(mode="slide", window=WINDOW)
    torch.testing.assert_close(infer(positional, images, config=slide, window=WINDOW), positional(images))


def test_overlaps_are_averaged():
    images = torch.zeros(1, 3, 16, 32)
    found = infer(positional, images, config=InferenceConfig(mode="slide", window=WINDOW, step=(16, 8)), window=WINDOW)
    place = torch.arange(32.0)
    second = (place - 8) / 10
    expected = torch.where(place < 8, place / 10, torch.where(place < 24, (place / 10 + second) / 2, second))
    torch.testing.assert_close(found[0, 1, 3], expected)


def test_flips_are_flipped_back_and_averaged():
    images = torch.randn(1, 3, 16, 24)
    found = infer(positional, images, config=InferenceConfig(flip=True), window=WINDOW)
    torch.testing.assert_close(found, (positional(images) + positional(images.flip(-1)).flip(-1)) / 2)


def test_sizes_are_averaged_at_the_images_own():
    images = torch.randn(1, 3, 20, 30)
    found = infer(pointwise, images, config=InferenceConfig(scales=(1.0, 2.0)), window=WINDOW)
    larger = F.interpolate(images, (40, 60), mode="bilinear", antialias=True)
    second = F.interpolate(pointwise(larger), (20, 30), mode="bilinear")
    torch.testing.assert_close(found, (pointwise(images) + second) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (16, 16), "step": (17, 8)}, r"inference.step \(17, 8\) is more than inference.window \(16, 16\)"),
        ({"step": (8, 8)}, r"inference.step needs inference.window"),
        ({"scales": ()}, r"inference.scales must be positive factors, at least one"),
    ],
)
def test_inferences_that_leave_pixels_out_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        InferenceConfig(**options)
