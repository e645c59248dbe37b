"""SecViT on images, under the real launcher: two processes learn, and equal one."""

import json
import sys
from pathlib import Path

import pytest

from tests.integration.launched import ROOT, launch, start
from tests.integration.test_pretrain import FP32_BOUND

IMAGENETTE = ROOT.parent / "shared" / "data" / "imagenette_128_shards"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not IMAGENETTE.is_dir(), reason="not on this machine: ../shared/data/imagenette_128_shards"),
]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    shards = tmp_path_factory.mktemp("imagenette")
    command = ("index", "--source", str(IMAGENETTE), "--pattern", "train-*.tar", "--out", str(shards))
    indexed = start(sys.executable, "data/main.py", *command)
    assert indexed.returncode == 0, indexed.stderr
    return ("--recipe", "pretrain/recipes/secvit/secvit_tiny_cpu.yaml", "--data.shards", str(shards))


def test_two_processes_under_deepspeed_learn_from_photographs(words, tmp_path):
    done = launch("pretrain", *words, "--run.folder", str(tmp_path / "run"), timeout_s=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = losses(tmp_path / "run")
    assert len(found) == 12
    assert found[-1] < 0.9 * found[0]
    assert (tmp_path / "run" / "backbone" / "model.safetensors").is_file()


def test_two_processes_equal_one(words, tmp_path):
    few = ("--optimizer.steps", "3", "--report.every-steps", "1", "--optimizer.warmup-steps", "1")
    one = start(sys.executable, "pretrain/main.py", *words, *few, "--run.folder", str(tmp_path / "one"), timeout_s=600)
    assert one.returncode == 0, one.stderr[-3000:]
    two = launch("pretrain", *words, *few, "--run.folder", str(tmp_path / "two"), timeout_s=600)
    assert two.returncode == 0, two.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=10 * FP32_BOUND)
