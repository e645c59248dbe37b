"""The launcher here, and the other ways to start processes: all train alike, and a killed process changes nothing."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from launch.job_folder import JobFolder
from pretrain.verify_resume.launched_run import final_tensors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
STEPS = 30


def run(*command, timeout_s=500, **environment):
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "DS_", "SLURM_"))
    }
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        timeout=timeout_s,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    shards = tmp_path_factory.mktemp("scenes") / "shards"
    run("data/main.py", "write", "--source", "scenes", "--count", "120", "--size", "64", "--out", str(shards))
    arguments = ["--recipe", "benchmarks/drills/resume.yaml", "--data.shards", str(shards), "--data.workers", "1"]
    arguments += ["--optimizer.steps", str(STEPS), "--run.save-every-steps", "5", "--distributed.precision", "fp32"]
    return [*arguments, "--distributed.engine", "deepspeed"]


@pytest.fixture(scope="module")
def reference(options, tmp_path_factory):
    """Two processes that torchrun started."""
    folder = tmp_path_factory.mktemp("torchrun") / "run"
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port())
    run(*torchrun, "pretrain/main.py", *options, "--run.folder", str(folder))
    return final_tensors(folder, step=STEPS)


def check_same(folder, reference):
    tensors = final_tensors(folder, step=STEPS)
    assert tensors.keys() == reference.keys()
    assert [name for name, values in reference.items() if not torch.equal(tensors[name], values)] == []


def until(condition, *, timeout_s=500):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ranks(job_id):
    processes = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(int(job_id)).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "RANK" in process.environ() and "pretrain/main.py" in " ".join(process.cmdline()):
                    processes.append(process)
    return processes


def reports(folder):
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def ended(folder):
    events = folder.events()
    return bool(events) and events[-1]["event"] == "decision" and not events[-1]["go_on"]


def test_deepspeeds_own_launcher_trains_like_torchrun(options, reference, tmp_path):
    start = ("--num_gpus", "2", "--no_local_rank", "--master_port", port())
    cpu = {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2"}
    run(
        "-m",
        "deepspeed.launcher.runner",
        *start,
        "pretrain/main.py",
        *options,
        "--run.folder",
        str(tmp_path / "x"),
        **cpu,
    )
    check_same(tmp_path / "x", reference)


def test_a_killed_process_is_restarted_and_the_weights_are_those_of_the_undisturbed_run(options, reference, tmp_path):
    folder = JobFolder(tmp_path / "x")
    arguments = [*options, "--run.folder", str(folder.run), "--cluster", "local", "--cluster.processes-per-node", "2"]
    run("launch/main.py", "pretrain", *arguments, "--cluster.restart.backoff-s", "0")
    until(lambda: folder.newest_step() >= 5)
    ranks(folder.read().ids[-1])[-1].kill()
    until(lambda: ended(folder))
    events = folder.events()
    assert [event["outcome"] for event in events if event["event"] == "end"] == ["failed", "finished"]
    assert [event["step"] >= 5 for event in events if event["event"] == "start"] == [False, True]
    check_same(folder.run, reference)


def test_a_cancelled_run_is_saved_and_goes_on_with_another_number_of_processes(options, tmp_path):
    folder = JobFolder(tmp_path / "x")
    arguments = [*options, "--run.folder", str(folder.run), "--distributed.engine", "single"]
    run("launch/main.py", "pretrain", *arguments, "--cluster", "local")
    until(lambda: reports(folder.run) >= 2)
    assert "running here" in run("launch/main.py", "status", str(folder.run))
    assert "after its step, saved" in run("launch/main.py", "cancel", str(folder.run))
    until(lambda: ended(folder))
    saved = folder.newest_step()
    assert 0 < saved < STEPS
    assert saved == reports(folder.run)
    until(lambda: "ended" in run("launch/main.py", "status", str(folder.run)))
    more = ("--distributed.engine", "ddp", "--cluster", "local", "--cluster.processes-per-node", "2")
    run("launch/main.py", "resume", str(folder.run), *more)
    until(lambda: ended(folder))
    assert folder.events()[-2]["outcome"] == "finished"
    assert folder.newest_step() == STEPS
    assert f"step {STEPS}/{STEPS}" in run("launch/main.py", "logs", str(folder.run))


def test_the_doctor_examines_this_machine(options, tmp_path):
    arguments = [word for word in options if word not in ("--distributed.engine", "deepspeed")]
    folder = ("--run.folder", str(tmp_path / "x"), "--cluster", "local", "--cluster.processes-per-node", "2")
    shown = run("launch/main.py", "doctor", *arguments, *folder, COLUMNS="200")
    for check in ("versions", "all-reduce", "run folder", "disk space", "loader", "warning signal"):
        assert f"│ {check}" in shown
    assert "reached 2 of 2 processes" in shown
    assert "failure" not in shown
