"""The losses against loops over images, classes and pixels; ignored pixels and empty label maps change nothing."""

import math

import pytest
import torch
import torch.nn.functional as F

from finetune.segmentation.batches import classes_shown
from finetune.segmentation.heads.atm_loss import Masks, atm_losses
from finetune.segmentation.heads.pixel_head import pixel_cross_entropy
from finetune.segmentation.labels import IGNORE_INDEX

NUM_CLASSES, SIDE = 4, 6


@pytest.fixture
def label_maps():
    torch.manual_seed(1)
    maps = torch.randint(0, 3, (2, SIDE, SIDE))  # class 3 is absent
    maps[0, :2] = IGNORE_INDEX
    maps[1][maps[1] == 1] = 2
    return maps


def stage(scale=1.0):
    return Masks(
        classes=scale * torch.randn(2, NUM_CLASSES, NUM_CLASSES + 1, dtype=torch.float64),
        logits=torch.randn(2, NUM_CLASSES, 3, 3, dtype=torch.float64),
    )


def plain_losses(found, label_maps):
    """The definition, one pixel at a time."""
    masks = F.interpolate(found.logits, (SIDE, SIDE), mode="bilinear", align_corners=False).sigmoid()
    shares = found.classes.softmax(-1)
    class_sum = class_weight = focal = dice = 0.0
    pairs = 0
    for image in range(2):
        valid = [(r, c) for r in range(SIDE) for c in range(SIDE) if label_maps[image, r, c] != IGNORE_INDEX]
        for query in range(NUM_CLASSES):
            wanted = [float(label_maps[image, r, c] == query) for r, c in valid]
            present = any(wanted)
            weight, target = (1.0, query) if present else (0.1, NUM_CLASSES)
            class_sum -= weight * math.log(shares[image, query, target])
            class_weight += weight
            if not present:
                continue
            pairs += 1
            got = [float(masks[image, query, r, c]) for r, c in valid]
            focal += sum(
                -0.25 * (1 - p) ** 2 * math.log(p) if t else -0.75 * p**2 * math.log(1 - p)
                for p, t in zip(got, wanted, strict=True)
            ) / len(valid)
            both = sum(p * t for p, t in zip(got, wanted, strict=True))
            dice += 1 - (2 * both + 1) / (sum(got) + sum(wanted) + 1)
    return class_sum / class_weight, focal / pairs, dice / pairs


def test_losses_equal_the_definition_summed_over_stages(label_maps):
    torch.manual_seed(0)
    stages = [stage(), stage(), stage(3.0)]
    found = atm_losses(stages, label_maps, classes_shown(label_maps))
    plain = [plain_losses(one, label_maps) for one in stages]
    assert found["loss"].item() == pytest.approx(sum(c + 20 * f + d for c, f, d in plain))
    last = [found[name].item() for name in ("class_loss", "focal_loss", "dice_loss")]
    assert last == pytest.approx(list(plain[-1]))


def test_ignored_pixels_have_no_gradient():
    """Unlike the published code, where they are background. At the map's resolution no ignored pixel is a neighbour."""
    torch.manual_seed(0)
    maps = torch.zeros(1, SIDE, SIDE, dtype=torch.int16)
    maps[:, :, 3:] = IGNORE_INDEX
    logits = torch.randn(1, NUM_CLASSES, SIDE, SIDE, requires_grad=True)
    classes = torch.zeros(1, NUM_CLASSES, NUM_CLASSES + 1)
    atm_losses([Masks(classes=classes, logits=logits)], maps, classes_shown(maps))["loss"].backward()
    assert logits.grad[:, :, :, 3:].abs().max() == 0
    assert logits.grad[:, 0, :, :3].abs().min() > 0
    assert logits.grad[:, 1:].abs().max() == 0  # absent classes have no mask


def test_label_maps_without_a_class_give_a_finite_loss_and_gradient():
    maps = torch.full((2, SIDE, SIDE), IGNORE_INDEX)
    one = stage()
    for tensor in (one.classes, one.logits):
        tensor.requires_grad_()
    loss = atm_losses([one], maps, classes_shown(maps))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert one.logits.grad.abs().max() == 0
    assert one.classes.grad.isfinite().all()
    logits = torch.randn(2, NUM_CLASSES, 3, 3, requires_grad=True)
    assert pixel_cross_entropy(logits, maps).item() == 0


def test_pixel_cross_entropy_is_the_mean_over_valid_pixels(label_maps):
    logits = torch.randn(2, NUM_CLASSES, SIDE, SIDE, dtype=torch.float64)
    valid = label_maps != IGNORE_INDEX
    shares = logits.log_softmax(1).movedim(1, -1)[valid]
    expected = -shares[torch.arange(len(shares)), label_maps[valid]].mean()
    torch.testing.assert_close(pixel_cross_entropy(logits, label_maps), expected)


def test_pairs_name_every_class_of_every_image_once(label_maps):
    expected = [(i, c) for i in range(2) for c in range(NUM_CLASSES) if (label_maps[i] == c).any()]
    assert classes_shown(label_maps).tolist() == [list(pair) for pair in expected]
