"""YOLOv3 for XFormer has the published size, and its targets are those of the written rule."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import box_iou

from data.config import DataConfig
from finetune.config import StartConfig
from finetune.detection.config import DetectConfig, DetectorConfig, ResizeConfig
from finetune.detection.detectors.yolo import ANCHORS, STRIDES, Yolo
from finetune.network.pyramid import build_pyramid
from finetune.network.start import resolve_start


def yolo(*, num_classes, canvas, **size):
    pyramid = build_pyramid(resolve_start(StartConfig(name="xformer", **size)), strides=STRIDES)
    config = DetectConfig(
        data=DataConfig(shards=("none",)),
        val_shards="none",
        detector=DetectorConfig(kind="yolo"),
        resize=ResizeConfig(mode="letterbox", canvas=canvas),
    )
    return Yolo(pyramid, config=config, num_classes=num_classes)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return yolo(num_classes=3, canvas=(416, 416), embed_dim=8).eval()


def test_with_xformer_it_has_the_published_size():
    """methods.md 5.2: 6.24 M parameters and 3.76 GMACs at 320 px; the classifier's convolution is not part of it."""
    with torch.device("meta"):
        detector = yolo(num_classes=80, canvas=(320, 320))
        images = torch.zeros(1, 3, 320, 320)
    used = sum(p.numel() for name, p in detector.named_parameters() if "final_conv" not in name)
    assert round(used / 1e6, 2) == 6.24
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector.raw(images)
    assert round(counter.get_total_flops() / 2e9, 2) == pytest.approx(3.76, abs=0.01)


def targets_of(boxes, labels):
    return [{"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}]


def test_losses_equal_a_loop_over_cells_and_anchors(small):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1, 3, 96, 128, generator=generator)
    boxes, labels = [[10.0, 12.0, 40.0, 80.0], [60.0, 8.0, 127.0, 95.0], [30.0, 30.0, 40.0, 44.0]], [2, 0, 1]
    with torch.no_grad():
        losses = small(images, [(96, 128)], targets_of(boxes, labels))
        maps = small.raw(images)
    expected = dict.fromkeys(("offset", "side", "object", "class"), 0.0)
    bce = F.binary_cross_entropy_with_logits
    best = []
    for x0, y0, x1, y1 in boxes:
        sides = [(min(x1 - x0, w) * min(y1 - y0, h), (x1 - x0) * (y1 - y0) + w * h) for w, h in ANCHORS]
        best.append(max(range(9), key=lambda i: sides[i][0] / (sides[i][1] - sides[i][0])))
    for level, stride in enumerate(STRIDES):
        raw = maps[level][0]
        for anchor in range(3):
            width, height = ANCHORS[3 * level + anchor]
            for row in range(raw.shape[1]):
                for column in range(raw.shape[2]):
                    values = raw[8 * anchor : 8 * (anchor + 1), row, column]
                    own = [
                        n
                        for n, (x0, y0, x1, y1) in enumerate(boxes)
                        if best[n] == 3 * level + anchor
                        and ((x0 + x1) / 2 // stride, (y0 + y1) / 2 // stride) == (column, row)
                    ]
                    x, y = (values[0].sigmoid() + column) * stride, (values[1].sigmoid() + row) * stride
                    w, h = values[2].exp() * width, values[3].exp() * height
                    predicted = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2])[None]
                    if not own and box_iou(predicted, torch.tensor(boxes)).max() > 0.5:
                        continue
                    expected["object"] += bce(values[4], torch.tensor(float(bool(own)))).item()
                    if own:
                        x0, y0, x1, y1 = boxes[own[0]]
                        wanted = torch.tensor([(x0 + x1) / 2 / stride - column, (y0 + y1) / 2 / stride - row])
                        expected["offset"] += 2 * bce(values[:2], wanted, reduction="sum").item()
                        logs = torch.log(torch.tensor([(x1 - x0) / width, (y1 - y0) / height]))
                        expected["side"] += 2 * F.mse_loss(values[2:4], logs, reduction="sum").item()
                        one_hot = F.one_hot(torch.tensor(labels[own[0]]), 3).float()
                        expected["class"] += bce(values[5:], one_hot, reduction="sum").item()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name


def test_an_object_is_found_where_the_network_says_it_is(small):
    """Logits written by hand come out as the box that they stand for."""
    maps = [torch.full((1, 24, 12, 16), -20.0), torch.full((1, 24, 6, 8), -20.0), torch.full((1, 24, 3, 4), -20.0)]
    cell = maps[1][0, 8:16, 2, 5]  # the second anchor of stride 16: 62 x 45 at column 5, row 2
    cell[:] = torch.tensor([0.0, 0.0, 0.0, 0.0, 20.0, -20.0, 20.0, -20.0])
    small.raw, raw = lambda _: maps, small.raw
    with torch.no_grad():
        (found,) = small(torch.zeros(1, 3, 96, 128), [(96, 128)])
    small.raw = raw
    assert found["labels"].tolist() == [1]
    assert found["boxes"].tolist() == [[88 - 31, 40 - 22.5, 88 + 31, 40 + 22.5]]


def test_two_objects_of_one_anchor_leave_one_positive(small):
    box = [10.0, 12.0, 40.0, 80.0]
    torch.manual_seed(0)
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        once = small(images, [(96, 128)], targets_of([box], [2]))
        twice = small(images, [(96, 128)], targets_of([box, box], [2, 1]))
    assert {k: v.item() for k, v in once.items()} == pytest.approx({k: v.item() for k, v in twice.items()})
