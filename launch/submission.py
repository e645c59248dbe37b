"""Submitting through submitit: what Slurm is asked for."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from submitit import LocalExecutor, SlurmExecutor
from submitit.core.utils import FailedJobError
from submitit.slurm import slurm

from engine.errors import UserError
from launch import slurm_queue
from launch.job_folder import Job, JobFolder
from launch.node import NodeJob
from launch.program_calls import ROOT


def submit(jobs: Sequence[Job], *, base: Path, name: str, parallel: int) -> list[str]:
    """Submit one job, or an array of them, and number them. ``base`` is the folder that keeps submitit's files.

    Raises:
        UserError: Slurm refuses them, in its words; the run folders are as before.
    """
    if jobs[0].cluster.scheduler == "slurm":
        slurm_queue.check_installed()
    store = JobFolder(base)
    for folder in (store, *(JobFolder(job.call.folder) for job in jobs)):
        folder.make()
    with contextlib.ExitStack() as before:  # all is written before: a job may start at once
        for job in jobs:
            folder = JobFolder(job.call.folder)
            before.enter_context(folder.unless_refused())
            folder.cancelled.unlink(missing_ok=True)
            folder.write(job)
            folder.note("submit", nodes=job.nodes)
        try:
            ids = _hand_over(jobs, store=store, name=name, parallel=parallel)
        except FailedJobError as error:
            raise UserError(f"Slurm does not take the job: {error}") from None
    for job, number in zip(jobs, ids, strict=True):
        JobFolder(job.call.folder).add_id(number)
    return ids


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
