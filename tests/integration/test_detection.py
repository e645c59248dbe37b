"""The detection program under the real launcher: two processes learn and measure what one does."""

import json

import pytest

from data.sources.scenes import CLASSES, scene_members
from data.writing.writer import NewSample, ShardLimits, write_shards
from engine.recipe import parse
from finetune.tasks import TASKS, choose_task
from finetune.train import train
from tests.integration.launched import difference, launch_well, results_of, samples_of

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


@pytest.mark.slow
@pytest.mark.timeout(450)
def test_two_processes_under_zero1_learn_and_measure_what_one_does(words, tmp_path):
    task, left = choose_task([*words, "--run.folder", str(tmp_path / "alone")])
    train(parse(TASKS[task].config, left))
    launch_well("finetune", *words, "--run.folder", str(tmp_path / "together"), timeout_s=400)
    folders = tmp_path / "alone", tmp_path / "together"
    ours, theirs = map(samples_of, folders)
    assert ours == theirs
    assert len(ours) == 8
    assert difference(*folders) < FP32_BOUND
    alone, together = map(results_of, folders)
    assert [line["name"] for line in together] == ["last raw", "last ema", "best raw", "best ema"]
    for mine, other in zip(alone, together, strict=True):
        assert mine["num_images"] == other["num_images"] == 5
    first, second = (json.loads((folder / "predictions-raw.json").read_text()) for folder in folders)
    assert [line["image_id"] for line in first] == [line["image_id"] for line in second]
    assert [line["score"] for line in first] == pytest.approx([line["score"] for line in second], abs=1e-3)
