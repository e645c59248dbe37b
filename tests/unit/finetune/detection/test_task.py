"""Whole detection runs in one process: what they leave behind, resumed equals uninterrupted, bad input."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import timm
import torch

from engine.checkpoint.store import newest_checkpoint
from finetune.app import main
from finetune.commands.evaluate import trained_recipe
from finetune.measure import measure
from finetune.train import train

KINDS = ("weight", "exp_avg", "exp_avg_sq", "ema", "buffer")


def last_tensors(folder):
    checkpoint = newest_checkpoint(folder / "checkpoints")
    return checkpoint.step, {(k, n): checkpoint.read_full(k, n) for k in KINDS for n in checkpoint.names(k)}


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A finished run and its results; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    config = replace(base, run=replace(base.run, folder=folder), optimizer=replace(base.optimizer, ema_decay=0.5))
    return config, folder, train(config)


def test_boxes_and_masks_of_raw_and_averaged_weights_are_measured(whole):
    _, folder, results = whole
    assert [line["name"] for line in results] == ["last raw", "last ema", "best raw", "best ema"]
    assert json.loads((folder / "evaluation.json").read_text())["results"] == results
    assert all(line["num_images"] == 5 for line in results)
    assert set(results[0]["mask"]) == set(results[0]["box"]) >= {"AP", "AP50", "AR100", "per_class"}
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [(line["step"], line["weights"]) for line in lines] == [(s, w) for s in (2, 4) for w in ("raw", "ema")]
    assert {"box_AP", "box_AP50", "mask_AP"} <= set(lines[0])
    predictions = json.loads((folder / "predictions-raw.json").read_text())
    assert set(predictions[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}


def test_resumed_equals_uninterrupted(whole, tmp_path):
    """A folder whose last checkpoint is gone, as after a kill, goes on to the same bits and the same results."""
    config, folder, results = whole
    resumed = tmp_path / "resumed"
    shutil.copytree(folder, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000000004")
    (resumed / "evaluation.json").unlink()
    again = train(replace(config, run=replace(config.run, folder=resumed)))
    (step, one), (_, two) = last_tensors(folder), last_tensors(resumed)
    assert step == 4
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert again == results
    name = "evaluations.jsonl"
    assert (resumed / name).read_text() == (folder / name).read_text()


def test_the_handed_off_folder_is_the_backbone_as_the_detector_left_it(whole):
    _, folder, _ = whole
    network = timm.create_model(f"local-dir:{folder / 'backbone'}", pretrained=True, num_classes=0)
    _, tensors = last_tensors(folder)
    named = dict(network.named_parameters())
    assert named
    assert all(torch.equal(p, tensors["weight", f"features.pyramid.network.{name}"]) for name, p in named.items())


@pytest.mark.parametrize("target", ["run", "checkpoint"])
def test_measuring_repeats_what_the_run_measured(whole, tmp_path, target):
    config, folder, results = whole
    path = folder if target == "run" else folder / "checkpoints" / "step-000000004"
    again = measure(replace(config, run=replace(config.run, folder=tmp_path / "eval")), str(path))
    for one, other in zip(again, results[:2], strict=True):
        assert one["box"] == other["box"]
        assert one["mask"] == other["mask"]


def test_the_best_weights_are_kept_and_measured_again_alike(whole, tmp_path):
    """By mask AP, and of equal ones the first; a copy of their folder is enough."""
    config, folder, results = whole
    _, _, best, _ = results
    copied = shutil.copytree(folder / "best" / f"raw-step-{best['step']:09d}", tmp_path / "copied")
    (again,) = measure(replace(config, run=replace(config.run, folder=tmp_path / "eval")), str(copied))
    assert (again["name"], again["step"], again["mask"]) == ("best raw", best["step"], best["mask"])


@pytest.mark.parametrize("target", ["checkpoints/step-000000004", "best"])
def test_a_copied_checkpoint_or_best_folder_is_measured_with_the_recipe_in_it(whole, tmp_path, monkeypatch, target):
    """The command line comes first; the run that it was copied from is left alone."""
    _, folder, results = whole
    one = folder / target if target != "best" else folder / "best" / f"raw-step-{results[2]['step']:09d}"
    copied = shutil.copytree(one, tmp_path / "far" / "away" / "copied")
    out = tmp_path / "out"
    argv = ["evaluate", str(copied), "--run.folder", str(out), "--evaluation.micro-batch-size", "1"]
    monkeypatch.setattr(sys, "argv", ["finetune/main.py", *argv])
    main()
    again = json.loads((out / "eval_only.json").read_text())["results"][0]
    assert again["mask"] == results[2 if target == "best" else 0]["mask"]
    name, recipe = trained_recipe(str(copied))
    assert name == "detect"
    assert "folder" not in recipe["run"]
    _, recipe = trained_recipe(str(folder / "checkpoints" / "step-000000004"))
    assert recipe["run"]["folder"] == str(folder)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"detector": {"nms_threshold": 0.0}}, r"detector.nms-threshold must lie in \(0, 1\], got 0.0"),
        ({"detector": {"nms_threshold": 7.0}}, r"detector.nms-threshold must lie in \(0, 1\], got 7.0"),
        ({"resize": {"min_side_px": 0.0}}, r"resize.min-side-px must be positive, got 0.0"),
    ],
)
def test_settings_without_sense_are_refused(micro, sections, message):
    with pytest.raises(ValueError, match=message):
        micro(**sections)


@pytest.mark.parametrize("target", ["run", "copied"])
def test_options_of_the_detector_that_would_change_nothing_are_refused(whole, tmp_path, monkeypatch, capsys, target):
    _, folder, _ = whole
    one = folder / "checkpoints" / "step-000000004"
    path = folder if target == "run" else shutil.copytree(one, tmp_path / "far" / "away" / "copied")
    argv = ["evaluate", str(path), "--run.folder", str(tmp_path / "out"), "--detector.score-threshold", "0.3"]
    monkeypatch.setattr(sys, "argv", ["finetune/main.py", *argv])
    with pytest.raises(SystemExit):
        main()
    assert "detector.score-threshold 0.3 cannot be measured" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["retinanet", "cascade", "yolo"])
def test_the_other_detectors_train_and_are_measured_too(micro, kind):
    results = train(micro(kind, optimizer={"steps": 1, "warmup_steps": 0}))
    assert [line["name"] for line in results] == ["last raw", "best raw"]
    assert ("mask" in results[0]) == (kind == "cascade")


def test_workers_change_nothing(micro, whole, tmp_path):
    config, folder, _ = whole
    data = replace(config.data, workers=2)
    train(replace(config, data=data, run=replace(config.run, folder=tmp_path / "workers")))
    (_, one), (_, two) = last_tensors(folder), last_tensors(tmp_path / "workers")
    assert all(torch.equal(one[key], two[key]) for key in one)
