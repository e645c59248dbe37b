"""The launcher under a real Slurm of two nodes: requeued, preempted, killed, on fewer nodes, with the same weights."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.drills.slurm_drills import Drill, measure
from launch.doctor.findings import read_findings
from launch.job_folder import JobFolder

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


def test_a_disturbed_run_ends_with_the_undisturbed_weights(slurm, tmp_path):
    """Requeued, preempted, and all processes of a node killed, in one run of two nodes under DeepSpeed."""
    figures, goals = measure(slurm, tmp_path, drills=("requeue", "preempt", "node"))
    assert [goal.name for goal in goals if not goal.met] == []
    assert figures["tensors"] > 100
    assert figures["drills"]["preempt"]["signal_to_saved_s"] is not None


def test_what_a_dry_run_shows_is_what_is_submitted_and_a_sweep_is_an_array(slurm, tmp_path):
    drill = Drill(slurm, tmp_path, steps=2)
    recipe = ROOT / "pretrain" / "recipes" / "sweeps" / "mask_ratio_060.yaml"
    arguments = [
        *drill.arguments("swept"),
        "--nodes",
        "1",
        "--sweep",
        str(recipe),
        str(recipe.with_name("mask_ratio_080.yaml")),
    ]

    def launch(*more):
        command = [sys.executable, "launch/main.py", *arguments, "--distributed.engine", "single", *more]
        return subprocess.run(
            command, cwd=ROOT, env=slurm.environment, capture_output=True, text=True, check=True
        ).stdout

    shown = launch("--dry-run")
    launch()
    base = JobFolder(tmp_path / "swept")
    (script,) = base.jobs.glob("*_submission.sh")
    assert script.read_text().strip() in shown
    for name in ("mask_ratio_060", "mask_ratio_080"):
        drill.folder = JobFolder(tmp_path / "swept" / name)
        drill.job = drill.folder.read().ids[-1]
        drill.until_done()
    assert "mask_ratio: 0.8" in (tmp_path / "swept" / "mask_ratio_080" / "config.yaml").read_text()


def test_a_cancelled_run_is_saved_and_goes_on_with_another_number_of_nodes(slurm, tmp_path):
    drill = Drill(slurm, tmp_path, steps=40)
    drill.submit("elastic", "--distributed.engine", "ddp")
    drill.until(lambda: drill.step() >= 2)
    subprocess.run(
        [sys.executable, "launch/main.py", "cancel", str(drill.folder.run)], cwd=ROOT, env=slurm.environment, check=True
    )
    drill.until(lambda: bool(drill.events("decision")), what="end")
    assert drill.events("end")[-1]["outcome"] == "ended by the user"
    assert drill.folder.newest_step() == drill.step() < drill.steps
    drill.until(lambda: not slurm.run("squeue", "-h"), what="empty queue")
    refused = subprocess.run(
        [sys.executable, "launch/main.py", "resume", str(drill.folder.run), "--nodes", "3"],
        cwd=ROOT,
        env=slurm.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "process counts that work: 1, 2, 4" in refused.stderr
    drill.resume("--nodes", "1")
    drill.until_done()
    assert drill.folder.newest_step() == drill.steps


def test_the_doctor_examines_both_nodes(slurm, tmp_path):
    drill = Drill(slurm, tmp_path, steps=2)
    arguments = ["doctor", *drill.arguments("examined")[1:], "--nodes", "2"]
    done = subprocess.run(
        [sys.executable, "launch/main.py", *arguments],
        cwd=ROOT,
        env={**slurm.environment, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    findings = {finding.check: finding for finding in read_findings(tmp_path / "doctor")}
    assert "SIGUSR2 by Slurm reached 2 of 2 processes" in findings["warning signal"].said, done.stdout + done.stderr
    assert "the same for all 2 processes" in findings["run folder"].said
    assert [name for name, finding in findings.items() if finding.level == "failure"] == []
    assert done.returncode == 0
    assert "launch: " not in done.stdout
    assert slurm.run("squeue", "-h") == ""


def test_the_proof_of_exact_resuming_runs_as_a_job(slurm, tmp_path):
    drill = Drill(slurm, tmp_path, steps=2)
    arguments = [*drill.arguments("proof")[1:], "--distributed.engine", "ddp", "--cluster.processes-per-node", "2"]
    subprocess.run(
        [sys.executable, "launch/main.py", "verify-resume", *arguments, "--steps", "8"],
        cwd=ROOT,
        env=slurm.environment,
        check=True,
    )
    drill.folder = JobFolder(tmp_path / "proof.job")
    drill.job = drill.folder.read().ids[-1]
    drill.until(lambda: bool(drill.events("decision")), what="end")
    assert drill.events("end")[-1]["outcome"] == "finished"
    (log,) = drill.folder.jobs.glob("*_log.out")
    assert "deterministic kernels: proved" in log.read_text()
