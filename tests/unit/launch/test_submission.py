"""What Slurm refuses leaves nothing behind that a later command takes for submitted."""

import dataclasses
import os
import signal

import pytest

from engine.errors import UserError
from launch.config import ClusterConfig
from launch.job_folder import Job, JobFolder
from launch.program_calls import Call
from launch.submission import submit


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job, and an sbatch that refuses it."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text('#!/bin/sh\necho "sbatch: error: invalid partition specified: gpus" >&2\nexit 1\n')
    sbatch.chmod(0o755)
    srun = sbatch.with_name("srun")  # by it submitit knows Slurm
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    call = Call(
        program="pretrain", arguments=(), folder=tmp_path / "x", recipe="a: 1\n", starter="torchrun", zero_stage=0
    )
    return Job(call=call, cluster=ClusterConfig(partition="gpus"), nodes=1, cwd=str(tmp_path))


def refused(job):
    with pytest.raises(
        ValueError, match="Slurm does not take the job: sbatch: error: invalid partition specified: gpus"
    ):
        submit([job], base=job.call.folder, name="x", parallel=1)


def test_a_refusal_is_told_in_slurms_words_and_a_new_run_has_no_job(job):
    refused(job)
    assert not JobFolder(job.call.folder).exists()


def test_after_a_refusal_the_run_is_as_it_was_submitted_and_cancelled_before(job):
    folder = JobFolder(job.call.folder)
    folder.make()
    before = dataclasses.replace(job, cluster=ClusterConfig(), ids=("7",))
    folder.write(before)
    folder.cancelled.touch()
    refused(dataclasses.replace(job, call=dataclasses.replace(job.call, recipe="a: 2\n")))
    assert folder.read() == before
    assert folder.recipe.read_text() == "a: 1\n"
    assert folder.cancelled.exists()
    assert folder.events()[-1]["event"] == "refused"


def test_slurms_words_come_once(job, capfd):
    refused(job)
    assert "invalid partition" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_signal_while_slurm_takes_the_job_waits_and_then_cancels_it(job, tmp_path, monkeypatch, name):
    (tmp_path / "bin" / "sbatch").write_text(
        f"#!/bin/sh\nkill -{name} $PPID\nkill -{name} $$\necho Submitted batch job 42\n"
    )
    (tmp_path / "bin" / "scancel").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/cancelled\n")
    (tmp_path / "bin" / "scancel").chmod(0o755)
    came = []
    before = signal.signal(getattr(signal, f"SIG{name}"), lambda *_: came.append(1))
    try:
        submit([job], base=job.call.folder, name="x", parallel=1)
    finally:
        signal.signal(getattr(signal, f"SIG{name}"), before)
    assert came
    assert JobFolder(job.call.folder).read().ids == ("42",)
    assert (tmp_path / "cancelled").read_text() == "42\n"


def test_one_command_submits_a_run_at_a_time(job):
    folder = JobFolder(job.call.folder)
    second = JobFolder(job.call.folder).submitting()
    with folder.submitting(), pytest.raises(UserError, match=r"another command submits .*x right now"), second:
        pass
    assert folder.path.exists()


def test_a_run_folder_that_was_made_for_a_refused_job_is_put_away(job):
    folder = JobFolder(job.call.folder)
    with pytest.raises(UserError, match="Slurm does not take"), folder.submitting():
        submit([job], base=folder.run, name="x", parallel=1)
    assert not folder.run.exists()
