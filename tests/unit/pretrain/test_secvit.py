"""SecViT under pretraining: every option of the papers' ablations trains, batch statistics resume to the same bits."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from backbones.config import SecConfig
from engine.checkpoint.store import CheckpointStore
from pretrain.trainer import train

OPTIONS = {
    "published": {},
    "first version": {"version": 1},
    "no cpe": {"cpe": False},
    "no lce": {"lce": False},
    "patch stem": {"stem": "patch"},
    "no rope": {"rope": False},
    "more clusters": {"clusters": (16, 8, 4, 1)},
    "global query": {"global_token": "q"},
    "windows": {"attention": "window"},
    "stripes": {"attention": "cswin"},
}


@pytest.fixture
def secvit(micro):
    """Make a micro recipe of SecViT, with options of SEC and other changes."""

    def change(options=None, **sections):
        config = micro(backbone={"name": "secvit_tiny", "num_heads": (2, 2, 4, 4), "window": None}, **sections)
        return replace(config, backbone=replace(config.backbone, sec=SecConfig(**(options or {}))))

    return change


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_every_option_trains_for_20_steps(options, secvit):
    steps = {"steps": 20, "base_lr": 0.1, "ema_decay": None}
    config = secvit(options, optimizer=steps, run={"save_every_steps": 20})
    train(config)
    found = losses(config.run.folder)
    assert len(found) == 20
    assert sum(found[-5:]) < 0.99 * sum(found[:5])


def test_resumed_equals_uninterrupted_in_weights_and_batch_statistics(secvit, tmp_path):
    folder = tmp_path / "whole"
    train(secvit(run={"folder": folder}))
    resumed = tmp_path / "resumed"
    shutil.copytree(folder, resumed)
    for step in (4, 6):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:09d}")
    train(secvit(run={"folder": resumed}))
    one, two = (CheckpointStore(path / "checkpoints", rank=0, world_size=1).latest() for path in (folder, resumed))
    assert one.step == two.step == 6
    assert any(name.endswith("running_var") for name in one.names("buffer"))
    for kind in ("weight", "buffer", "exp_avg", "ema"):
        for name in one.names(kind):
            assert torch.equal(one.read_full(kind, name), two.read_full(kind, name)), name
