"""Jobs that an earlier version submitted: they start, end and go on after the checkout was updated."""

import json
import pickle
from pathlib import Path

import pytest

from launch.job_folder import JobFolder
from launch.node import NodeJob

PICKLED = (
    b"ccopy_reg\n_reconstructor\np0\n(claunch.node\nNodeJob\np1\nc__builtin__\nobject\np2\nNtp3\nRp4\n"
    b"(dp5\nVruns\np6\n(cpathlib\nPosixPath\np7\n(g6\nVx\np8\ntp9\nRp10\ntp11\nsb."
)
"""``NodeJob(Path("runs/x"))`` of version 0.1.0, as its job was waiting in the queue."""
CLUSTER = """
{"scheduler": "slurm", "partition": null, "account": null, "qos": null, "constraint": null, "exclude": null,
 "gpus_per_node": 0, "processes_per_node": null, "cpus_per_node": null, "memory_gib": null, "time_limit_min": 43200,
 "warning_s": 60, "step_wait_s": 300, "exclusive": false, "container": null, "setup": [],
 "environment": ["OMP_NUM_THREADS=1"], "master_port": 20000,
 "restart": {"limit": 20, "limit_without_progress": 2, "limit_stopped_without_progress": 10, "backoff_s": 5,
             "longest_backoff_s": 3600}}
"""


@pytest.fixture
def run(tmp_path, launch, options):
    """A run folder with the job.json of version 0.1.0."""
    recipe = (
        launch("pretrain", *options, "--dry-run").stdout.split("recipe.yaml:\n", 1)[1].split("\n# on each of", 1)[0]
    )
    folder = JobFolder(tmp_path / "runs" / "x")
    folder.make()
    folder.recipe.write_text(recipe)
    call = {
        "program": "pretrain",
        "words": ["--recipe", "RECIPE"],
        "folder": str(folder.run),
        "recipe": recipe,
        "starter": "python",
        "zero_stage": 1,
    }
    tree = {"call": call, "cluster": json.loads(CLUSTER), "nodes": 1, "cwd": str(tmp_path), "ids": []}
    (folder.path / "job.json").write_text(json.dumps(tree))
    return folder.run


def test_a_job_in_the_queue_starts():
    job = pickle.loads(PICKLED)
    assert isinstance(job, NodeJob)
    assert job.runs == (Path("runs/x"),)


def test_a_job_is_read(run):
    job = JobFolder(run).read()
    assert job.call.arguments == ("--recipe", "RECIPE")
    assert job.call.extensions == ()
    assert job.cluster.environment == ("OMP_NUM_THREADS=1",)


def test_a_run_goes_on_and_says_how_it_stands(launch, run):
    done = launch("resume", str(run), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"pretrain/main.py --recipe {run / 'launch' / 'recipe.yaml'}" in done.stdout
    assert "not submitted" in launch("status", str(run)).stdout
    assert "_0_log.out is not there; the job is not submitted" in launch("logs", str(run)).stderr
    assert "nothing to cancel" in launch("cancel", str(run), "--now").stdout


def test_the_last_line_of_a_waiting_jobs_script_settles_it(launch, run):
    JobFolder(run).note("start", step=0)
    assert launch("settle", "0", str(run)).returncode == 0
    end, decision = JobFolder(run).events()[-2:]
    assert (end["event"], end["outcome"], end["code"]) == ("end", "finished", 0)
    assert not decision["go_on"]
