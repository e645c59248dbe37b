"""A detector from outside the packages, used as an outsider would: named on the command line of fine-tuning."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data.sources.scenes import CLASSES, scene_members
from data.writing.writer import NewSample, ShardLimits, write_shards
from finetune.detection.config import DetectorConfig

ROOT = Path(__file__).resolve().parents[3]
DETECTOR = ROOT / "examples" / "extensions" / "detector.py"
RECIPE = """
backbone: {name: swin_tiny_patch4_window7_224, img_size: [64, 64], window: 4, embed_dim: 16,
           depths: [1, 1, 1, 1], num_heads: [1, 2, 4, 8]}
detector: {kind: fcos, width: 64, score_threshold: 0.0}
resize: {short_sides: [64, 80], long_side: 128, test_short_side: 64}
data: {batch_size: 4, micro_batch_size: 2, workers: 0}
evaluation: {every_steps: 2, micro_batch_size: 2}
optimizer: {base_lr: 1.0e-3, lr_batch_size: 4, steps: 2, warmup_steps: 1}
report: {every_steps: 1, tensorboard: false}
distributed: {precision: fp32, engine: single}
"""


@pytest.fixture
def options(tmp_path):
    for name, first, count in (("train", 0, 8), ("val", 50, 3)):
        members = [scene_members(0, number=number, size=64)[1] for number in range(first, first + count)]
        samples = [NewSample(source=str(number), members=sample) for number, sample in enumerate(members)]
        write_shards(samples, out=tmp_path / name, classes=list(CLASSES), limits=ShardLimits(samples=10))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    shards = ["--data.shards", tmp_path / "train", "--val-shards", tmp_path / "val"]
    return ["--recipe", tmp_path / "recipe.yaml", *shards, "--run.folder", tmp_path / "run"]


def finetune(*arguments):
    argv = [sys.executable, ROOT / "finetune" / "main.py", *arguments]
    return subprocess.run([str(argument) for argument in argv], cwd=ROOT, capture_output=True, text=True, check=False)


def trained(options):
    done = finetune("--extension", DETECTOR, *options)
    assert done.returncode == 0, done.stderr
    return options[-1]


def results_of(path):
    return json.loads(path.read_text())["results"][0]["box"]


def test_it_trains_two_steps_and_is_measured(options):
    run = trained(options)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"classification", "bbox_regression", "bbox_ctrness"} <= set(lines[0])
    assert "AP50" in results_of(run / "evaluation.json")


@pytest.mark.slow
def test_it_is_measured_again_alike(options, tmp_path):
    run = trained(options)
    again = finetune("evaluate", run, "--extension", DETECTOR, "--run.folder", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert results_of(tmp_path / "again" / "eval_only.json") == results_of(run / "evaluation.json")


def test_without_the_file_the_name_is_refused_with_what_to_do():
    names = "takes retinanet, mask_rcnn, cascade, yolo, got 'fcos'; --extension FILE adds those of a file"
    with pytest.raises(ValueError, match=names):
        DetectorConfig(kind="fcos")


def test_it_is_one_short_file():
    assert len(DETECTOR.read_text().splitlines()) <= 60
