"""A Slurm that does not answer is not a job that has ended: it is asked again, and nobody is told anything else."""

import os

import pytest
from rich.console import Console

from engine.errors import SIGNALS
from launch import slurm_queue
from launch.attempt import job_end
from launch.commands import doctor
from launch.commands.monitor import cancel, check_not_queued, status
from launch.config import ClusterConfig
from launch.job_folder import Job, JobFolder
from launch.program_calls import Call

DOWN = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
RUNNING = 'echo "RUNNING|None|n0|2026-01-01T00:00:00"'
GONE = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Put commands in the place of Slurm's; each call is written down in `calls`."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def install(**scripts):
        for name, script in scripts.items():
            path = tmp_path / "bin" / name
            path.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{script}\n')
            path.chmod(0o755)

    install(squeue=DOWN, scontrol=DOWN, scancel=DOWN)
    return install


@pytest.fixture
def folder(tmp_path):
    folder = JobFolder(tmp_path / "runs" / "x")
    folder.make()
    call = Call(program="pretrain", arguments=(), folder=folder.run, recipe="", starter="torchrun", zero_stage=0)
    folder.write(Job(call=call, cluster=ClusterConfig(), nodes=1, cwd=str(tmp_path), ids=("7",)))
    return folder


def failing(times, *, then, at):
    """Write a script that fails so many times first."""
    return f'[ "$(cat {at} 2>/dev/null | wc -l)" -ge {times} ] || {{ echo >> {at}; {DOWN}; }}\n{then}'


def settled(folder, monkeypatch):
    """Settle an attempt that was warned; return the exit code."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(job_end, "PAUSE_S", 0)
    monkeypatch.setattr(job_end, "log_to_job", lambda: None)
    ignored = []
    monkeypatch.setattr(job_end.signal, "signal", lambda number, _: ignored.append(number))
    folder.note("start", step=0)
    folder.note("signal", name="SIGUSR2")
    with pytest.raises(SystemExit) as ended:
        job_end.settle(job_end.SettleOptions(1, (folder.run,)))
    assert set(ignored) == set(SIGNALS), "none of them keeps the end from being written down"
    return ended.value.code


def test_only_an_answer_says_that_a_job_is_not_in_the_queue(slurm):
    with pytest.raises(slurm_queue.SlurmError, match=r"Slurm does not answer.*Unable to contact slurm controller"):
        slurm_queue.find("7")
    slurm(squeue=GONE)
    assert slurm_queue.find("7") is None
    slurm(squeue="true")
    assert slurm_queue.find("7") is None
    slurm(squeue=RUNNING)
    assert slurm_queue.find("7").state == "RUNNING"


def test_a_command_that_hangs_is_no_answer(slurm, monkeypatch):
    slurm(squeue="exec sleep 60")
    monkeypatch.setattr(slurm_queue, "TIMEOUT_S", 0.2)
    with pytest.raises(slurm_queue.SlurmError, match=r"Slurm does not answer: `squeue .*` took longer than 0.2 s"):
        slurm_queue.find("7")


def test_a_job_goes_on_although_slurm_was_away_when_it_ended(slurm, folder, tmp_path, monkeypatch):
    slurm(squeue=failing(3, then=RUNNING, at=tmp_path / "a"), scontrol=failing(1, then="true", at=tmp_path / "b"))
    assert settled(folder, monkeypatch) == 0
    done = (tmp_path / "calls").read_text()
    assert done.count("squeue ") == 5
    assert done.count("scontrol requeue 7\n") == 2


def test_a_job_that_cannot_be_requeued_says_so_and_fails(slurm, folder, monkeypatch):
    assert settled(folder, monkeypatch) == 1
    event = folder.events()[-1]
    assert event["event"] == "not requeued"
    assert "Unable to contact slurm controller" in event["reason"]


def test_commands_say_that_slurm_does_not_answer(slurm, folder):
    with pytest.raises(slurm_queue.SlurmError, match="Slurm does not answer"):
        check_not_queued(folder)
    with pytest.raises(slurm_queue.SlurmError, match="Slurm does not answer"):
        cancel(folder, now=False)
    console = Console(width=400, record=True, quiet=False)
    console.print(status(folder)[0])
    assert "unknown: Slurm does not answer" in console.export_text()


def test_the_doctor_waits_for_a_slurm_that_does_not_answer(slurm, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "POLL_S", 0)
    slurm(squeue=failing(3, then=GONE, at=tmp_path / "a"))
    console = Console(width=400, record=True)
    doctor._wait(folder, console=console)
    assert console.export_text().count("Slurm does not answer") == 1


def test_status_shows_few_digits_clock_times_and_an_attempt_that_was_killed(slurm, folder):
    slurm(squeue=GONE)
    folder.note("start", step=0)
    folder.note("saved", step=3, seconds=1.23456789, saved=1.76e9)
    console = Console(width=400, record=True)
    console.print(status(folder)[0])
    shown = console.export_text()
    assert "saved: step 3, seconds 1.2, saved 2025-" in shown
    assert "killed" in shown
    folder.note("end", step=3, outcome="failed", code=1)
    console.print(status(folder)[0])
    assert "killed" not in console.export_text()
