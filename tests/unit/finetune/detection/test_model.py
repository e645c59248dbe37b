"""Every detector: losses and gradients, and nothing of an image depends on what it is batched with."""

import pytest
import torch

from finetune.detection.model import build_model, run_detector
from finetune.network.freezing import set_training_mode
from finetune.network.start import resolve_start

KINDS = ("retinanet", "mask_rcnn", "cascade", "yolo")


def detector_of(config):
    return build_model(config, start=resolve_start(config.backbone), num_classes=5)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_finite_and_every_trained_parameter_gets_a_gradient(micro, scene_batch, kind):
    detector, (images, sizes, targets) = detector_of(micro(kind)), scene_batch
    set_training_mode(detector)
    for wanted in (targets, [targets[2]] * 3):  # also where no image has an object
        torch.manual_seed(0)
        losses = detector(images, [(96, 96)] * 3 if kind == "yolo" else sizes, wanted)
        total = torch.stack(list(losses.values())).sum()
        assert torch.isfinite(total)
        detector.zero_grad()
        total.backward()
        lacking = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
        assert lacking == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_is_not_a_number_gives_a_loss_for_the_engine_to_refuse_and_no_box(micro, scene_batch, kind):
    detector, (images, _, targets) = detector_of(micro(kind)), scene_batch
    nothing, sizes = images[:1] * torch.nan, [(96, 96)]
    set_training_mode(detector)
    losses = detector(nothing, sizes, targets[2:])
    assert torch.stack(list(losses.values())).sum().isnan()
    with torch.no_grad():
        (found,) = run_detector(detector.eval(), nothing, sizes)
    assert len(found["scores"]) == 0


@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn", "cascade"])
def test_detections_of_an_image_in_a_batch_equal_those_of_it_alone(micro, scene_batch, kind):
    detector, (images, sizes, _) = detector_of(micro(kind)).eval(), scene_batch
    with torch.no_grad():
        together = run_detector(detector, images, sizes)
        for row, (height, width) in enumerate(sizes):
            (alone,) = run_detector(detector, images[row : row + 1, :, :height, :width], [sizes[row]])
            assert len(alone["scores"]) > 0
            for name, value in alone.items():
                torch.testing.assert_close(together[row][name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_come_out_as_class_numbers_from_0_and_boxes_inside_the_image(micro, scene_batch, kind):
    detector, (images, sizes, _) = detector_of(micro(kind)).eval(), scene_batch
    sizes = [(96, 96)] * 3 if kind == "yolo" else sizes
    with torch.no_grad():
        found = run_detector(detector, images, sizes)
    for one, (height, width) in zip(found, sizes, strict=True):
        assert one["labels"].min() >= 0 and one["labels"].max() < 5  # noqa: PT018
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"][:, [0, 2]] <= width).all()
        assert (one["boxes"][:, [1, 3]] <= height).all()
        assert len(one["scores"]) <= 100
        assert ("masks" in one) == (kind in ("mask_rcnn", "cascade"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_samples_the_same_regions(micro, scene_batch, kind):
    detector, (images, sizes, targets) = detector_of(micro(kind)), scene_batch
    set_training_mode(detector)
    sizes = [(96, 96)] * 3 if kind == "yolo" else sizes
    sums = []
    for _ in range(2):
        torch.manual_seed(5)
        sums.append(torch.stack(list(detector(images, sizes, targets).values())).sum().item())
    assert sums[0] == sums[1]


@pytest.mark.parametrize("kind", KINDS)
def test_under_bf16_losses_are_fp32_and_close(micro, scene_batch, kind):
    detector, (images, sizes, targets) = detector_of(micro(kind, backbone={"drop_path": 0.0})), scene_batch
    set_training_mode(detector)
    sizes = [(96, 96)] * 3 if kind == "yolo" else sizes
    torch.manual_seed(5)
    exact = detector(images, sizes, targets)
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = detector(images, sizes, targets)
    assert all(value.dtype == torch.float32 for value in rounded.values())
    for name, value in exact.items():
        torch.testing.assert_close(rounded[name], value, atol=0.1, rtol=0.2)
