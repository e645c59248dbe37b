"""Submitting through submitit: what Slurm is asked for."""

import contextlib
import io
import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from submitit import LocalExecutor, SlurmExecutor
from submitit.core.utils import FailedJobError
from submitit.slurm import slurm

from engine.errors import SIGNALS, UserError
from launch import slurm_queue
from launch.job_folder import Job, JobFolder
from launch.node import NodeJob
from launch.program_calls import ROOT

logger = logging.getLogger(__name__)

ENDING = {signal.SIGINT, *SIGNALS}
"""What ends a command from outside."""


def submit(jobs: Sequence[Job], *, base: Path, name: str, parallel: int) -> list[str]:
    """Submit one job, or an array of them, and number them. ``base`` is the folder that keeps submitit's files.

    Signals wait until the numbers are written down; then the jobs are cancelled.

    Raises:
        UserError: Slurm refuses them, in its words; the run folders are as before.
    """
    if jobs[0].cluster.scheduler == "slurm":
        slurm_queue.check_installed()
    store = JobFolder(base)
    for folder in (store, *(JobFolder(job.call.folder) for job in jobs)):
        folder.make()
    with HeldSignals(children_too=jobs[0].cluster.scheduler == "slurm") as signals:
        ids = _submit_unless_refused(jobs, store=store, name=name, parallel=parallel)
        try:
            for job, number in zip(jobs, ids, strict=True):
                JobFolder(job.call.folder).add_id(number)
        except BaseException:
            _take_back(jobs[0], ids)
            raise
        if signals.came():
            _take_back(jobs[0], ids)
            logger.error("interrupted: job %s was submitted, and is cancelled", ids[0])
    return ids


def _submit_unless_refused(jobs: Sequence[Job], *, store: JobFolder, name: str, parallel: int) -> list[str]:
    with contextlib.ExitStack() as before:  # all is written before: a job may start at once
        for job in jobs:
            folder = JobFolder(job.call.folder)
            before.enter_context(folder.unless_refused())
            folder.cancelled.unlink(missing_ok=True)
            folder.write(job)
            folder.note("submit", nodes=job.nodes)
        try:
            return _hand_over(jobs, store=store, name=name, parallel=parallel)
        except FailedJobError as error:
            raise UserError(f"Slurm does not take the job: {' '.join(str(error).split())}") from None


def _take_back(job: Job, ids: Sequence[str]) -> None:
    """Cancel what was just submitted; of a job that is not written down nobody would know."""
    if job.cluster.scheduler == "slurm":
        slurm_queue.cancel(ids[0].partition("_")[0])
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(ids[0]), signal.SIGTERM)


class HeldSignals:
    """Keeps signals that end a program from it while it is entered; they come when it is left.

    ``children_too`` keeps them from what it starts as well: Ctrl-C reaches them all, and would end an sbatch that has
    submitted its job already.
    """

    def __init__(self, *, children_too: bool) -> None:
        self._children_too = children_too
        self._ending = {each for each in ENDING if signal.getsignal(each) != signal.SIG_IGN}  # under nohup SIGHUP is
        self._handlers: dict[signal.Signals, Any] = {}
        self._noted: list[int] = []

    def __enter__(self) -> "HeldSignals":
        self._handlers = {each: signal.signal(each, self._note) for each in self._ending}
        if self._children_too:  # they inherit what this thread blocks; another one may get the signal all the same
            signal.pthread_sigmask(signal.SIG_BLOCK, self._ending)
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted.append(number)

    def came(self) -> bool:
        """Whether there was one."""
        return bool(self._noted) or bool(signal.sigpending() & self._ending)

    def __exit__(self, *_: object) -> None:
        if self._children_too:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._ending)  # what waited is noted now
        for each, handler in self._handlers.items():
            signal.signal(each, handler)
        if self._noted:
            signal.raise_signal(self._noted[0])


def script(jobs: Sequence[Job], *, base: Path, name: str, parallel: int) -> str:
    """Write the script that sbatch would be given."""
    parameters = slurm_parameters(jobs, name=name, parallel=parallel)
    if len(jobs) > 1:
        parameters["map_count"] = len(jobs)
    jobs_folder = JobFolder(base).jobs.absolute()
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(jobs_folder))}"
    return slurm._make_sbatch_string(command=command, folder=jobs_folder, **parameters)  # pyright: ignore[reportPrivateUsage]


def slurm_parameters(jobs: Sequence[Job], *, name: str, parallel: int) -> dict[str, Any]:
    """Name submitit's parameters, of which it makes the options of sbatch and the script."""
    job, cluster = jobs[0], jobs[0].cluster
    more: dict[str, Any] = {"requeue": True, "chdir": job.cwd}
    # if one node fails, srun ends the others; nodes that a killed attempt still occupies are waited for
    srun = ["--kill-on-bad-exit=1", f"--immediate={cluster.step_wait_s}"]
    if cluster.memory_gib is not None:
        more["mem"] = f"{cluster.memory_gib}G" if cluster.memory_gib else "0"
    if cluster.cpus_per_node is not None:
        srun.append(f"--cpus-per-task={cluster.cpus_per_node}")  # which srun does not take from sbatch
    runs = " ".join(shlex.quote(str(each.call.folder)) for each in jobs)
    settle = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'launch' / 'main.py'))} settle"
    optional = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "gpus_per_node": cluster.gpus_per_node or None,
        "cpus_per_task": cluster.cpus_per_node,
        "exclusive": True if cluster.exclusive else None,
        "array_parallelism": parallel if len(jobs) > 1 else None,
    }
    return {
        "job_name": name,
        "nodes": job.nodes,
        "ntasks_per_node": 1,
        "time": cluster.time_limit_min,
        "signal_delay_s": cluster.warning_s,
        "stderr_to_stdout": True,
        "setup": [
            "trap : TERM USR2  # what follows srun must run, whatever ends it",
            f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}",
            *cluster.setup,
        ],
        "teardown": [f"{settle} $? {runs}"],
        "srun_args": srun,
        "additional_parameters": more,
        **{option: value for option, value in optional.items() if value is not None},
    }


def _hand_over(jobs: Sequence[Job], *, store: JobFolder, name: str, parallel: int) -> list[str]:
    job = jobs[0]
    runs = [each.call.folder.absolute() for each in jobs]
    if job.cluster.scheduler == "local":
        return [_start_here(job, runs=runs, store=store)] * len(jobs)
    executor = SlurmExecutor(folder=store.jobs.absolute())
    executor.update_parameters(**slurm_parameters(jobs, name=name, parallel=parallel))
    with contextlib.redirect_stderr(io.StringIO()):  # submitit prints Slurm's words, and raises them as well
        return [str(submitted.job_id) for submitted in executor.submit_array([NodeJob(run) for run in runs])]


def _start_here(job: Job, *, runs: Sequence[Path], store: JobFolder) -> str:
    executor = LocalExecutor(folder=store.jobs.absolute())
    executor.update_parameters(
        timeout_min=job.cluster.time_limit_min,
        signal_delay_s=job.cluster.warning_s,
        stderr_to_stdout=True,
        gpus_per_node=job.cluster.gpus_per_node or 0,
        setup=list(job.cluster.setup),
    )
    with _detached():
        return str(executor.submit(NodeJob(*runs)).job_id)


@contextlib.contextmanager
def _detached() -> Iterator[None]:
    """Start children in a process group of their own, so that Ctrl-C here does not reach them, and without our output.

    A reader of our output would wait for them until they end.
    """
    sys.stdout.flush()
    group = os.getpgrp()
    outputs = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        with contextlib.suppress(PermissionError):  # the leader of a session has a group of its own already
            os.setpgid(0, 0)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        for number, copy in enumerate(outputs, start=1):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
        with contextlib.suppress(PermissionError):
            os.setpgid(0, group)
