"""Whole runs in one process: what they leave behind, resumed equals uninterrupted, every method."""

import json
import shutil
from dataclasses import replace

import pytest
import timm
import torch

from data.loading.mixing import training_order
from engine.checkpoint.store import newest_checkpoint
from engine.loop.optimizer import param_groups
from engine.loop.training import Training
from finetune.classification.data import open_data
from finetune.classification.model import build_model
from finetune.evaluation.evaluations import Evaluations
from finetune.measure import measure
from finetune.network.start import resolve_start
from finetune.train import train

KINDS = ("weight", "exp_avg", "exp_avg_sq", "ema", "buffer")


def last_tensors(folder):
    checkpoint = newest_checkpoint(folder / "checkpoints")
    return checkpoint.step, {(k, n): checkpoint.read_full(k, n) for k in KINDS for n in checkpoint.names(k)}


def by_name(results):
    return {line["name"]: line for line in results}


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A finished run and its results; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, train(replace(base, run=replace(base.run, folder=folder)))


def test_last_and_best_raw_and_averaged_weights_are_measured(whole):
    folder, results = whole
    assert list(by_name(results)) == ["last raw", "last ema", "best raw", "best ema"]
    assert json.loads((folder / "evaluation.json").read_text())["results"] == results
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [(line["step"], line["weights"]) for line in lines] == [(s, w) for s in (2, 4, 6) for w in ("raw", "ema")]
    for weights in ("raw", "ema"):
        best = by_name(results)[f"best {weights}"]
        assert best["top1"] == max(line["top1"] for line in lines if line["weights"] == weights)
        assert best["num_images"] == 23
        assert set(best["per_class"]) == {"ant", "bee", "cat", "dog"}
    assert len({torch.tensor(line["loss"]).item() for line in lines}) == len(lines)


@pytest.mark.parametrize("target", ["backbone", "backbone-ema", "best", "run", "checkpoint"])
def test_measuring_repeats_what_the_run_measured(whole, micro, tmp_path, target):
    folder, results = whole
    best = by_name(results)["best raw"]
    path, expected = {
        "backbone": (folder / "backbone", {"last raw": "last raw"}),
        "backbone-ema": (folder / "backbone-ema", {"last ema": "last ema"}),
        "best": (folder / "best" / f"raw-step-{best['step']:09d}", {"best raw": "best raw"}),
        "run": (folder, {"raw": "last raw", "ema": "last ema"}),
        "checkpoint": (folder / "checkpoints" / "step-000000006", {"raw": "last raw", "ema": "last ema"}),
    }[target]
    again = by_name(measure(micro(run={"folder": tmp_path / "eval"}), str(path)))
    assert set(again) == set(expected)
    for name, of_run in expected.items():
        for figure in ("top1", "top5", "confusion", "step"):
            assert again[name][figure] == by_name(results)[of_run][figure]
    assert json.loads((tmp_path / "eval" / "eval_only.json").read_text())["results"] == list(again.values())


def test_the_handed_off_folder_is_a_timm_classifier(whole):
    folder, _ = whole
    network = timm.create_model(f"local-dir:{folder / 'backbone'}", pretrained=True)
    _, tensors = last_tensors(folder)
    assert network.num_classes == 4
    cfg = network.pretrained_cfg
    assert (cfg["crop_pct"], tuple(cfg["label_names"])) == (0.875, ("ant", "bee", "cat", "dog"))
    assert all(torch.equal(value, tensors["weight", name]) for name, value in network.named_parameters())


def test_resumed_equals_uninterrupted(micro, whole, tmp_path):
    """A folder whose last checkpoints are gone, as after a kill, goes on to the same bits and the same results."""
    folder, results = whole
    resumed = tmp_path / "resumed"
    shutil.copytree(folder, resumed)
    for step in (4, 6):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:09d}")
    (resumed / "evaluation.json").unlink()
    again = train(micro(run={"folder": resumed}))
    (step, one), (_, two) = last_tensors(folder), last_tensors(resumed)
    assert step == 6
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert again == results
    assert (resumed / "evaluations.jsonl").read_text() == (folder / "evaluations.jsonl").read_text()


def test_a_finished_run_that_is_started_again_only_repeats_its_results(micro, whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "again")
    assert train(micro(run={"folder": folder})) == whole[1]
    assert (folder / "evaluations.jsonl").read_text() == (whole[0] / "evaluations.jsonl").read_text()


def test_a_changed_recipe_is_refused_on_resume(micro, whole):
    folder, _ = whole
    with pytest.raises(ValueError, match=r"augment.mixup_alpha: stored 0.8, asked 0.5"):
        train(micro(run={"folder": folder}, augment={"mixup_alpha": 0.5}))


def test_workers_and_evaluations_change_nothing(micro, whole, tmp_path):
    folder, _ = whole
    train(micro(run={"folder": tmp_path / "workers"}, data={"workers": 2}, evaluation={"every_steps": 6}))
    (_, one), (_, two) = last_tensors(folder), last_tensors(tmp_path / "workers")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_an_evaluation_shows_progress_with_every_batch(micro, monkeypatch):
    """A long one is no hang."""
    phases = []
    monkeypatch.setattr(Training, "note_progress", lambda training, phase: phases.append((training.step, phase)))
    config = micro()
    train(config)
    batches = -(-23 // config.data.micro_batch_size)
    assert phases.count((config.optimizer.steps, "evaluation")) >= batches


def test_weights_that_a_run_goes_back_from_are_not_measured(micro, monkeypatch):
    """The loss breaks once, between two reports; all steps are measured, with finite weights."""
    broken, measured = [], []
    backward, measure_all = Training.backward, Evaluations._run

    def break_once(training, loss, **metrics):
        if training.step == 2 and not broken:
            broken.append(training.step)
            loss = loss * float("nan")
        backward(training, loss, **metrics)

    def note(evaluations):
        weights = evaluations._training.engine.module.parameters()
        measured.append((evaluations._training.step, all(bool(weight.isfinite().all()) for weight in weights)))
        measure_all(evaluations)

    monkeypatch.setattr(Training, "backward", break_once)
    monkeypatch.setattr(Evaluations, "_run", note)
    train(
        micro(
            optimizer={"steps": 4},
            evaluation={"every_steps": 1},
            report={"every_steps": 4},
            run={"save_every_steps": 4},
        )
    )
    assert broken
    assert measured == [(1, True), (2, True), (1, True), (2, True), (3, True), (4, True)]


def test_a_linear_probe_trains_only_its_layer_and_becomes_an_ordinary_classifier(micro, whole, tmp_path):
    init = {"init": whole[0] / "backbone", "name": None, "img_size": None, "window": None}
    init |= {"embed_dim": None, "depths": None, "num_heads": None}
    config = micro(
        task={"method": "linear"},
        backbone=init,
        augment={"mix_prob": 0.0, "erase_prob": 0.0},
        optimizer={"layer_decay": 1.0},
        run={"folder": tmp_path / "linear"},
    )
    results = by_name(train(config))
    _, before = last_tensors(whole[0])
    _, after = last_tensors(tmp_path / "linear")
    same = {name for kind, name in before if kind == "weight" and not name.startswith("head.")}
    assert all(torch.equal(before["weight", name], after["weight", name]) for name in same)
    assert ("exp_avg", "head.fc.1.weight") in after
    assert not any(kind == "exp_avg" and not name.startswith("head.") for kind, name in after)
    again = by_name(measure(micro(run={"folder": tmp_path / "e"}), str(tmp_path / "linear" / "backbone")))
    assert again["last raw"]["confusion"] == results["last raw"]["confusion"]
    assert again["last raw"]["loss"] == pytest.approx(results["last raw"]["loss"], rel=1e-4)


def test_knn_is_measured_beside_its_floors(micro, whole, tmp_path):
    init = {"init": whole[0] / "backbone", "name": None, "img_size": None, "window": None}
    init |= {"embed_dim": None, "depths": None, "num_heads": None}
    results = train(micro(task={"method": "knn"}, backbone=init, run={"folder": tmp_path / "knn"}))
    assert [line["name"] for line in results] == ["knn", "knn, random network", "knn, 8x8 pixels"]
    assert all(0 <= line["top1"] <= 1 for line in results)
    assert not any((tmp_path / "knn" / "checkpoints").iterdir())


def test_a_label_subset_and_repeats_pass_through_to_the_order(micro):
    config = micro(task={"labels_per_class": 4, "repeats": 2})
    data = open_data(config)
    order = training_order(config.data, data.train, seed=config.run.seed, repeats=data.repeats)
    seen = [
        tuple(row) for step in range(order.steps_per_epoch) for mb in range(2) for row in order.micro_batch(step, mb)
    ]
    ids = {data.train.read(int(shard), int(position)).id for shard, position, _ in seen}
    assert ids <= set(data.subset.tolist())
    assert len(seen) == len(set(seen)) == 16
    assert len(ids) == 8


def test_layer_decay_falls_from_the_head_to_the_stem(micro):
    config = micro()
    network = build_model(config, start=resolve_start(config.backbone), num_classes=4)
    groups = param_groups(network, weight_decay=0.05, layer_decay=0.8)
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    decays = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert scales["head.fc.weight"] == scales["norm.weight"] == 1.0
    for block in range(4):
        assert scales[f"layers.{block}.blocks.0.attn.qkv.weight"] == pytest.approx(0.8 ** (4 - block))
    assert scales["patch_embed.proj.weight"] == pytest.approx(0.8**5)
    assert decays["head.fc.bias"] == decays["layers.0.blocks.0.attn.relative_position_bias_table"] == 0.0
    assert decays["head.fc.weight"] == 0.05
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(p.numel() for p in network.parameters())
