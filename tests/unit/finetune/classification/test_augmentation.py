"""The same key gives the same image, another key another one, and the global generators stay where they were."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.classification.augmentation import BatchAugmentation, _posterize, augment_image, image_transform, seeded
from finetune.classification.config import AugmentConfig

CPU = torch.device("cpu")
MEAN = (0.485, 0.456, 0.406)


def images(count=4, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 - what timm draws from


def seed_all():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)


def test_seeded_draws_depend_on_the_key_alone_and_leave_the_global_state():
    seed_all()
    undisturbed = [draws() for _ in range(2)]
    seed_all()
    before = draws()
    with seeded(0, "x", 3):
        one = draws()
    after = draws()
    with seeded(0, "x", 3):
        again = draws()
    with seeded(0, "x", 4):
        other = draws()
    assert [before, after] == undisturbed
    assert one == again
    assert not set(one) & set(other)


@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(rand_augment=None)], ids=["rand", "jitter"])
def test_an_image_is_a_pure_function_of_its_key(augment):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    transform = image_transform(augment, img_size=(32, 32), mean=MEAN)
    results = [augment_image(pixels, transform, seed=0, key=(step, 0, 5, 0)) for step in (1, 2, 3, 4, 1)]
    assert np.array_equal(results[0], results[-1])
    assert len({result.tobytes() for result in results}) > 1
    assert results[0].shape == (3, 32, 32)
    assert results[0].dtype == np.uint8


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m10-inc1", "rand-m0"])
def test_every_operation_of_rand_augment_runs_at_its_ends(policy):
    """Posterizing that keeps no bits is part of the published policies, and Pillow 13 refuses it."""
    transform = image_transform(AugmentConfig(rand_augment=policy), img_size=(32, 32), mean=MEAN)
    image = Image.fromarray(np.random.default_rng(0).integers(1, 256, (32, 32, 3), dtype=np.uint8))
    random.seed(0)
    for operation in transform.ops:
        operation.prob, operation.magnitude_std = 1.0, 0.0
        for operation.magnitude in (0, 5, 10):
            assert operation(image).size == (32, 32)
    assert not np.asarray(_posterize(image, 0)).any()


def test_color_jitter_is_not_applied_beside_rand_augment():
    assert image_transform(AugmentConfig(rand_augment=None, color_jitter=0.0), img_size=(32, 32), mean=MEAN) is None
    assert "RandAugment" in repr(image_transform(AugmentConfig(), img_size=(32, 32), mean=MEAN))


def test_mixing_is_a_pure_function_of_step_and_micro_batch():
    labels = torch.tensor([0, 1, 2, 3])
    augment = BatchAugmentation(AugmentConfig(erase_prob=1.0), num_classes=5, seed=0, device=CPU)
    results = [augment(images(), labels, step=step, micro_batch=mb) for step, mb in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert torch.equal(results[0][0], results[3][0])
    assert torch.equal(results[0][1], results[3][1])
    assert not torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][1], results[2][1])


def test_soft_targets_sum_to_one_and_hold_both_partners():
    labels = torch.tensor([0, 1, 2, 3])
    augment = BatchAugmentation(AugmentConfig(erase_prob=0.0), num_classes=10, seed=3, device=CPU)
    for step in range(20):
        mixed, targets = augment(images(), labels, step=step, micro_batch=0)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        assert mixed.shape == (4, 3, 32, 32)
        # the image before mixing is 0's partner 3: both classes carry all weight but the smoothing's share
        assert float(targets[0, [0, 3]].sum()) == pytest.approx(0.9 + 2 * 0.01, abs=1e-5)


def test_without_mixing_targets_are_smoothed_labels_and_images_untouched():
    config = AugmentConfig(erase_prob=0.0, mix_prob=0.0, label_smoothing=0.1)
    untouched, targets = BatchAugmentation(config, num_classes=10, seed=0, device=CPU)(
        images(), torch.tensor([0, 1, 2, 3]), step=0, micro_batch=0
    )
    assert torch.equal(untouched, images())
    assert float(targets[1, 1]) == pytest.approx(0.91)
    assert float(targets[1, 0]) == pytest.approx(0.01)
