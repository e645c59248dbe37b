"""Once a job's processes have ended: judge how, write it down, and put the job back into the queue if it goes on."""

import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from engine.errors import SIGNALS
from launch import slurm_queue
from launch.attempt.restart import Decision, Outcome, decide
from launch.job_folder import KNOWN_WAIT_S, Job, JobFolder

logger = logging.getLogger(__name__)

BY_THE_USER = ("the STOP file", "SIGINT")
FAILED = "failed by itself"
"""Event of a node whose processes ended with an error before any signal came."""
USER_MUST_ACT = "the user must act"
"""Event of a node whose program refused to go on, with its reason."""
NUM_TRIES = 20
PAUSE_S = 30
"""A controller of Slurm's that restarts or fails over is away for minutes."""


def end_attempt(folder: JobFolder, job: Job, *, exit_code: int) -> Decision:
    """Write down how an attempt ended and what follows."""
    outcome = outcome_of(folder, exit_code=exit_code)
    stopped = folder.stopped() or {}
    refusal = _refusal(folder)
    folder.note("end", outcome=outcome, code=exit_code, step=folder.newest_step(), saved=stopped.get("saved"))
    decision = decide(folder.events(), outcome, limits=job.cluster.restart, refusal=refusal)
    folder.note("decision", go_on=decision.go_on, wait_s=decision.wait_s, reason=decision.reason)
    logger.info("%s: %s", outcome, decision.reason)
    return decision


def outcome_of(folder: JobFolder, *, exit_code: int) -> Outcome:
    """Judge how the last attempt ended.

    Exit code 0 is not enough: a run that was stopped ends with it, too, and says so in its folder. A launcher may end
    with another one although the run was saved, when the scheduler's signals reached it first.
    """
    has_started = folder.is_unsettled()  # srun may fail before
    stopped = folder.stopped() if has_started else None  # else the file is from an attempt before
    if folder.cancelled.exists() or (stopped is not None and stopped["reason"] in BY_THE_USER):
        return "ended by the user"
    if stopped is not None:
        return "stopped"
    if exit_code == 0:
        return "finished"
    return "stopped" if has_started and _had_warning(folder) else "failed"


@dataclass(frozen=True)
class SettleOptions:
    """End an attempt: write down how it ended, and put the job back into the queue if it goes on."""

    exit_code: tyro.conf.Positional[int]
    """Of what ran before in the job's script."""
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders of the job; an array's job finds its own by its number."""


def settle(options: SettleOptions) -> None:
    """End a Slurm job, as the last line of its script.

    Raises:
        SystemExit: always, with the job's exit code.
    """
    for number in SIGNALS:  # they come with the requeue below, and the end must be written down
        signal.signal(number, signal.SIG_IGN)
    log_to_job()
    exit_code, runs = options.exit_code, options.runs
    folder = JobFolder(runs[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")) if len(runs) > 1 else 0])
    number = os.environ.get("SLURM_JOB_ID")
    if (array := os.environ.get("SLURM_ARRAY_JOB_ID")) is not None:
        number = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if number is not None and not folder.knows(number, wait_s=KNOWN_WAIT_S):
        sys.exit(exit_code or 1)  # whoever submits again must not be judged by it
    decision = end_attempt(folder, folder.read(), exit_code=exit_code)
    if not decision.go_on:
        gave_up = decision.reason.startswith(("failed", "stopped", "refused"))
        sys.exit((exit_code or 1) if gave_up else 0)
    try:
        is_requeued = _requeue(os.environ["SLURM_JOB_ID"], wait_s=decision.wait_s)
    except slurm_queue.SlurmError as error:
        folder.note("not requeued", reason=str(error))
        logger.error("the job could not be put back into the queue, and ends: %s", error)
        sys.exit(exit_code or 1)
    sys.exit(0 if is_requeued else exit_code)


def log_to_job() -> None:
    """Let the launcher's own lines into the job's log, marked, and each once beside submitit's."""
    launch_logger = logging.getLogger("launch")
    if not launch_logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("launch: %(message)s"))
        launch_logger.addHandler(handler)
        launch_logger.setLevel(logging.INFO)
        launch_logger.propagate = False


def _requeue(job_id: str, *, wait_s: int) -> bool:
    """Put this job back into the queue, trying again while Slurm does not answer; False where Slurm does it itself."""
    for tries_left in reversed(range(NUM_TRIES)):
        try:
            queued = slurm_queue.find(job_id)
            if queued is None or queued.state != "RUNNING":
                # Slurm requeues a preempted job itself, and a cancelled one stays so
                logger.info("job %s is %s: left to Slurm", job_id, queued.state if queued else "gone")
                return False
            slurm_queue.requeue(job_id, wait_s=wait_s)
            return True
        except slurm_queue.SlurmError as error:
            if not tries_left:
                raise
            logger.warning("%s; again in %d s", error, PAUSE_S)
            time.sleep(PAUSE_S)
    raise AssertionError


def _refusal(folder: JobFolder) -> str | None:
    """Why the program of the last attempt refused to go on, if it did without progress."""
    for event in reversed(folder.events()):
        if event["event"] == "start":
            break
        if event["event"] == USER_MUST_ACT:
            return event["reason"]
    return None


def _had_warning(folder: JobFolder) -> bool:
    """Whether the time limit or a preemption came before the last attempt could save.

    SIGTERM comes from srun as well, to all nodes, when the processes of one have failed; that one notes it first.
    """
    names: set[str] = set()
    for event in reversed(folder.events()):
        if event["event"] == "start":
            break
        names.add(event["name"] if event["event"] == "signal" else event["event"])
    return "SIGUSR2" in names or ("SIGTERM" in names and not {FAILED, USER_MUST_ACT} & names)
