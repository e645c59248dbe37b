"""What runs on every node of a job: starts its training processes, hands signals on, and notes how they ended."""

import logging
import math
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from submitit import JobEnvironment

from engine.errors import REFUSAL
from launch import slurm_queue
from launch.attempt.job_end import FAILED, USER_MUST_ACT, end_attempt, log_to_job
from launch.attempt.process_tree import ProcessTree
from launch.attempt.processes import (
    SUPERVISOR,
    master_host,
    place_of,
    process_environment,
    python_command,
    start_command,
)
from launch.job_folder import KNOWN_WAIT_S, Job, JobFolder
from launch.program_calls import DOCTOR

logger = logging.getLogger(__name__)

POLL_S = 0.2
CANCEL_LOOK_S = 5.0
CANCELLED = 1
"""Exit code of a node that did not start: with it srun ends those that did."""
REFUSED = os.EX_CONFIG
"""Exit code of a node whose program refused to go on: the user must act, and the job is not started again."""
REQUEUE_AGAIN_S = 5.0
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
LOCAL_REQUEUE = 144
"""Exit code by which submitit's local executor knows that it shall start the task again."""


class NodeJob:
    """The function that submitit calls on each node; all it needs is read from the run folder when it starts.

    Jobs in the queue were pickled with this class's module and its attribute ``runs``: neither may change, or a job
    that waits, or is requeued, while the checkout is updated would not start.
    """

    def __init__(self, *runs: Path) -> None:
        self.runs = runs

    def __call__(self) -> str:
        """Run the training processes of this node to their end; of several runs, one after the other.

        Raises:
            SystemExit: they failed, with their exit code; Slurm then ends those of the other nodes.
        """
        log_to_job()
        code = 0
        with _Signals() as signals:
            for run in self.runs:
                folder = JobFolder(run)
                job = folder.read()
                os.chdir(job.cwd)
                if _is_cancelled(folder, job):
                    logger.info("%s was cancelled before it started", run)
                    code = code or CANCELLED
                elif not _is_known(folder, job):
                    logger.info("this job is not written down in %s: what submitted it was killed", folder.path)
                    code = code or CANCELLED
                elif job.cluster.scheduler == "slurm":
                    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
                    code = _attempt(folder, job, signals=signals, restarts=restarts)
                elif signals.first is None:
                    code = _on_this_machine(folder, job, signals=signals) or code
        if code:
            sys.exit(code if code > 0 else 1)
        return "ended"


@dataclass
class _Signals:
    """Notes the stop signals that arrive while it is entered; that a job was cancelled counts as one."""

    first: signal.Signals | None = None
    at: float = 0.0
    _next_look: float = 0.0
    _before: dict[int, object] = field(default_factory=dict)

    def __enter__(self) -> "_Signals":
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def look(self, folder: JobFolder, job: Job) -> None:
        """Count the file that `cancel` makes as its signal, which is lost while the batch script is not here yet."""
        if self.first is None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + CANCEL_LOOK_S
            if _is_cancelled(folder, job):
                self._note(signal.SIGUSR2, None)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.first is None or (number == signal.SIGUSR2 and self.first != signal.SIGUSR2):
            self.first, self.at = signal.Signals(number), time.time()


def _is_cancelled(folder: JobFolder, job: Job) -> bool:
    """Whether the user ended it; the doctor marks its own job so, that it never goes on."""
    return job.call.program != DOCTOR and folder.cancelled.exists()


def _is_known(folder: JobFolder, job: Job) -> bool:
    """Whether the command that submitted it lived to write its number down; nobody would look after another job."""
    return job.cluster.scheduler == "local" or folder.knows(str(JobEnvironment().job_id), wait_s=KNOWN_WAIT_S)


def _attempt(folder: JobFolder, job: Job, *, signals: _Signals, restarts: int) -> int:
    """Start this node's processes once, wait for their end, and give their exit code."""
    environment, call = JobEnvironment(), job.call
    place = place_of(
        job.cluster,
        node=environment.node,
        nodes=environment.num_nodes,
        host=master_host(environment.hostnames, os.environ),
        job_number=int(environment.raw_job_id),
        restarts=restarts,
    )
    if place.node == 0:
        (folder.run / "stopped.json").unlink(missing_ok=True)
        hosts = list(environment.hostnames)
        folder.note("start", step=folder.newest_step(), restarts=restarts, job=environment.job_id, hosts=hosts)
    python = python_command(job.cluster)
    command = start_command(
        folder.program(job), starter=call.starter, zero_stage=call.zero_stage, place=place, python=python
    )
    logger.info("node %d of %d: %s", place.node, place.nodes, " ".join(command))
    refusal = folder.refusal(place.node)
    refusal.unlink(missing_ok=True)
    supervised = {SUPERVISOR: str(os.getpid()), REFUSAL: str(refusal.absolute())}
    environ = {**os.environ, **process_environment(job.cluster), **supervised}
    stop_with = signal.SIGUSR2 if call.saves_on_warning else signal.SIGTERM
    processes = ProcessTree(command, environ, stop_with=stop_with, is_training=call.starter == "python")
    stop = _Stop(folder, job, signals=signals, job_id=environment.raw_job_id, is_first=place.node == 0)
    while (code := processes.poll()) is None:
        time.sleep(POLL_S)
        signals.look(folder, job)
        if signals.first is not None:
            processes.stop()
            stop.look()
    logger.info("the training processes of node %d ended with exit code %d", place.node, code)
    if code and refusal.exists():
        folder.note(USER_MUST_ACT, node=place.node, reason=refusal.read_text())
        refusal.unlink()
        return REFUSED
    if code and signals.first is None:
        folder.note(FAILED, node=place.node, code=code)
    return code


class _Stop:
    """Node 0's part while processes that were told to stop save and end: notes, and a requeue where they are late."""

    def __init__(self, folder: JobFolder, job: Job, *, signals: _Signals, job_id: str, is_first: bool) -> None:
        self._folder, self._signals, self._job_id, self._is_first = folder, signals, job_id, is_first
        self._in_slurm = job.cluster.scheduler == "slurm"
        self._patience_s = job.cluster.warning_s - min(30.0, job.cluster.warning_s / 3)
        self._done: set[str] = set()
        self._requeue_at = math.inf

    def look(self) -> None:
        """Note signal and checkpoint once each; before the scheduler kills the job, put it back into the queue."""
        first = self._signals.first
        if not self._is_first or first is None:
            return
        if self._once("signal"):
            logger.info("%s: the training processes save and end", first.name)
            self._folder.note("signal", name=first.name)
        stopped = self._folder.stopped()
        if stopped is not None and self._once("saved"):
            seconds = stopped["saved"] - self._signals.at
            self._folder.note("saved", step=stopped["step"], seconds=seconds, saved=stopped["saved"])
        late = first == signal.SIGUSR2 and time.time() > self._signals.at + self._patience_s
        if late and self._in_slurm and not self._folder.cancelled.exists() and self._once("late"):
            saved = "saved" if stopped is not None else "not saved: it goes on from the last checkpoint"
            logger.warning("not ended %.0f s after the warning (%s): back into the queue", self._patience_s, saved)
            self._folder.note("late", seconds=self._patience_s)
            self._requeue_at = time.time()
        if time.time() >= self._requeue_at:
            self._requeue()

    def _requeue(self) -> None:
        """Put the job back into the queue, which ends it; a Slurm that does not is asked again."""
        self._requeue_at = math.inf
        try:
            slurm_queue.requeue(self._job_id, wait_s=1)
        except slurm_queue.SlurmError as error:  # the scheduler may have been faster
            logger.warning("%s", error)
            self._requeue_at = time.time() + REQUEUE_AGAIN_S

    def _once(self, name: str) -> bool:
        """Whether this is the first call with this name."""
        is_new = name not in self._done
        self._done.add(name)
        return is_new


def _on_this_machine(folder: JobFolder, job: Job, *, signals: _Signals) -> int:
    """Run, and run again after failures: without Slurm nothing else does."""
    restarts = 0
    while True:
        code = _attempt(folder, job, signals=signals, restarts=restarts)
        decision = end_attempt(folder, job, exit_code=code)
        if signals.first == signal.SIGUSR2 and decision.go_on:
            sys.exit(LOCAL_REQUEUE)
        if not decision.go_on or signals.first is not None:
            return code
        deadline = time.monotonic() + decision.wait_s
        while time.monotonic() < deadline and signals.first is None:
            time.sleep(POLL_S)
        if signals.first is not None:
            return code
        restarts += 1
