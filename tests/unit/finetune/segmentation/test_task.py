"""Whole runs in one process: resumed equals uninterrupted, every head learns, figures are found again."""

import json
import shutil
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image

from engine.checkpoint.store import newest_checkpoint
from engine.loop.training import Training
from finetune.commands.export import load_exportable
from finetune.commands.options import PredictOptions
from finetune.commands.predict import predict
from finetune.measure import measure
from finetune.network.start import resolve_start
from finetune.segmentation.config import SegmenterConfig
from finetune.segmentation.model import build_model
from finetune.segmentation.task import Segmentation
from finetune.task import task_of_run
from finetune.train import train

KINDS = ("weight", "exp_avg", "exp_avg_sq", "ema", "buffer")
VIT = {"name": "vit_tiny_patch16_224", "embed_dim": 32, "depths": None, "num_heads": (2,), "window": None}


def last_tensors(folder):
    checkpoint = newest_checkpoint(folder / "checkpoints")
    return checkpoint.step, {(k, n): checkpoint.read_full(k, n) for k in KINDS for n in checkpoint.names(k)}


def figures(results):
    return {line["name"]: (line["miou"], line["confusion"]) for line in results}


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A finished run and its results; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, train(replace(base, run=replace(base.run, folder=folder)))


def test_last_and_best_raw_and_averaged_weights_are_measured(whole):
    folder, results = whole
    assert [line["name"] for line in results] == ["last raw", "last ema", "best raw", "best ema"]
    assert json.loads((folder / "evaluation.json").read_text())["results"] == results
    for line in results:
        assert line["num_images"] == 9
        assert set(line["per_class"]) == {"sky", "wall", "road"}
    reports = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "class_loss", "focal_loss", "dice_loss", "images_per_s"} <= set(reports[-1])


def test_resumed_in_the_middle_equals_uninterrupted(micro, whole, tmp_path):
    folder, results = whole
    resumed = tmp_path / "resumed"
    shutil.copytree(folder, resumed)
    for step in (2, 3, 4):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:09d}")
    again = train(micro(run={"folder": resumed}))
    (step, one), (_, two) = last_tensors(folder), last_tensors(resumed)
    assert step == 4
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert figures(again) == figures(results)


def test_measuring_repeats_what_the_run_measured(micro, whole, tmp_path):
    folder, results = whole
    again = figures(measure(micro(run={"folder": tmp_path / "eval"}), str(folder)))
    expected = figures(results)
    assert again == {"raw": expected["last raw"], "ema": expected["last ema"]}


def test_classes_without_names_are_their_numbers_wherever_they_are_named(micro, tmp_path):
    """The shards name three classes, the label maps may hold four: no name fits."""
    run = micro(run={"folder": tmp_path / "run"}, labels={"num_classes": 4}, optimizer={"steps": 1, "warmup_steps": 0})
    train(run)
    measure(micro(run={"folder": tmp_path / "eval"}, labels={"num_classes": 4}), str(tmp_path / "run"))
    written = json.loads((tmp_path / "eval" / "eval_only.json").read_text())
    assert written["classes"] == ["0", "1", "2", "3"]
    assert set(written["results"][0]["per_class"]) == set(written["classes"])


def test_the_best_weights_are_measured_again_alike(micro, whole, tmp_path):
    folder, results = whole
    best = results[3]
    kept = str(folder / "best" / f"ema-step-{best['step']:09d}")
    again = measure(micro(run={"folder": tmp_path / "eval"}), kept)
    assert figures(again) == {"best ema": figures(results)["best ema"]}


def test_an_evaluation_shows_progress_with_every_batch(micro, tmp_path, monkeypatch):
    """A long one is no hang."""
    phases = []
    monkeypatch.setattr(Training, "note_progress", lambda training, phase: phases.append((training.step, phase)))
    config = micro(run={"folder": tmp_path / "noted"})
    train(config)
    assert phases.count((config.optimizer.steps, "evaluation")) >= 2


def test_the_handed_off_backbone_is_timms(whole):
    folder, _ = whole
    network = timm.create_model(f"local-dir:{folder / 'backbone'}", pretrained=True)
    _, tensors = last_tensors(folder)
    for name, value in network.named_parameters():
        assert torch.equal(value, tensors["weight", f"features.network.{name}"])


def test_a_trained_segmenter_is_made_again_without_the_weights_it_started_from(whole):
    folder, _ = whole
    raw = Segmentation.find(str(folder))["raw"]()
    assert (raw.name, raw.step, raw.classes) == ("raw", 4, ("sky", "wall", "road"))
    assert raw.network.scores(torch.zeros(1, 3, 40, 56)).shape == (1, 3, 40, 56)


def test_predict_writes_label_maps_and_what_the_queries_look_like(whole, make_scene, tmp_path):
    folder, _ = whole
    (tmp_path / "one.png").write_bytes(make_scene(3, size=(40, 56))["png"])
    predict(PredictOptions(run=folder, images=tmp_path / "one.png", out=tmp_path / "out", weights="best-ema"))
    (record,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert sum(record["shares"].values()) == pytest.approx(1)
    with Image.open(tmp_path / "out" / "one.labels.png") as labels:
        assert labels.size == (56, 40)
        assert labels.getextrema()[1] <= 2
    assert (tmp_path / "out" / "one.overlay.png").is_file()
    assert (tmp_path / "out" / "one.similarities.png").is_file()


@pytest.mark.parametrize("others", [("wall", "sky", "road"), ("sky", "wall", "road", "tree")])
def test_other_class_names_are_refused(micro, whole, write, tmp_path, others):
    """Their numbers would be compared all the same."""
    val = str(write(tmp_path / "val", first=50, count=2, classes=others))
    with pytest.raises(
        ValueError, match=r"class \d of the raw weights is \w+, of val-shards .* it is \w+; measure them on"
    ):
        measure(replace(micro(), val_shards=val), str(whole[0]))
    with pytest.raises(ValueError, match=rf"the 3 classes of data.shards are not the {len(others)} of val-shards"):
        train(replace(micro(), val_shards=val))


def test_another_score_stride_is_measured(micro, whole, tmp_path):
    again = measure(micro(run={"folder": tmp_path / "eval"}, segmenter={"score_stride": 8}), str(whole[0]))
    assert figures(again)["raw"] != figures(whole[1])["last raw"]


@pytest.mark.parametrize("choice", [None, "best-raw"])
def test_a_copied_folder_of_best_weights_predicts_as_its_task(whole, make_scene, tmp_path, choice):
    folder, results = whole
    kept = shutil.copytree(folder / "best" / f"raw-step-{results[2]['step']:09d}", tmp_path / "copied")
    (tmp_path / "one.png").write_bytes(make_scene(3, size=(40, 56))["png"])
    assert task_of_run(kept) is task_of_run(folder / "checkpoints" / "step-000000004") is Segmentation
    predict(PredictOptions(run=kept, images=tmp_path / "one.png", out=tmp_path / "out", weights=choice))
    (record,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert sum(record["shares"].values()) == pytest.approx(1)
    assert load_exportable(kept).outputs == ("scores",)


HEADS = {
    "segvit-vit": (VIT, SegmenterConfig(head="segvit", dim=16)),
    "segvit-ce": ({}, SegmenterConfig(head="segvit", dim=16, strides=(8, 16), loss="ce")),
    "single": (VIT, SegmenterConfig(head="segvit", dim=16, cascade=False)),
    "naive-shrunk": (VIT, SegmenterConfig(head="segvit", dim=16, shrink="qd", shrink_of="qkv")),
    "shrunk": (VIT, SegmenterConfig(head="segvit", dim=16, shrink="qd+qu", class_token="keep")),
    "uper_net": ({}, SegmenterConfig(head="uper_net", dim=16)),
    "semantic_fpn": ({}, SegmenterConfig(head="semantic_fpn", dim=16)),
    "all_mlp": ({}, SegmenterConfig(head="all_mlp", dim=16)),
    "vit-pyramid": (VIT, SegmenterConfig(head="semantic_fpn", dim=16)),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_loss_of_every_head_falls(micro, name):
    """Ten steps on one micro-batch, every parameter with a gradient."""
    backbone, segmenter = HEADS[name]
    config = micro(backbone=backbone, segmenter=segmenter, augment={"crop": (64, 64)})
    network = build_model(config, start=resolve_start(config.backbone), num_classes=3).train()
    label_maps = torch.zeros(2, 64, 64, dtype=torch.int16)
    label_maps[:, 20:], label_maps[0, :, 40:], label_maps[1, :3] = 1, 2, -1
    images = (label_maps.clamp(min=0)[:, None] * 100).to(torch.uint8).expand(2, 3, 64, 64)
    shown = torch.tensor([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    losses = []
    for _ in range(10):
        torch.manual_seed(0)
        loss = network(images, label_maps, shown)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.step()
    least = 0.99 if segmenter.loss == "ce" else 0.9  # scores, which lie in [0, 1], are the logits of ce
    assert losses[-1] < least * losses[0]
    network.eval()
    assert network.scores(torch.randn(1, 3, 50, 70)).shape == (1, 3, 50, 70)


def test_statistics_of_the_weights_are_what_pixels_are_normalised_by(micro):
    """Swapping mean and std changes what the backbone sees as it should: images that cancel it score alike."""
    plain = micro(backbone={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    swapped = micro(backbone={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
    networks = [build_model(c, start=resolve_start(c.backbone), num_classes=3).eval() for c in (plain, swapped)]
    images = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    one, other = (network.pixels(images) for network in networks)
    assert torch.equal(one, other)  # (1 - 0) / 1 = (1 - 0.5) / 0.5
    dark = torch.zeros_like(images)
    assert networks[1].pixels(dark).unique().item() == -1
    assert networks[0].pixels(dark).unique().item() == 0


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"segmenter": {"shrink": "qd"}}, r"segmenter.shrink need a plain ViT, and swin_tiny.* is none"),
        (
            {"segmenter": {"head": "uper_net", "num_heads": None, "strides": (4, 8)}},
            r"uper_net takes four maps, .* asks for 2",
        ),
        ({"backbone": VIT, "segmenter": {}}, r"segmenter.strides: SegViT takes layers of a plain ViT"),
        (
            {"segmenter": {"head": "all_mlp", "cascade": False}},
            r"segmenter.num-heads, segmenter.cascade: an option of SegV",
        ),
        ({"segmenter": {"num_heads": 0}}, r"segmenter.num-heads must be at least 1, got 0"),
        ({"segmenter": {"shrink_block": 1}}, r"segmenter.shrink-block needs segmenter.shrink"),
        ({"segmenter": {"strides": (4, 4)}}, r"segmenter.strides must be rising"),
        ({"labels": {"void": (70000,)}}, r"labels.void takes values .* 0 to 65535, got \(70000,\)"),
        ({"inference": {"short_side": -3}}, r"inference.short-side and inference.long-side must be positive"),
        ({"segmenter": {"dim": 24, "num_heads": 5}}, r"segmenter.num-heads 5 does not divide segmenter.dim 24"),
    ],
)
def test_heads_that_do_not_fit_are_refused_before_training(micro, sections, message):
    def build():
        config = micro(**sections)
        build_model(config, start=resolve_start(config.backbone), num_classes=3)

    with pytest.raises(ValueError, match=message):
        build()


def test_uper_net_refuses_micro_batches_of_one(micro):
    with pytest.raises(ValueError, match=r"data.micro-batch-size must be at least 2, got 1"):
        micro(segmenter={"head": "uper_net", "num_heads": None, "strides": None}, data={"micro_batch_size": 1})


def test_a_changed_recipe_is_refused_on_resume(micro, whole):
    folder, _ = whole
    with pytest.raises(ValueError, match=r"labels.values: stored 'classes', asked 'zero_is_void'"):
        train(micro(run={"folder": folder}, labels={"values": "zero_is_void"}))
