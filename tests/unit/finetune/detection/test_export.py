"""A one-stage detector written with torch.export gives the boxes that suppression makes its detections of."""

import pytest
import torch
from torchvision.ops import batched_nms, clip_boxes_to_image

from engine.pixels import Pixels
from finetune.commands.export import export, load_exportable, write_pt2
from finetune.commands.options import ExportOptions
from finetune.detection.export import dense_boxes
from finetune.detection.model import build_model, run_detector
from finetune.network.start import resolve_start
from finetune.train import train

PIXELS = Pixels((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


@pytest.mark.parametrize("kind", ["retinanet", "yolo"])
def test_suppression_of_the_exported_boxes_gives_the_detections(micro, kind):
    config = micro(kind, detector={"max_detections": 1000})
    detector = build_model(config, start=resolve_start(config.backbone), num_classes=3).eval()
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        boxes, scores = dense_boxes(detector, pixels=PIXELS, size=(64, 96))(images)
        (found,) = run_detector(detector, PIXELS(images), [(64, 96)])
    assert boxes.shape[:2] == scores.shape[:2]
    best = int(found["scores"].argmax())
    inside = clip_boxes_to_image(boxes[0], (64, 96))
    flat = scores[0].flatten()
    rows, labels = torch.arange(len(flat)) // 3, torch.arange(len(flat)) % 3
    kept = batched_nms(inside[rows], flat, labels, 0.5 if kind == "retinanet" else 0.45)
    torch.testing.assert_close(flat[kept[0]], found["scores"][best])
    torch.testing.assert_close(inside[rows[kept[0]]], found["boxes"][best])


def test_two_stages_are_refused_with_what_can_be_exported(micro):
    detector = build_model(micro(), start=resolve_start(micro().backbone), num_classes=3)
    with pytest.raises(ValueError, match=r"MaskRCNN suppresses boxes between its stages.*export a retinanet or yolo"):
        dense_boxes(detector, pixels=PIXELS, size=(64, 64))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_written_file_equals_the_trained_detector(micro, tmp_path):
    config = micro("retinanet", optimizer={"steps": 1, "warmup_steps": 0})
    train(config)
    assert write_pt2(load_exportable(config.run.folder, size=(64, 96)), tmp_path / "detector.pt2") < 1e-5
    with pytest.raises(ValueError, match="multiples of 32 px, got 65x96"):
        load_exportable(config.run.folder, size=(65, 96))
    with pytest.raises(ValueError, match=r"cannot be written as detector.onnx: write FILE.pt2 instead"):
        export(ExportOptions(run=config.run.folder, file=tmp_path / "detector.onnx"))
