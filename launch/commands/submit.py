"""The commands that submit: pretrain, finetune, data write, and resume."""

import contextlib
import dataclasses
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import tyro
from rich.console import Console

from engine.commands import ExistingRun
from engine.errors import UserError
from engine.extensions import extension_arguments, load_extensions
from engine.recipe import parse
from engine.run.folder import STOP
from finetune.tasks import take_option
from launch.commands.arguments import read_arguments, show_help_if_wanted, split_arguments
from launch.commands.monitor import check_not_queued
from launch.commands.preview import show_plan
from launch.config import ClusterConfig, SubmitOptions, processes_per_node, read_cluster
from launch.job_folder import Job, JobFolder
from launch.program_calls import PROGRAMS, Call, check_call, check_write
from launch.program_check import check_with_programs
from launch.submission import submit


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Calls that passed all checks, and where they go."""

    calls: list[Call]
    """One, or one for each recipe of a sweep."""
    cluster: ClusterConfig
    """Where they run."""
    options: SubmitOptions
    """How they are submitted."""


def parse_submission(argv: Sequence[str], program: str) -> Submission:
    """Check a job of the program that the command is called like.

    Raises:
        UserError: what `check_call` and `check_write` refuse, or more than one node for writing shards.
    """
    name = program.split()[-1]
    arguments = read_arguments(SubmitOptions, argv, program=program)
    options, cluster = arguments.options, arguments.cluster
    if name == "data" and (options.nodes > 1 or options.sweep):
        raise UserError(
            f"data write runs on one node, with as many processes as it has cores, got --nodes {options.nodes}"
        )
    points = _points(arguments.program, options.sweep)
    calls = [_check(name, point, cluster=cluster, nodes=options.nodes) for point in points]
    return Submission(calls=calls, cluster=cluster, options=options)


def parse_resume(argv: Sequence[str], program: str) -> Submission:
    """Check a job that goes on with a run as it was submitted, or with what further options change.

    Raises:
        UserError: there is no such run, or what it runs cannot go on.
    """
    if show_help_if_wanted(SubmitOptions, argv, program=f"{program} RUN"):
        sys.exit()
    run = ExistingRun(Path(argv[0] if argv else "nothing"))
    run.check(program)
    folder = JobFolder(run.folder.resolve())
    before = folder.read()
    if before.call.program not in PROGRAMS or before.call.is_proof:
        raise UserError(f"{folder.run} holds no run that could go on: start it again as the first time")
    os.chdir(before.cwd)  # where the recipe's relative paths start
    own, changes, rest = split_arguments(argv[1:])
    options = tyro.cli(SubmitOptions, args=own, prog=program, default=SubmitOptions(nodes=before.nodes))
    is_chosen = any(argument.partition("=")[0] == "--cluster" for argument in own)
    if changes and not is_chosen:
        raise UserError("--cluster.OPTION changes a cluster's file: name it with --cluster as well")
    cluster = read_cluster(options.cluster, changes=tuple(changes)) if is_chosen else before.cluster
    load_extensions(extension_arguments(before.call.extensions))
    arguments = [*before.call.arguments, *rest]
    if before.call.recipe:  # which names the folder that the run had when it was submitted; it may have been moved
        arguments = ["--recipe", str(folder.recipe), *rest, "--run.folder", str(folder.run)]
    call = _check(before.call.program, arguments, cluster=cluster, nodes=options.nodes)
    return Submission(calls=[dataclasses.replace(call, folder=folder.run)], cluster=cluster, options=options)


def parse_cluster_options(_argv: Sequence[str], program: str) -> NoReturn:
    """List what a cluster's file may hold.

    Raises:
        SystemExit: always, since that is all.
    """
    parse(ClusterConfig, ["--help"], program=program)
    raise AssertionError


def submit_jobs(submission: Submission) -> None:
    """Show what would be submitted, or submit it and say how to follow it."""
    calls, cluster, options = submission.calls, submission.cluster, submission.options
    console = Console(soft_wrap=True, highlight=False, emoji=False)
    if not options.skip_check:
        for reason in check_with_programs(calls):
            console.print(reason, markup=False)
    jobs = [Job(call=call, cluster=cluster, nodes=options.nodes, cwd=str(Path.cwd())) for call in calls]
    base = calls[0].folder if len(calls) == 1 else calls[0].folder.parent
    name = options.job_name or f"{calls[0].program}-{base.name}"
    if options.dry_run:
        show_plan(jobs, base=base, name=name, parallel=options.parallel, console=console)
        return
    with contextlib.ExitStack() as locks:
        for folder in dict.fromkeys((base, *(job.call.folder for job in jobs))):  # a sweep's files lie above its runs
            locks.enter_context(JobFolder(folder).submitting())
            check_not_queued(JobFolder(folder))
        ids = submit(jobs, base=base, name=name, parallel=options.parallel)
    kind = "Slurm job" if cluster.scheduler == "slurm" else "process"
    for job, number in zip(jobs, ids, strict=True):
        console.print(f"{kind} {number}: {job.call.folder}")
        if (job.call.folder / STOP).exists():
            console.print(f"{job.call.folder / STOP} is there: the job will save and end at once; remove it to go on")
    first = shlex.quote(str(jobs[0].call.folder))
    for purpose, command in (
        ("status  ", f"status {first}"),
        ("follow  ", f"logs {first} --follow"),
        ("stop    ", f"cancel {first}"),
        ("go on   ", f"resume {first}"),
    ):
        console.print(f"{purpose} python launch/main.py {command}")


def _check(program: str, arguments: Sequence[str], *, cluster: ClusterConfig, nodes: int) -> Call:
    if program == "data":
        call = check_write(arguments)
    else:
        call = check_call(program, arguments, num_processes=nodes * processes_per_node(cluster))
    if cluster.scheduler == "slurm" and "%" in str(call.folder.absolute()):
        raise UserError(f"{call.folder.absolute()} holds a %, which Slurm reads as a pattern; choose another folder")
    return call


def _points(arguments: list[str], sweep: Sequence[Path]) -> list[list[str]]:
    """Add each recipe of a sweep to the program's arguments; each run lies below the run folder that is named."""
    if not sweep:
        return [arguments]
    folders, _ = take_option(arguments, "--run.folder")
    if not folders:
        raise UserError("a sweep needs --run.folder: the runs lie below it, one for each recipe")
    names = Counter(recipe.stem for recipe in sweep)
    if twice := [name for name, count in names.items() if count > 1]:
        same = " and ".join(str(recipe) for recipe in sweep if recipe.stem == twice[0])
        raise UserError(f"{same} would both run in {Path(folders[-1]) / twice[0]}: give one of them another file name")
    return [
        [*arguments, "--recipe", str(recipe), "--run.folder", str(Path(folders[-1]) / recipe.stem)] for recipe in sweep
    ]
