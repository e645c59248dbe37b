"""What a run survives, in real processes under the real launcher: hangs, numbers that are not finite, kills."""

import json
import subprocess
import sys
import time

import pytest
import torch

from engine.checkpoint.store import newest_checkpoint
from tests.integration.launched import ACCELERATE, ROOT, start
from tests.integration.survival_program import POISONED, SLOW_S, STALL_TIMEOUT_S
from tests.tiny_run import MICRO_BATCHES, STEPS

FP32_BOUND = 1e-5
PROGRAM = "tests/integration/survival_program.py"
ALONE = (sys.executable,)
TWO_DDP = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TWO_DEEPSPEED = (*ACCELERATE, "--num_processes", "2", "--main_process_port", "0")


@pytest.fixture(autouse=True)
def found_by_the_program(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ".")


def run(launcher, folder, what, engine="ddp", stage="1"):
    return start(*launcher, PROGRAM, str(folder), what, engine, stage, timeout_s=280)


def weights(folder):
    checkpoint = newest_checkpoint(folder / "checkpoints")
    assert checkpoint.step == STEPS
    return {name: checkpoint.read_full(kind, name) for kind in ("weight", "buffer") for name in checkpoint.names(kind)}


def assert_close(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.isfinite(one[name]).all()
        torch.testing.assert_close(one[name], two[name], rtol=FP32_BOUND, atol=FP32_BOUND)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process that met the poisoned micro-batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ".")
        folder = tmp_path_factory.mktemp("alone") / "run"
        ended = run(ALONE, folder, "poison", engine="single")
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


@pytest.mark.parametrize(
    ("launcher", "engine", "stage"),
    [
        (TWO_DDP, "ddp", "1"),
        (TWO_DEEPSPEED, "deepspeed", "1"),
        pytest.param(TWO_DEEPSPEED, "deepspeed", "3", marks=pytest.mark.slow),
    ],
)
def test_two_processes_agree_on_what_to_leave_out_and_equal_one(alone, tmp_path, launcher, engine, stage):
    folder = tmp_path / "run"
    ended = run(launcher, folder, "poison", engine, stage)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for step, number in sorted(POISONED):
        record = json.loads((folder / "non_finite" / f"step-{step:09d}" / f"micro-batch-{number:05d}.json").read_text())
        assert (record["rank"], record["first_module"]) == (number * 2 // MICRO_BATCHES, "body.0")
        assert f"left out from now on: micro-batch {number} of step {step}" in ended.stderr
    assert newest_checkpoint(folder / "checkpoints").state["skipped"] == [list(key) for key in sorted(POISONED)]
    assert_close(weights(folder), weights(alone))


@pytest.mark.parametrize("what", ["hang", "stop"])
def test_a_process_that_hangs_ends_the_run_within_the_set_time_and_is_named(tmp_path, what):
    """It sleeps in the interpreter, or is stopped altogether, as on a machine that is gone."""
    folder = tmp_path / "run"
    begun = time.monotonic()
    process = subprocess.Popen(
        [*TWO_DDP, PROGRAM, str(folder), what, "ddp", "1"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    _, errors = process.communicate(timeout=280)
    seconds = time.monotonic() - begun
    assert process.returncode != 0
    said = "is behind" if what == "hang" else "gave no sign of life"
    report = json.loads((folder / "stalls" / "report.json").read_text())
    assert len(report["blamed"]) == 1
    assert report["blamed"][0].startswith("process 1 on ")
    assert said in report["blamed"][0]
    assert f"more than run.stall-timeout-s {STALL_TIMEOUT_S:g}" in errors
    assert "process 1 on" in errors
    waiting = (folder / "stalls" / "rank-00000.txt").read_text()
    assert "engine/loop/training.py" in waiting
    if what == "hang":
        assert "after step 3" in report["blamed"][0]
        assert "before_step" in (folder / "stalls" / "rank-00001.txt").read_text()
    silent = min(beat["silent_s"] for beat in report["heartbeats"] if beat["rank"] == 0)
    assert STALL_TIMEOUT_S < silent < 4 * STALL_TIMEOUT_S, f"of {seconds:.0f} s in all"


@pytest.mark.parametrize(
    ("launcher", "engine", "stage"),
    [
        (TWO_DDP, "ddp", "1"),
        pytest.param(TWO_DEEPSPEED, "deepspeed", "1", marks=pytest.mark.slow),
        pytest.param(TWO_DEEPSPEED, "deepspeed", "3", marks=pytest.mark.slow),
    ],
)
def test_a_slow_process_is_named_though_the_others_wait_for_it(tmp_path, launcher, engine, stage):
    ended = run(launcher, tmp_path / "run", "slow", engine, stage)
    assert ended.returncode == 0, ended.stderr[-3000:]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["slowest_process"] == 1
    if stage != "3":  # there the others wait in the forward pass, too, for its share of the weights
        assert last["seconds_busy_max"] - last["seconds_busy_median"] > 4 * SLOW_S, "of 4 steps of 2 micro-batches each"
    assert last["slowest_process_ratio"] > 1.3
    assert "process 1 takes" in ended.stderr


@pytest.mark.parametrize(
    ("launcher", "engine", "stage"),
    [(TWO_DDP, "ddp", "1"), pytest.param(TWO_DEEPSPEED, "deepspeed", "3", marks=pytest.mark.slow)],
)
def test_a_checkpoint_moves_nothing_between_the_processes(tmp_path, launcher, engine, stage):
    """The run agrees on being finite and on bad samples before it, which is a few numbers whatever the model."""
    ended = run(launcher, tmp_path / "run", "count", engine, stage)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for rank in range(2):
        moved = json.loads((tmp_path / "run" / f"moved-{rank:05d}.json").read_text())
        assert moved["writing"] == []
        assert sum(size_bytes for _, size_bytes in moved["saving"]) < 200
        assert [name for name, _ in moved["averaging"]] == ["all_reduce"], "the counter counts"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_left_alone():
    ended = start(
        sys.executable,
        *("benchmarks/drills/kills.py", "--kills", "2", "--fills", "0", "--slow-kills", "0"),
        timeout_s=850,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_verify_resume_proves_it_and_shows_the_evidence(tmp_path):
    shards, proof = tmp_path / "shards", tmp_path / "proof"
    words = ["write", "--source", "scenes", "--count", "100", "--size", "64", "--out", str(shards)]
    assert start(sys.executable, "data/main.py", *words).returncode == 0
    words = ["--recipe", "benchmarks/drills/resume.yaml", "--data.shards", str(shards), "--run.folder", str(proof)]
    words += ["--data.workers", "0", "--distributed.engine", "ddp", "--distributed.precision", "fp32"]
    ended = start(sys.executable, "pretrain/main.py", "verify-resume", *words, "--steps", "8", timeout_s=850)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "deterministic kernels: proved" in ended.stdout
    assert "moved to 1 x ddp" in ended.stdout
    again = start(sys.executable, "pretrain/main.py", "verify-resume", *words)
    assert again.returncode == 1
    assert "is not empty; choose another --run.folder" in again.stderr
