"""The engine under the real launchers: every mode trains alike, and goes on from what any other mode saved.

All modes run the same six steps of the same model (``distributed_program.py``: two param groups, accumulation,
clipping, BatchNorm, a frozen parameter, an average of the weights). Bounds: FP32_BOUND for another order of fp32 sums,
FP64_BOUND for another order of fp64 sums; the same layout is bit-identical.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PROGRAM = "tests/integration/distributed_program.py"
LAUNCH = ("-m", "accelerate.commands.accelerate_cli", "launch")
TWO_PROCESSES = (*LAUNCH, "--config_file", "pretrain/cpu_two_processes.yaml")
FP32_BOUND = 1e-6  # measured: 1.2e-7 after six steps, weights of size 1
FP64_BOUND = 1e-14  # measured: 2.2e-16


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run(*command: str, timeout_s: int = 120) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "DS_"))}
    environment = {**kept, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, timeout=timeout_s, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def launch(*jobs: str, processes: int = 2, timeout_s: int = 120) -> str:
    start = (*TWO_PROCESSES, "--num_processes", str(processes), "--main_process_port", free_port())
    return run(*start, PROGRAM, *jobs, timeout_s=timeout_s)


def difference(one: Path, other: Path) -> float:
    """The largest difference of any weight, averaged weight or buffer, or relative difference of a gradient norm."""
    worst = 0.0
    for file in ("weights.pt", "averaged.pt"):
        ours, theirs = (torch.load(folder / file, weights_only=True) for folder in (one, other))
        assert list(ours) == list(theirs)
        worst = max(worst, *(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours))
    norms = [json.loads((folder / "norms.json").read_text())[-2:] for folder in (one, other)]
    return max(worst, *(abs(a - b) / b for a, b in zip(*norms, strict=True)))


def jobs_of(folder: Path, *modes: str) -> list[str]:
    """Return the jobs that run each mode uninterrupted, and interrupted after three steps."""
    jobs: list[str] = []
    for mode in modes:
        path = folder / mode
        jobs += [
            f"{mode}:0-6:to={path}",
            f"{mode}:0-3:to={path}-half",
            f"{mode}:3-6:from={path}-half:to={path}-resumed",
        ]
    return jobs


@pytest.mark.timeout(150)
def test_two_processes_under_zero1_equal_one_and_resume_bit_for_bit(tmp_path):
    run(PROGRAM, f"single-fp32:0-6:to={tmp_path}/single")
    output = launch(*jobs_of(tmp_path, "zero1-fp32"))
    assert difference(tmp_path / "zero1-fp32", tmp_path / "single") < FP32_BOUND
    assert difference(tmp_path / "zero1-fp32", tmp_path / "zero1-fp32-resumed") == 0
    assert "Warning" not in output


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_mode_trains_alike_and_resumes_from_every_other(tmp_path):
    sharded = ["zero0-fp32", "zero1-fp32", "zero2-fp32", "zero3-fp32", "ddp-fp32"]
    alone = ["single-fp32", "single-fp64"]
    run(PROGRAM, *jobs_of(tmp_path, *alone))
    launch(*jobs_of(tmp_path, *sharded, "ddp-fp64"), timeout_s=200)
    across = [(a, b) for a in sharded for b in [*sharded, "single-fp32"] if a != b] + [("ddp-fp64", "single-fp64")]
    across += [("single-fp32", b) for b in sharded] + [("single-fp64", "ddp-fp64")]
    jobs = {(a, b): f"{b}:3-6:from={tmp_path}/{a}-half:to={tmp_path}/{a}-to-{b}" for a, b in across}
    launch(*(job for (_, b), job in jobs.items() if b not in alone), timeout_s=200)
    run(PROGRAM, *(job for (_, b), job in jobs.items() if b in alone))
    for mode in sharded + alone + ["ddp-fp64"]:
        bound = FP64_BOUND if mode.endswith("fp64") else FP32_BOUND
        assert difference(tmp_path / mode, tmp_path / f"single-{mode[-4:]}") < bound, mode
        assert difference(tmp_path / mode, tmp_path / f"{mode}-resumed") == 0, mode
    for a, b in across:
        bound = FP64_BOUND if b.endswith("fp64") else FP32_BOUND
        assert difference(tmp_path / f"{a}-to-{b}", tmp_path / b) < bound, (a, b)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    run(PROGRAM, f"single-fp32:0-6:to={tmp_path}/single")
    launch(f"zero2-fp32:0-2:to={tmp_path}/two")
    run(PROGRAM, f"single-fp32:2-4:from={tmp_path}/two:to={tmp_path}/one")
    modes = ["zero1-fp32", "zero3-fp32", "ddp-fp32"]
    launch(*(f"{mode}:4-6:from={tmp_path}/one:to={tmp_path}/{mode}" for mode in modes), processes=4, timeout_s=200)
    for mode in modes:
        assert difference(tmp_path / mode, tmp_path / "single") < FP32_BOUND, mode


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_bf16_accumulates_and_reduces_in_fp32_in_every_mode(tmp_path):
    modes = ["ddp-bf16", "zero0-bf16", "zero1-bf16", "zero2-bf16", "zero3-bf16"]
    run(PROGRAM, f"single-bf16:0-6:to={tmp_path}/single")
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port())
    run(*torchrun, PROGRAM, *(f"{mode}:0-6:to={tmp_path}/{mode}" for mode in modes), timeout_s=200)
    for mode in modes:
        assert difference(tmp_path / mode, tmp_path / "single") < FP32_BOUND, mode


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_process_runs_every_engine_without_a_launcher(tmp_path):
    modes = ["single-fp32", "ddp-fp32", "zero0-fp32", "zero1-fp32", "zero2-fp32"]
    run(PROGRAM, *(f"{mode}:0-6:to={tmp_path}/{mode}" for mode in modes))
    for mode in modes:
        assert difference(tmp_path / mode, tmp_path / "single-fp32") < FP32_BOUND, mode


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_bare_accelerate_launch_is_one_process_that_says_how_to_get_more(tmp_path):
    output = run(*LAUNCH, PROGRAM, f"auto-fp32:0-2:to={tmp_path}/bare")
    assert "without DeepSpeed" in output
    assert [path.name for path in sorted((tmp_path / "bare").glob("rank-*"))] == ["rank-0.pt"]
