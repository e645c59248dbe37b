"""Classifiers and segmenters as ONNX files: onnxruntime answers what torch does, for one image or any number."""

import dataclasses
import json

import pytest
import timm
import torch
from torch import nn

import backbones  # noqa: F401  (registers SecViT)
from engine.pixels import Pixels
from finetune.commands.export import export, load_exportable, write_onnx
from finetune.commands.options import ExportOptions
from finetune.segmentation.heads.segvit import SegViTHead
from finetune.segmentation.model import Scores, Segmenter
from finetune.segmentation.vit_layers import VitLayers
from finetune.task import Exportable

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

PIXELS = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def vit(**options):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **sizes, **options).eval()


def classifier():
    return Exportable(
        network=nn.Sequential(Pixels(*PIXELS), vit(num_classes=4)).eval(), size=(32, 32), outputs=("logits",)
    )


def segmenter():
    features = VitLayers(vit(num_classes=0, dynamic_img_size=True), layers=(0, 1), class_token=False)
    head = SegViTHead(features.channels, dim=16, num_heads=2, num_classes=3, loss="atm", score_stride=1)
    network = Segmenter(features, head, pixels=Pixels(*PIXELS))
    return Exportable(network=Scores(network).eval(), size=(32, 48), outputs=("scores",))


def clustered():
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4)}
    network = timm.create_model("secvit_tiny", num_classes=4, **sizes).eval()
    return Exportable(network=nn.Sequential(Pixels(*PIXELS), network).eval(), size=(96, 64), outputs=("logits",))


@pytest.mark.slow
def test_clusters_and_rotary_positions_export_for_a_fixed_batch_and_a_free_one_is_refused(tmp_path):
    assert 0 <= write_onnx(clustered(), tmp_path / "model.onnx") < 1e-4
    with pytest.raises(ValueError, match=r"any number of images|does not take images"):
        write_onnx(clustered(), tmp_path / "model.onnx", dynamic_batch=True)


@pytest.mark.slow
@pytest.mark.parametrize("make", [classifier, segmenter])
@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_onnxruntime_answers_what_torch_does(tmp_path, make, dynamic_batch):
    off = write_onnx(make(), tmp_path / "model.onnx", dynamic_batch=dynamic_batch)
    assert 0 <= off < 1e-4


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"export takes a run folder with a config.yaml, a checkpoint or best weights, got"
    ):
        load_exportable(tmp_path)


def test_options_that_a_detector_cannot_take_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a detector is written for one image of one size"):
        export(ExportOptions(run=tmp_path, file=tmp_path / "model.pt2", dynamic_batch=True))


@pytest.mark.slow
def test_names_of_classes_are_in_the_file(tmp_path):
    names = ("ant", "bee", "cat", "größe")
    write_onnx(dataclasses.replace(classifier(), classes=names), tmp_path / "model.onnx")
    properties = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_modelmeta().custom_metadata_map
    assert tuple(json.loads(properties["names"])) == names


@pytest.mark.slow
def test_a_file_that_differs_from_torch_does_not_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.commands.export.MOST_OFF", -1.0)
    with pytest.raises(ValueError, match="from torch under onnxruntime"):
        write_onnx(classifier(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_no_folder_to_write_into_is_one_line(tmp_path):
    for file in (tmp_path, tmp_path / "absent" / "model.onnx"):
        with pytest.raises(ValueError, match="export takes a file in a folder that exists"):
            export(ExportOptions(run=tmp_path, file=file))
