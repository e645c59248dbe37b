"""A reconstruction target from outside the packages, used as an outsider would: named on the command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data.sources.scenes import scene_members
from data.writing.writer import NewSample, ShardLimits, write_shards
from engine.checkpoint.store import newest_checkpoint
from engine.extensions import PREFIX, load_extensions
from pretrain.targets.registry import TARGETS

ROOT = Path(__file__).resolve().parents[3]
TARGET = ROOT / "examples" / "extensions" / "target.py"
RECIPE = {
    "backbone": {
        "name": "swin_tiny_patch4_window7_224",
        "img_size": [64, 64],
        "window": 2,
        "embed_dim": 16,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 8],
    },
    "data": {"batch_size": 4, "micro_batch_size": 2, "workers": 0},
    "mim": {"mask_ratio": 0.5, "decoder_dim": 16, "decoder_heads": 2},
    "optimizer": {"steps": 2, "warmup_steps": 1},
    "report": {"every_steps": 1, "tensorboard": False},
    "distributed": {"precision": "fp32"},
}


def pretrain(*arguments):
    command = [sys.executable, str(ROOT / "pretrain" / "main.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    samples = []
    for number in range(8):
        label, members = scene_members(0, number=number, size=64)
        samples.append(NewSample(source=f"scene {number}", members=members, label=label))
    write_shards(samples, out=folder / "shards", classes=[str(c) for c in range(12)], limits=ShardLimits(samples=8))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def test_a_run_learns_to_predict_it_and_says_that_it_cannot_be_drawn(folder):
    options = ["--recipe", folder / "recipe.yaml", "--data.shards", folder / "shards", "--run.folder", folder / "run"]
    run = pretrain("--extension", TARGET, *options, "--mim.target", "gradients")
    assert run.returncode == 0, run.stderr
    losses = [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    head = newest_checkpoint(folder / "run" / "checkpoints").shape("weight", "decoder.predict.weight")
    assert head == (4 * 4 * 3 * 9, 16)
    assert not (folder / "run" / "reconstructions.png").exists()
    assert "The target gradients is no pixels" in (folder / "run" / "report.html").read_text()

    other = pretrain(*options, "--mim.target", "pixels")
    assert other.returncode == 1
    assert "mim.target: stored 'gradients', asked 'pixels'" in other.stderr


def test_a_target_that_nobody_registered_is_refused_naming_the_others(folder):
    run = pretrain("--recipe", folder / "recipe.yaml", "--data.shards", folder / "shards", "--mim.target", "gradients")
    assert run.returncode
    message = " ".join((run.stdout + run.stderr).replace("│", " ").split())
    assert "mim.target must be one of pixels, got 'gradients'" in message
    assert "--extension" in message


@pytest.fixture
def target():
    load_extensions(["--extension", str(TARGET)])
    yield sys.modules[f"{PREFIX}target"].gradient_histograms
    del sys.modules[f"{PREFIX}target"], TARGETS["gradients"]


def test_an_edge_is_found_in_its_unit_cell_and_direction(target):
    images = torch.zeros(2, 3, 64, 64)
    images[1, :, 32:, 40:] = 1.0  # its upper edge runs through the third row of units, its left edge through the cells
    histograms = target(images, (32, 32)).view(2, 4, 4, 4, 3, 9)
    assert not histograms[0].any()
    assert histograms[1, 3, 1, 0, :, 0].min() == 1.0  # left edge, in the last unit: the gradient points right
    assert histograms[1, 1, 3, 2, :, 4].min() == 1.0  # upper edge, seen from the unit above: it points down
    assert not histograms[1, 0].any()


def test_images_of_a_stack_are_those_of_its_micro_batches(target):
    images = torch.randn(3, 2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(target(images, (16, 16)), torch.stack([target(x, (16, 16)) for x in images]))


def test_it_is_one_short_file():
    assert len(TARGET.read_text().splitlines()) <= 60
