"""Classifiers and segmenters as ONNX files: onnxruntime answers what torch does, for one image or any number."""

import pytest
import timm
import torch

from engine.pixels import Pixels
from finetune.onnx_export import Exportable, FromPixels, Scores, export, exportable
from finetune.segmentation.heads.segvit import SegViTHead
from finetune.segmentation.segmenter import Segmenter
from finetune.segmentation.vit_layers import VitLayers

pytest.importorskip("onnxruntime", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

PIXELS = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def vit(**options):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **sizes, **options).eval()


def classifier():
    return Exportable(network=FromPixels(Pixels(*PIXELS), vit(num_classes=4)).eval(), size=(32, 32), output="logits")


def segmenter():
    features = VitLayers(vit(num_classes=0, dynamic_img_size=True), layers=(0, 1), class_token=False)
    head = SegViTHead(features.channels, dim=16, num_heads=2, num_classes=3, loss="atm", score_stride=1)
    network = Segmenter(features, head, pixels=Pixels(*PIXELS))
    return Exportable(network=Scores(network).eval(), size=(32, 48), output="scores")


@pytest.mark.slow
@pytest.mark.parametrize("make", [classifier, segmenter])
@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_onnxruntime_answers_what_torch_does(tmp_path, make, dynamic_batch):
    off = export(make(), tmp_path / "model.onnx", dynamic_batch=dynamic_batch)
    assert 0 <= off < 1e-4


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"export takes a run folder with a config.yaml, got"):
        exportable(tmp_path)
