"""The commands that look after submitted jobs: status, logs and cancel."""

import contextlib
import os
import signal
import sys
import time
from collections import deque
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from engine.commands import ExistingRun
from engine.errors import UserError
from engine.run.status import status as run_status
from launch import slurm_queue
from launch.job_folder import Job, JobFolder

LAST_EVENTS = 12
FOLLOW_S = 0.5


@dataclass(frozen=True)
class LogOptions(ExistingRun):
    """Show what a job prints."""

    _: KW_ONLY
    node: int = 0
    """The node that prints it."""
    lines: int = 40
    """How many lines from the end."""
    follow: bool = False
    """Go on until interrupted."""


@dataclass(frozen=True)
class CancelOptions(ExistingRun):
    """End a job; `resume` goes on."""

    _: KW_ONLY
    now: bool = False
    """Without saving: go on from the last checkpoint."""


def show_status(options: ExistingRun) -> None:
    """Print where a run stands."""
    console = Console()
    for table in status(JobFolder(options.folder)):
        console.print(table)


def show_logs(options: LogOptions) -> None:
    """Print the end of a node's log, and what is added to it.

    Raises:
        UserError: there is none.
    """
    path = log_file(JobFolder(options.folder), node=options.node)
    with path.open() as file:
        sys.stdout.writelines(deque(file, options.lines))
        with contextlib.suppress(KeyboardInterrupt):
            while options.follow:
                sys.stdout.flush()
                text = file.read()
                sys.stdout.write(text)
                if not text:
                    time.sleep(FOLLOW_S)


def cancel_job(options: CancelOptions) -> None:
    """End the newest job of a run, and say what happens to it."""
    Console(soft_wrap=True).print(cancel(JobFolder(options.folder), now=options.now))


def status(folder: JobFolder) -> list[Table]:
    """Show in tables how the job stands in the queue, what happened to it, and how far the run is."""
    job = folder.read()
    table = Table(title=f"jobs of {folder.run}", show_header=False)
    table.add_row("job", job.ids[-1] if job.ids else "not submitted")
    state = _state_or_unknown(job)
    table.add_row("state", state)
    for event in folder.events()[-LAST_EVENTS:]:
        at = datetime.fromtimestamp(event.pop("time")).astimezone().isoformat(" ", "seconds")
        name = event.pop("event")
        table.add_row(
            at, f"{name}: " + ", ".join(_particular(key, value) for key, value in event.items() if value is not None)
        )
    if state == "ended" and folder.is_unsettled():
        table.add_row(
            "killed", "its script did not end: `scancel --signal=KILL`, or its node is lost; `resume` goes on"
        )
    return [table, *([run_status(folder.run)] if (folder.run / "config.yaml").exists() else [])]


def _particular(key: str, value: object) -> str:
    """Write one of an event's values; times become clock times, seconds have one decimal."""
    if isinstance(value, float):
        text = datetime.fromtimestamp(value).astimezone().isoformat(" ", "seconds") if value > 1e9 else f"{value:.1f}"
        return f"{key} {text}"
    return f"{key} {value}"


def queue_state(job: Job) -> str:
    """Say how the newest job stands.

    Raises:
        SlurmError: Slurm does not answer, which says nothing of the job.
    """
    if not job.ids:
        return "not submitted"
    if job.cluster.scheduler == "local":
        return "running here" if _process(job) else "ended"
    queued = slurm_queue.find(job.ids[-1])
    if queued is None:
        return "ended"
    if queued.state in slurm_queue.WAITING:
        return f"{queued.state} ({queued.reason}), expected to start {queued.starts}"
    return f"{queued.state} on {queued.nodes} since {queued.starts}"


def _state_or_unknown(job: Job) -> str:
    try:
        return queue_state(job)
    except slurm_queue.SlurmError as error:
        return f"unknown: {error}"


def check_not_queued(folder: JobFolder) -> None:
    """Refuse a second job for the same run.

    Raises:
        UserError: the last one still waits or runs, or Slurm does not say whether it does.
    """
    if not folder.exists():
        return
    job = folder.read()
    if job.ids and (state := queue_state(job)) != "ended":
        raise UserError(
            f"job {job.ids[-1]} of {folder.run} is still {state}; wait, or end it with "
            f"`python launch/main.py cancel {folder.run}`"
        )


def log_file(folder: JobFolder, *, node: int) -> Path:
    """Find the log of a node of the newest job.

    Raises:
        UserError: there is none.
    """
    job = folder.read()
    number = job.ids[-1] if job.ids else "?"
    for base in (folder, JobFolder(folder.run.parent)):  # those of a sweep lie above
        path = base.jobs / f"{number}_{node}_log.out"
        if path.is_file():
            return path
    raise UserError(f"{folder.jobs / f'{number}_{node}_log.out'} is not there; the job is {_state_or_unknown(job)}")


def cancel(folder: JobFolder, *, now: bool) -> str:
    """End the newest job, saved after its step or at once; say what happens to it."""
    job = folder.read()
    if (state := queue_state(job)) in ("ended", "not submitted"):
        return f"nothing to cancel: the job of {folder.run} is {state}"
    folder.cancelled.touch()
    number = job.ids[-1]
    if job.cluster.scheduler == "local":
        process = _process(job)
        if process is not None:
            _end_here(process, now=now)
    elif now or (queued := slurm_queue.find(number)) is None or queued.state != "RUNNING":
        slurm_queue.cancel(number)
        return f"job {number} is cancelled; it goes on from the last checkpoint with `resume`"
    else:
        slurm_queue.signal_job(number, "USR2")
    return f"job {number} ends" + ("" if now else " after its step, saved") + "; `resume` goes on"


def _end_here(process: psutil.Process, *, now: bool) -> None:
    if not now:
        process.send_signal(signal.SIGTERM)
        return
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def _process(job: Job) -> psutil.Process | None:
    """Find submitit's process of a job on this machine, if it still runs."""
    try:
        process = psutil.Process(int(job.ids[-1]))
        is_ours = "submitit.local._local" in process.cmdline() and process.uids().real == os.getuid()
        return process if is_ours and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None
