"""Whole runs in one process: resumed equals uninterrupted, workers change nothing, what a run leaves behind."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import timm
import torch

from data.sources.scenes import scene_members
from data.writing.writer import NewSample, ShardLimits, write_shards
from engine.checkpoint.store import CheckpointStore
from pretrain.trainer import train

KINDS = ("weight", "exp_avg", "exp_avg_sq", "ema")


def last_tensors(folder):
    checkpoint = CheckpointStore(folder / "checkpoints", rank=0, world_size=1).latest()
    return checkpoint.step, {(k, n): checkpoint.read_full(k, n) for k in KINDS for n in checkpoint.names(k)}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def whole(micro, tmp_path):
    train(micro(run={"folder": tmp_path / "whole"}))
    return tmp_path / "whole"


def test_resumed_equals_uninterrupted(micro, whole, tmp_path):
    """A folder whose last checkpoints are gone, as after a kill, goes on to the same bits."""
    folder = tmp_path / "resumed"
    shutil.copytree(whole, folder)
    for step in (4, 6):
        shutil.rmtree(folder / "checkpoints" / f"step-{step:09d}", ignore_errors=True)
    if not any((folder / "checkpoints").iterdir()):
        pytest.fail("the checkpoint of step 2 should have been kept")
    train(micro(run={"folder": folder}))
    (step, one), (_, two) = last_tensors(whole), last_tensors(folder)
    assert step == 6
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_stop_file_ends_the_run_with_a_checkpoint_and_it_goes_on_from_there(micro, whole, tmp_path):
    folder = tmp_path / "stopped"
    folder.mkdir()
    (folder / "STOP").touch()
    train(micro(run={"folder": folder}))
    assert last_tensors(folder)[0] == 1
    assert not (folder / "STOP").exists()
    assert not (folder / "backbone").exists()
    train(micro(run={"folder": folder}))
    (_, one), (_, two) = last_tensors(whole), last_tensors(folder)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert [line["step"] for line in lines(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_loader_workers_change_nothing(micro, whole, tmp_path):
    train(micro(run={"folder": tmp_path / "workers"}, data={"workers": 2}))
    (_, one), (_, two) = last_tensors(whole), last_tensors(tmp_path / "workers")
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert (whole / "samples-00000.jsonl").read_text() == (tmp_path / "workers" / "samples-00000.jsonl").read_text()


def test_without_a_gpu_tiles_become_groups_and_one_line_says_so(micro, whole, tmp_path, caplog):
    config = micro(mim={"grouping": "tiles"}, run={"folder": tmp_path / "tiles"})
    train(config)
    said = [record.message for record in caplog.records if "tiles" in record.message]
    assert said == ["windows are grouped by the rule optimal: mim.grouping tiles is for GPUs with Triton"]
    (_, one), (_, two) = last_tensors(whole), last_tensors(tmp_path / "tiles")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_leaves_a_backbone_that_timm_reads_and_a_report(micro, whole):
    model = timm.create_model(f"local-dir:{whole / 'backbone'}", pretrained=True)
    _, tensors = last_tensors(whole)
    for name, value in model.state_dict().items():
        if ("weight", f"encoder.{name}") in tensors:
            assert torch.equal(value, tensors["weight", f"encoder.{name}"])
    page = (whole / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "takes both from the original" in " ".join(page.split())
    assert "http://" not in page
    provenance = json.loads((whole / "backbone" / "config.json").read_text())["provenance"]
    assert provenance["step"] == 6
    assert provenance["images_seen"] == 48


def test_kept_checkpoints_come_with_a_backbone(micro, tmp_path):
    train(micro(run={"folder": tmp_path / "kept", "keep_every_steps": 4, "keep_last": 1}))
    assert (tmp_path / "kept" / "backbone-step-000000004" / "model.safetensors").exists()
    assert sorted(p.name for p in (tmp_path / "kept" / "checkpoints").iterdir()) == ["step-000000004", "step-000000006"]


@pytest.mark.parametrize("section", ["data", "probe"])
def test_a_url_with_a_password_is_refused_before_anything_is_written(micro, tmp_path, section):
    url = "https://me:hunter2@host/shards"
    fields = (
        {"shards": (url,)}
        if section == "data"
        else {"train_shards": Path(url), "val_shards": Path(url), "every_steps": 3}
    )
    with pytest.raises(ValueError, match="the URL of host holds a user name or password") as caught:
        train(micro(**{section: fields}))
    assert "hunter2" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_changed_recipe_is_refused_on_resume_with_both_values(micro, whole):
    with pytest.raises(ValueError, match=r"mim\.mask_ratio: stored 0\.5, asked 0\.75") as refusal:
        train(micro(run={"folder": whole}, mim={"mask_ratio": 0.75}))
    assert "--run.branch-from" in str(refusal.value)


def test_a_branch_starts_from_another_runs_checkpoint(micro, whole, tmp_path):
    origin = whole / "checkpoints" / "step-000000004"
    train(micro(run={"folder": tmp_path / "branch", "branch_from": origin}, optimizer={"steps": 5}))
    assert last_tensors(tmp_path / "branch")[0] == 5
    assert lines(tmp_path / "branch" / "metrics.jsonl")[0]["step"] == 5


def test_a_truncated_checkpoint_is_passed_over_and_named(micro, whole, caplog):
    damaged = next((whole / "checkpoints" / "step-000000006").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with caplog.at_level(logging.INFO):
        train(micro(run={"folder": whole}))
    assert "step-000000006" in caplog.text
    assert "resuming after step 4" in caplog.text
    assert last_tensors(whole)[0] == 6


def test_a_checkpoint_of_another_architecture_is_refused_naming_both(micro, whole, tmp_path):
    origin = whole / "checkpoints" / "step-000000004"
    other = micro(run={"folder": tmp_path / "other", "branch_from": origin}, backbone={"embed_dim": 32})
    with pytest.raises(ValueError, match="swin_tiny_patch4_window7_224") as refusal:
        train(other)
    assert "32" in str(refusal.value)


def test_probes_are_written_with_their_floors(micro, shards, tmp_path):
    probe = {"every_steps": 3, "train_shards": shards, "val_shards": shards, "max_samples": 48}
    train(micro(run={"folder": tmp_path / "probed"}, probe=probe))
    probes = lines(tmp_path / "probed" / "probes.jsonl")
    assert [line["step"] for line in probes] == [0, 3, 6]
    assert "knn_accuracy_of_pixels" in probes[0]
    assert all(0 <= line["linear_accuracy"] <= 1 for line in probes)


@pytest.fixture(scope="module")
def broken_shards(tmp_path_factory):
    """16 images, the first of them cut short."""
    broken = tmp_path_factory.mktemp("broken")
    samples = [NewSample(source="bad", members={"jpg": scene_members(0, number=0, size=64)[1]["jpg"][:400]}, label=0)]
    for number in range(15):
        label, members = scene_members(0, number=number, size=64)
        samples.append(NewSample(source=f"scene {number}", members=members, label=label))
    write_shards(samples, out=broken, classes=None, limits=ShardLimits())
    return broken


def test_an_image_that_does_not_decode_is_replaced_named_and_counted(micro, broken_shards, tmp_path):
    runs = [tmp_path / "one", tmp_path / "two"]
    for folder in runs:
        train(micro(run={"folder": folder}, data={"shards": (str(broken_shards),)}))
    (ledger,) = lines(runs[0] / "bad_samples.jsonl")
    assert (ledger["id"], ledger["key"], ledger["shard"]) == (0, "000000", str(broken_shards / "shard-000000.tar"))
    assert "JPEG" in ledger["reason"]
    noted = lines(runs[0] / "samples-00000.jsonl")
    places = {(line["step"], line["micro_batch"]): line["repeats"] for line in noted if line["bad"]}
    assert len(places) == 3  # 16 images, 8 a step: once every two steps
    assert (ledger["step"], ledger["micro_batch"]) == min(places)
    assert all(sum(repeat < 0 for repeat in repeats) == 1 for repeats in places.values())
    metrics = lines(runs[0] / "metrics.jsonl")
    assert [sum(line["bad_samples"] for line in metrics), metrics[-1]["bad_samples_total"]] == [3, 3]
    assert all(line["read_bytes_per_byte_used"] >= 1 and line["read_requests"] > 0 for line in metrics)
    (_, one), (_, two) = (last_tensors(folder) for folder in runs)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_too_many_bad_images_stop_the_run_and_a_higher_limit_goes_on(micro, broken_shards, tmp_path):
    strict = micro(run={"folder": tmp_path / "run"}, data={"shards": (str(broken_shards),), "max_bad_share": 0.0})
    with pytest.raises(ValueError, match=r"data.max-bad-share 0 allows; .*run/bad_samples.jsonl names them"):
        train(strict)
    for name, limit in (("run", 0.5), ("whole", 0.5)):
        train(micro(run={"folder": tmp_path / name}, data={"shards": (str(broken_shards),), "max_bad_share": limit}))
    ledgers, metrics = (
        [lines(tmp_path / name / file) for name in ("run", "whole")] for file in ("bad_samples.jsonl", "metrics.jsonl")
    )
    assert ledgers[0] == ledgers[1]
    counted = [[(line["step"], line["bad_samples"], line["bad_samples_total"]) for line in run] for run in metrics]
    assert counted[0] == counted[1]


def test_bad_images_are_counted_once_where_a_run_goes_on_between_reports(micro, broken_shards, tmp_path):
    for name in ("whole", "parts"):
        config = micro(
            run={"folder": tmp_path / name}, data={"shards": (str(broken_shards),)}, report={"every_steps": 5}
        )
        train(config)
        if name == "parts":
            shutil.rmtree(tmp_path / name / "checkpoints" / "step-000000006")
            (tmp_path / name / "metrics.jsonl").unlink()
            train(config)
    whole, parts = (
        [
            (line["step"], line["bad_samples"], line["bad_samples_total"])
            for line in lines(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "parts")
    )
    assert whole == parts
    assert sum(line[1] for line in whole) == 3


def test_folders_may_move_but_other_data_are_refused_with_both_digests(micro, shards, broken_shards, tmp_path):
    run = {"folder": tmp_path / "run"}
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    train(micro(run=run, optimizer={"steps": 6}))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000000006")
    with pytest.raises(
        ValueError, match=r"trained on other data than data.shards: manifest digest stored \w+, asked \w+"
    ):
        train(micro(run=run, data={"shards": (str(broken_shards),)}))
    train(micro(run=run, data={"shards": (str(moved),)}))
    assert last_tensors(tmp_path / "run")[0] == 6


def test_mixed_folders_resume_where_the_uninterrupted_run_goes_on(micro, shards, broken_shards, tmp_path):
    data = {"shards": (str(shards), str(broken_shards)), "weights": (0.7, 0.3)}
    for name in ("whole", "parts"):
        train(micro(run={"folder": tmp_path / name}, data=data))
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-000000006")
    with pytest.raises(ValueError, match=r"data.weights: stored \[0.7, 0.3\], asked \[0.6, 0.4\]"):
        train(micro(run={"folder": tmp_path / "parts"}, data={**data, "weights": (0.6, 0.4)}))
    train(micro(run={"folder": tmp_path / "parts"}, data={**data, "workers": 2}))
    whole, parts = (last_tensors(tmp_path / name)[1] for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    (folder,) = {len(line["ids"]) for line in lines(tmp_path / "whole" / "samples-00000.jsonl")}
    from_first = sum(sum(n < 48 for n in line["ids"]) for line in lines(tmp_path / "whole" / "samples-00000.jsonl"))
    assert folder == 4
    assert abs(from_first - 0.7 * 48) < 3  # two micro-batch indices, and one replaced sample


def test_a_run_that_diverges_stops_before_it_saves_and_says_so(micro, tmp_path):
    config = micro(optimizer={"base_lr": 1e25, "warmup_steps": 1}, run={"folder": tmp_path / "diverged"})
    with pytest.raises(ValueError, match=r"nothing of them was saved; start again to go on from the last checkpoint"):
        train(config)
    checkpoint = CheckpointStore(tmp_path / "diverged" / "checkpoints").latest()
    assert checkpoint is None or all(
        torch.isfinite(checkpoint.read("weight", n)).all() for n in checkpoint.names("weight")
    )
    assert not (tmp_path / "diverged" / "backbone").exists()


def test_a_probe_line_cut_short_by_a_kill_is_dropped_on_resume(micro, shards, tmp_path):
    probe = {"every_steps": 3, "train_shards": shards, "val_shards": shards, "max_samples": 20, "linear": False}
    folder = tmp_path / "probed"
    train(micro(run={"folder": folder}, probe=probe))
    shutil.rmtree(folder / "checkpoints" / "step-000000006")
    with (folder / "probes.jsonl").open("a") as file:
        file.write('{"step": 6, "knn_acc')
    train(micro(run={"folder": folder}, probe=probe))
    assert [line["step"] for line in lines(folder / "probes.jsonl")] == [0, 3, 6]


def test_a_stop_before_the_first_report_saves_and_ends_well(micro, tmp_path):
    folder = tmp_path / "early"
    folder.mkdir()
    (folder / "STOP").touch()
    train(micro(run={"folder": folder}, report={"every_steps": 1000}))
    assert last_tensors(folder)[0] == 1


def test_a_backbone_folder_brings_its_own_sizes(micro, whole, tmp_path):
    init = {"init": whole / "backbone", "window": None, "embed_dim": None, "depths": None, "num_heads": None}
    train(micro(run={"folder": tmp_path / "second"}, backbone=init, optimizer={"steps": 2}))
    args = json.loads((tmp_path / "second" / "backbone" / "config.json").read_text())["model_args"]
    assert args["embed_dim"] == 16
    assert args["window_size"] in (2, [2, 2])


def test_pixels_normalised_otherwise_than_the_first_weights_want_are_refused(micro, whole, tmp_path):
    config = micro(
        run={"folder": tmp_path / "x"}, backbone={"init": whole / "backbone"}, augment={"mean": (0.5, 0.5, 0.5)}
    )
    with pytest.raises(ValueError, match=r"augment\.mean is \(0\.5, 0\.5, 0\.5\)"):
        train(config)
