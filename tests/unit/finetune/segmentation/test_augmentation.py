"""Image and label map stay together through resizing, cropping, padding and flipping, as a function of the key."""

import pytest
import torch

from data.images.joint_transforms import transformed
from finetune.segmentation.augmentation import SegmentAugmentation, fitting_size
from finetune.segmentation.config import SegmentAugmentConfig
from finetune.segmentation.labels import IGNORE_INDEX

MEAN = (0.5, 0.25, 0.75)


def changed(annotated, *, key=(0, 0), **options):
    options = {"crop": (32, 32), "short_side": 48, "photometric": 0.0, **options}
    transform = SegmentAugmentation(augment=SegmentAugmentConfig(**options), mean=MEAN)
    found = transformed(annotated, transform, seed=0, key=key)
    return found["image"], found["label_map"]


@pytest.fixture
def halves():
    """Left half class 0 and dark, right half class 1 and bright."""
    labels = torch.zeros(48, 64, dtype=torch.int16)
    labels[:, 32:] = 1
    image = (labels * 200).to(torch.uint8).expand(3, 48, 64).clone()
    return {"image": image, "label_map": labels}


@pytest.mark.parametrize("key", [(0, n) for n in range(6)])
def test_label_maps_follow_their_image(halves, key):
    image, labels = changed(halves, key=key, scale=(0.5, 2.0))
    assert image.shape == (3, 32, 32)
    assert labels.shape == (32, 32)
    agrees = (image[0] > 100) == (labels == 1)
    inside = labels != IGNORE_INDEX
    assert agrees[inside].float().mean() > 0.94  # resized edges are in between


def test_the_key_alone_decides(halves):
    first, again, other = (changed(halves, key=key, photometric=0.5) for key in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_small_images_are_padded_with_the_mean_colour_and_void(halves):
    image, labels = changed(halves, crop=(64, 96), scale=(1.0, 1.0), flip=0.0, photometric=1.0)
    assert torch.equal(labels[:48, :64], halves["label_map"])
    assert (labels[48:] == IGNORE_INDEX).all()
    assert (labels[:, 64:] == IGNORE_INDEX).all()
    assert image[:, 60, 90].tolist() == [128, 64, 191]


def test_crops_that_one_class_fills_are_drawn_again(halves):
    for number in range(8):
        _, labels = changed(halves, key=(number,), crop=(32, 32), scale=(1.0, 1.0), most_of_one_class=0.75)
        shares = labels.flatten().long().bincount(minlength=2) / labels.numel()
        assert shares.max() <= 0.75


@pytest.mark.parametrize(
    ("size", "bounds", "expected"),
    [
        ((480, 640), (240, 2048), (240, 320)),
        ((100, 800), (512, 2048), (256, 2048)),
        ((375, 500), (520, 520), (390, 520)),  # PASCAL-Context's (520, 520)
    ],
)
def test_both_sides_stay_within_their_bounds(size, bounds, expected):
    assert fitting_size(size, short_side=bounds[0], long_side=bounds[1]) == expected
