"""The detection program under the real launcher: two processes learn and measure what one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data.scenes import CLASSES, scene_members
from data.writer import NewSample, ShardLimits, write_shards
from engine.checkpoint import newest_checkpoint
from engine.recipe import parse
from finetune.choosing import CONFIGS, choose_task
from finetune.detection.trainer import train

ROOT = Path(__file__).parents[2]
TWO_PROCESSES = ("-m", "accelerate.commands.accelerate_cli", "launch", "--config_file")
CONFIG_FILE = "pretrain/cpu_two_processes.yaml"
FP32_BOUND = 2e-5
RECIPE = """
backbone: {name: swin_tiny_patch4_window7_224, img_size: [64, 64], window: 4, embed_dim: 16,
           depths: [1, 1, 1, 1], num_heads: [1, 2, 4, 8], drop_path: 0.1}
detector: {kind: mask_rcnn, width: 16, box_width: 32, roi_samples: 16, anchor_samples: 32, proposals: [50, 20],
           score_threshold: 0.0}
resize: {short_sides: [64, 80], long_side: 128, test_short_side: 64}
data: {batch_size: 4, micro_batch_size: 2, workers: 0}
evaluation: {every_steps: 2, micro_batch_size: 2}
optimizer: {base_lr: 1.0e-3, lr_batch_size: 4, steps: 4, warmup_steps: 1, ema_decay: 0.5, layer_decay: 0.8}
run: {save_every_steps: 2}
report: {every_steps: 1, tensorboard: false, samples: true}
distributed: {precision: fp32}
"""


@pytest.fixture
def words(tmp_path):
    """The options that both runs share: shards of scenes with boxes and masks, and a micro recipe."""
    for name, first, count in (("train", 0, 16), ("val", 50, 5)):
        samples = []
        for number in range(first, first + count):
            _, members = scene_members(0, number=number, size=64)
            samples.append(NewSample(source=f"scene {number}", members=members))
        write_shards(samples, out=tmp_path / name, classes=list(CLASSES), limits=ShardLimits(samples=10))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    shards = ("--data.shards", str(tmp_path / "train"), "--val-shards", str(tmp_path / "val"))
    return ["--recipe", str(tmp_path / "recipe.yaml"), *shards]


def launch(*words: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "DS_"))}
    done = subprocess.run(
        [sys.executable, *TWO_PROCESSES, CONFIG_FILE, "--main_process_port", port, "finetune/main.py", *words],
        cwd=ROOT,
        env={**kept, "OMP_NUM_THREADS": "1"},
        timeout=400,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def samples_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for path in folder.glob("samples-*.jsonl") for line in path.read_text().splitlines()]
    return sorted(lines, key=lambda line: (line["step"], line["micro_batch"]))


@pytest.mark.slow
@pytest.mark.timeout(450)
def test_two_processes_under_zero1_learn_and_measure_what_one_does(words, tmp_path):
    task, left = choose_task([*words, "--run.folder", str(tmp_path / "alone")])
    train(parse(CONFIGS[task], left))
    launch(*words, "--run.folder", str(tmp_path / "together"))
    folders = tmp_path / "alone", tmp_path / "together"
    ours, theirs = map(samples_of, folders)
    assert ours == theirs
    assert len(ours) == 8
    one, two = (newest_checkpoint(folder / "checkpoints") for folder in folders)
    for kind in ("weight", "ema"):
        for name in one.names(kind):
            assert (one.read_full(kind, name) - two.read_full(kind, name)).abs().max() < FP32_BOUND, name
    alone, together = (json.loads((folder / "evaluation.json").read_text())["results"] for folder in folders)
    assert [line["name"] for line in together] == ["last raw", "last ema", "best raw", "best ema"]
    for mine, other in zip(alone, together, strict=True):
        assert mine["num_images"] == other["num_images"] == 5
    first, second = (json.loads((folder / "predictions-raw.json").read_text()) for folder in folders)
    assert [line["image_id"] for line in first] == [line["image_id"] for line in second]
    assert [line["score"] for line in first] == pytest.approx([line["score"] for line in second], abs=1e-3)
