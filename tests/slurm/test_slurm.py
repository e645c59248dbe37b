"""The launcher under a real Slurm of two nodes: requeued, preempted, killed, on fewer nodes, and still the same weights."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.slurm_drills import Drill, measure
from launch.job_folder import JobFolder
from tests.slurm.cluster import missing, running

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def test_a_disturbed_run_ends_with_the_undisturbed_weights(slurm, tmp_path):
    """Put back into the queue, preempted, and all processes of a node killed, in one run of two nodes under DeepSpeed."""
    figures, goals = measure(slurm, tmp_path, drills=("requeue", "preempt", "node"))
    assert [goal.name for goal in goals if not goal.met] == []
    assert figures["tensors"] > 100
    assert figures["drills"]["preempt"]["signal_to_saved_s"] is not None


def test_what_a_dry_run_shows_is_what_is_submitted_and_a_sweep_is_an_array(slurm, tmp_path):
    drill = Drill(slurm, tmp_path, steps=2)
    recipe = ROOT / "pretrain" / "recipes" / "sweeps" / "mask_ratio_060.yaml"
    words = [
        *drill.words("swept"),
        "--nodes",
        "1",
        "--sweep",
        str(recipe),
        str(recipe.with_name("mask_ratio_080.yaml")),
    ]

    def launch(*more):
        command = [sys.executable, "launch/main.py", *words, "--distributed.engine", "single", *more]
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
