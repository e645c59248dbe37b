"""The pretraining program under the real launcher: two processes equal one, and it refuses what cannot be divided."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.checkpoint.store import CheckpointStore
from engine.terms import MicroBatchKey
from tests.integration.launched import ROOT, difference, launch, start

FP32_BOUND = 1e-5


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    shards = tmp_path_factory.mktemp("scenes") / "shards"
    written = start(
        sys.executable,
        "data/main.py",
        "write",
        "--source",
        "scenes",
        "--count",
        "120",
        "--size",
        "64",
        "--out",
        str(shards),
    )
    assert written.returncode == 0, written.stderr
    return (
        "--recipe",
        "benchmarks/drills/resume.yaml",
        "--data.shards",
        str(shards),
        "--optimizer.steps",
        "4",
        "--data.workers",
        "1",
        "--distributed.precision",
        "fp32",
    )


def notes(folder: Path) -> dict[MicroBatchKey, str]:
    lines = [line for path in folder.glob("samples-*.jsonl") for line in path.read_text().splitlines()]
    return {(json.loads(line)["step"], json.loads(line)["micro_batch"]): line for line in lines}


def test_two_processes_under_deepspeed_equal_one(words, tmp_path):
    one = start(sys.executable, "pretrain/main.py", *words, "--run.folder", str(tmp_path / "one"))
    assert one.returncode == 0, one.stderr[-3000:]
    two = launch("pretrain", *words, "--run.folder", str(tmp_path / "two"))
    assert two.returncode == 0, two.stderr[-3000:]
    assert len(list((tmp_path / "two").glob("samples-*.jsonl"))) == 2
    assert notes(tmp_path / "one") == notes(tmp_path / "two")
    checkpoints = [CheckpointStore(tmp_path / name / "checkpoints").latest() for name in ("one", "two")]
    for name in checkpoints[0].names("weight"):
        a, b = (checkpoint.read_full("weight", name) for checkpoint in checkpoints)
        assert (a - b).abs().max() <= FP32_BOUND * max(1.0, float(a.abs().max())), name
        assert torch.isfinite(a).all()


@pytest.mark.slow
def test_recomputing_blocks_changes_nothing_where_zero_3_holds_weights_in_pieces(words, tmp_path):
    """Its weights are gathered once more in the backward pass; the same blocks must be recomputed on both processes."""
    for name, budget in (("all", "None"), ("some", "0.002")):
        options = ("--distributed.zero-stage", "3", "--mim.activation-gib", budget)
        done = launch("pretrain", *words, *options, "--run.folder", str(tmp_path / name))
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("blocks are recomputed" in done.stdout + done.stderr) == (name == "some")
    assert difference(tmp_path / "all", tmp_path / "some") == 0


def test_an_error_on_one_process_ends_all_with_its_message(words, tmp_path):
    """Rank 0 alone finds that the folder is taken; the other process must not be left waiting."""
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "checkpoints").write_text("a file where the folder belongs")
    refused = launch("pretrain", *words, "--run.folder", str(folder))
    assert refused.returncode != 0
    assert f"error: run folder {folder} cannot be used" in refused.stderr + refused.stdout


def test_a_process_count_that_does_not_divide_is_refused_with_those_that_do(words, tmp_path):
    refused = launch("pretrain", *words, "--run.folder", str(tmp_path / "three"), processes=3)
    assert refused.returncode != 0
    errors = {
        line.split("error: ")[1] for line in (refused.stderr + refused.stdout).splitlines() if "error: 4 micro" in line
    }
    assert any("cannot be divided among 3 processes; process counts that work: 1, 2, 4" in error for error in errors)


def test_a_second_start_in_the_same_folder_is_refused_and_names_the_holder(words, tmp_path):
    folder = str(tmp_path / "held")
    holder = subprocess.Popen(
        [sys.executable, "pretrain/main.py", *words, "--optimizer.steps", "100000", "--run.folder", folder],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            if (tmp_path / "held" / "lock.json").exists():
                break
            assert holder.poll() is None
            time.sleep(0.1)
        second = start(
            sys.executable, "pretrain/main.py", *words, "--optimizer.steps", "100000", "--run.folder", folder
        )
    finally:
        holder.kill()
        holder.wait()
    assert second.returncode == 1
    assert "error: " in second.stderr
    assert str(holder.pid) in second.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_run_ends_where_the_uninterrupted_one_does():
    """SIGKILL at random moments, also while saving; other process counts, ZeRO stages and loader workers."""
    drill = start(sys.executable, "benchmarks/drills/resume.py", timeout_s=1100)
    assert drill.returncode == 0, drill.stdout[-3000:] + drill.stderr[-3000:]
