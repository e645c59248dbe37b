"""Slurm's own commands: squeue, scontrol, scancel."""

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import UserError

TIMEOUT_S = 60


class SlurmError(UserError):
    """A command of Slurm's failed or gave no answer; nothing is known of the job."""


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A job that waits, runs or ends."""

    state: str
    """PENDING, RUNNING, COMPLETING, ..."""
    reason: str
    """Why it waits, or `None`."""
    nodes: str
    """Where it runs."""
    starts: str
    """When it is expected to start, or has."""


def find(job_id: str) -> Queued | None:
    """Look up a job's place in the queue; None where it is not in it any more.

    Raises:
        SlurmError: Slurm does not say; a controller that restarts does not for a while.
    """
    command = ("squeue", "--noheader", "--jobs", job_id, "--states", "all", "--format", "%T|%r|%N|%S")
    done = _run(*command, check=False)
    if done.returncode and UNKNOWN not in done.stderr.lower():
        raise _failure(command, done)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not lines:
        return None
    state, reason, nodes, starts = lines[0].strip().split("|")
    queued = Queued(state=state, reason=reason, nodes=nodes, starts=starts)
    return queued if queued.state in WAITING or queued.state in ACTIVE else None


UNKNOWN = "invalid job id"
"""What squeue says, in lower case, of a job that ended long ago."""
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD", "REQUEUE_FED")
ACTIVE = ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")


def requeue(job_id: str, *, wait_s: int) -> None:
    """Put a running job, which this ends, back into the queue, to start ``wait_s`` from now at the earliest."""
    _run("scontrol", "requeue", job_id)
    # without this it waits for its credentials to expire, about two minutes; in the second of the requeue itself
    # the update is refused
    with contextlib.suppress(SlurmError):
        _run("scontrol", "update", f"JobId={job_id}", f"StartTime=now+{max(wait_s, 3)}")


def signal_job(job_id: str, name: str) -> None:
    """Send a signal to all processes of a job's steps."""
    _run("scancel", "--signal", name, job_id)


def cancel(job_id: str) -> None:
    """Take a job out of the queue; what runs is ended."""
    _run("scancel", job_id)


def check_installed() -> None:
    """Refuse to go on where Slurm's commands are not.

    Raises:
        UserError: sbatch is not found.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not found: submit on a login node of the cluster, or take --cluster local to run on this machine"
        )


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"Slurm does not answer: `{' '.join(command)}` took longer than {TIMEOUT_S} s") from None
    except OSError as error:
        raise SlurmError(f"Slurm does not answer: `{' '.join(command)}` does not start here: {error}") from None
    if check and done.returncode:
        raise _failure(command, done)
    return done


def _failure(command: Sequence[str], done: subprocess.CompletedProcess[str]) -> SlurmError:
    reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    return SlurmError(f"Slurm does not answer, or refuses: `{' '.join(command)}` failed: {reason}")
