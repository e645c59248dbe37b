"""The fine-tuning program under the real launcher: two processes do what one does, at every ZeRO stage."""

from pathlib import Path

import pytest

from data.sources.scenes import scene_members
from data.writing.writer import NewSample, ShardLimits, write_shards
from engine.recipe import parse
from finetune.classification.config import ClassifyConfig
from finetune.train import train
from tests.integration.launched import difference, launch_well, results_of, samples_of

FP32_BOUND = 2e-6  # measured: 1.5e-7 after four steps, for another order of fp32 sums
RECIPE = """
backbone: {name: swin_tiny_patch4_window7_224, img_size: [64, 64], window: 2, embed_dim: 16,
           depths: [1, 1, 1, 1], num_heads: [1, 2, 4, 8], drop_path: 0.1}
data: {batch_size: 16, micro_batch_size: 4, workers: 0}
evaluation: {every_steps: 2, micro_batch_size: 4}
optimizer: {base_lr: 1.0e-2, steps: 4, warmup_steps: 1, ema_decay: 0.5, layer_decay: 0.8}
run: {save_every_steps: 2}
report: {every_steps: 1, tensorboard: false, samples: true}
distributed: {precision: fp32}
"""


@pytest.fixture
def words(tmp_path):
    """The options that every run shares: shards of scenes and a micro recipe."""
    for name, first, count in (("train", 0, 40), ("val", 40, 19)):
        samples = []
        for number in range(first, first + count):
            _, members = scene_members(0, number=number, size=64)
            samples.append(NewSample(source=f"scene {number}", members=members, label=number % 4))
        write_shards(samples, out=tmp_path / name, classes=list("abcd"), limits=ShardLimits(samples=15))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return [
        *("--recipe", str(tmp_path / "recipe.yaml")),
        *("--data.shards", str(tmp_path / "train"), "--val-shards", str(tmp_path / "val")),
    ]


def check_alike(alone: Path, together: Path) -> None:
    assert samples_of(alone) == samples_of(together)
    assert len(samples_of(alone)) == 16
    assert difference(alone, together) < FP32_BOUND
    results = [results_of(folder) for folder in (alone, together)]
    assert [line["name"] for line in results[1]] == ["last raw", "last ema", "best raw", "best ema"]
    for ours, theirs in zip(*results, strict=True):
        assert ours["num_images"] == theirs["num_images"] == 19
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


@pytest.mark.timeout(200)
def test_two_processes_under_zero1_learn_and_measure_what_one_does(words, tmp_path):
    train(parse(ClassifyConfig, [*words, "--run.folder", str(tmp_path / "alone")]))
    launch_well("finetune", *words, "--run.folder", str(tmp_path / "together"))
    check_alike(tmp_path / "alone", tmp_path / "together")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_under_zero3_learn_and_measure_what_one_does(words, tmp_path):
    train(parse(ClassifyConfig, [*words, "--run.folder", str(tmp_path / "alone")]))
    launch_well("finetune", *words, "--run.folder", str(tmp_path / "together"), "--distributed.zero-stage", "3")
    check_alike(tmp_path / "alone", tmp_path / "together")
