"""No job is lost and none is started again for nothing: interrupted submissions, killed jobs, refusals, under Slurm."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.drills.slurm_drills import Drill
from launch.commands.monitor import status
from launch.job_folder import JobFolder

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
MORE = ("--nodes", "1", "--distributed.engine", "single", "--skip-check")


@pytest.fixture(scope="module")
def drill(slurm, tmp_path_factory):
    return Drill(slurm, tmp_path_factory.mktemp("runs"), steps=200)


@pytest.fixture
def submit(drill, slurm, tmp_path):
    """Submit a run by an sbatch that first, or then, does something to the command that called it."""

    def start(name, *more, before="", after=""):
        sbatch = tmp_path / "sbatch"
        real = shutil.which("sbatch", path=slurm.environment["PATH"])
        sbatch.write_text(f'#!/bin/sh\n{before}\n{real} "$@"\n{after}\n')
        sbatch.chmod(0o755)
        command = [sys.executable, "launch/main.py", *drill.arguments(name), *MORE, *more]
        environment = {**slurm.environment, "PATH": f"{tmp_path}:{slurm.environment['PATH']}"}
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in the background
        )
        drill.folder = JobFolder(Path(drill.arguments(name)[drill.arguments(name).index("--run.folder") + 1]))
        ids = drill.folder.read().ids
        drill.job = ids[-1] if ids else slurm.run("squeue", "-h", "-o", "%i").split()[-1]
        return done

    return start


def queue_is_empty(slurm):
    return not slurm.run("squeue", "-h")


def test_a_job_whose_command_was_killed_ends_without_a_word_and_is_not_counted(drill, submit, slurm):
    submit("orphan", after="kill -KILL $PPID")
    assert drill.folder.read().ids == ()
    drill.until(lambda: queue_is_empty(slurm), what="end of a job that nobody knows")
    assert [event["event"] for event in drill.folder.events()] == ["submit"]
    again = submit("orphan", "--optimizer.steps", "2")
    assert again.returncode == 0, again.stderr
    drill.steps = 2
    drill.until_done()
    drill.steps = 200


def test_a_submission_that_is_interrupted_is_cancelled(drill, submit, slurm):
    done = submit("interrupted", before="kill -INT $PPID; kill -INT $$; exec \\")
    assert done.returncode in (130, -2), done.stderr
    assert len(drill.folder.read().ids) == 1
    assert "was submitted, and is cancelled" in done.stderr
    drill.until(lambda: queue_is_empty(slurm), what="end of the cancelled job")


def test_a_killed_job_is_said_to_be_killed(drill, submit, slurm, monkeypatch):
    submit("killed")
    drill.until(lambda: drill.step() >= 1)
    slurm.run("scancel", "--batch", "--signal=KILL", drill.job)  # its script
    drill.until(lambda: queue_is_empty(slurm), what="end of the killed job")
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setitem(os.environ, name, slurm.environment[name])
    console = Console(width=300, record=True)
    console.print(status(drill.folder)[0])
    assert "its script did not end" in console.export_text()
    assert not drill.events("end")


def test_a_program_that_refuses_is_not_started_again(drill, submit):
    submit("refused", "--backbone.img-size", "100", "64")
    drill.until(lambda: bool(drill.events("decision")), what="end of the refused job")
    (decision,) = drill.events("decision")
    assert not decision["go_on"]
    assert "no multiple of the mask unit" in decision["reason"]
    assert drill.events("end")[-1]["code"] == os.EX_CONFIG
