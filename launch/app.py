"""The launcher: submits the programs to a cluster, or to this machine, and looks after the jobs."""

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import tyro
from rich.console import Console

from engine.errors import UserError, one_line_errors
from engine.recipe import parse
from launch.attempt.job_end import settle
from launch.commands import verify_resume as proof
from launch.commands.doctor import consult, parse_options
from launch.commands.monitor import LogOptions, cancel, check_not_queued, logs, status
from launch.commands.preview import show_plan
from launch.config import ClusterConfig, SubmitOptions, processes_per_node, read_cluster
from launch.job_folder import Job, JobFolder
from launch.program_calls import PROOF, Call, check_call, check_write
from launch.submission import submit

USAGE = """\
usage: python launch/main.py COMMAND ...

  pretrain|finetune|data write [--cluster NAME] [--nodes N] [--dry-run] PROGRAM OPTIONS   check, submit, say how to follow it
  status RUN                     where it stands: queue, attempts, step
  logs RUN [--node N] [--follow] what it says
  cancel RUN [--now]             save and end; --now ends it without saving
  doctor [--cluster NAME] [--nodes N] [PRETRAIN OPTIONS]   examine the nodes in a short job
  verify-resume [--cluster NAME] [--steps N] PRETRAIN OPTIONS   prove on a node that killed runs end as others do
  resume RUN [--nodes N] [...]   go on, also with other nodes, another cluster or other options

  --cluster.OPTION VALUE changes one line of the cluster's file; `cluster-options` lists them.
"""
PROGRAMS = ("pretrain", "finetune", "data")
OURS = {"--cluster", "--nodes", "--sweep", "--parallel", "--job-name", "--dry-run", "--gpu-images-per-s"}
OF_PROOFS = {"--steps", "--moved-processes"}


@one_line_errors
def main() -> None:
    """Run the command that the first word names."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if command in ("-h", "--help"):
        sys.stdout.write(USAGE)
    elif command in PROGRAMS:
        _submit(command, words)
    elif command in COMMANDS:
        COMMANDS[command](words)
    else:
        raise UserError(f"there is no command {command!r}; choose {', '.join((*PROGRAMS, *COMMANDS))}")


def split_words(words: Sequence[str], *, more: Collection[str] = ()) -> tuple[list[str], list[str], list[str]]:
    """Return what is for the launcher (options OURS and ``more``), what changes the cluster's file, and what is for the program."""
    ours: list[str] = []
    cluster: list[str] = []
    program: list[str] = []
    into = program
    for word in words:
        name = word.partition("=")[0].replace("_", "-")
        if word.startswith("--"):
            into = ours if name in OURS or name in more else cluster if name.startswith("--cluster.") else program
        into.append(f"--{word.removeprefix('--cluster.')}" if into is cluster and word.startswith("--") else word)
    return ours, cluster, program


def _submit(program: str, words: list[str]) -> None:
    ours, changes, rest = split_words(words)
    options = tyro.cli(SubmitOptions, args=ours, description=_submit.__doc__)
    cluster = read_cluster(options.cluster, changes=tuple(changes))
    if program == "data" and (options.nodes > 1 or options.sweep):
        raise UserError(
            f"data write runs on one node, with as many processes as it has cores, got --nodes {options.nodes}"
        )
    calls = [_check(program, more, cluster=cluster, nodes=options.nodes) for more in _points(rest, options.sweep)]
    _queue(calls, cluster=cluster, options=options)


def _check(program: str, words: Sequence[str], *, cluster: ClusterConfig, nodes: int) -> Call:
    if program == "data":
        return check_write(words)
    return check_call(program, words, num_processes=nodes * processes_per_node(cluster))


def _points(words: list[str], sweep: Sequence[Path]) -> list[list[str]]:
    """Return the program's options for each recipe of a sweep; each run lies below the run folder that was asked for."""
    if not sweep:
        return [words]
    folder = next((after for word, after in zip(words, [*words[1:], ""], strict=True) if word == "--run.folder"), None)
    if folder is None:
        raise UserError("a sweep needs --run.folder: the runs lie below it, one for each recipe")
    return [[*words, "--recipe", str(recipe), "--run.folder", str(Path(folder) / recipe.stem)] for recipe in sweep]


def _queue(calls: Sequence[Call], *, cluster: ClusterConfig, options: SubmitOptions) -> None:
    """Show what would be submitted, or submit it and say how to follow it."""
    console = Console(soft_wrap=True, highlight=False, emoji=False)
    jobs = [Job(call=call, cluster=cluster, nodes=options.nodes, cwd=str(Path.cwd())) for call in calls]
    base = calls[0].folder if len(calls) == 1 else calls[0].folder.parent
    name = options.job_name or f"{calls[0].program}-{base.name}"
    if options.dry_run:
        show_plan(jobs, base=base, name=name, parallel=options.parallel, console=console)
        return
    for job in jobs:
        check_not_queued(JobFolder(job.call.folder))
    ids = submit(jobs, base=base, name=name, parallel=options.parallel)
    where = "Slurm job" if cluster.scheduler == "slurm" else "process"
    for job, number in zip(jobs, ids, strict=True):
        console.print(f"{where} {number}: {job.call.folder}")
    first = jobs[0].call.folder
    console.print(
        f"status   python launch/main.py status {first}\nfollow   python launch/main.py logs {first} --follow"
    )
    console.print(f"stop     python launch/main.py cancel {first}\ngo on    python launch/main.py resume {first}")


def _resume(words: list[str]) -> None:
    """``resume RUN``: submit the run again as it was, or with what the further options change."""
    folder = JobFolder(_run_folder(words[:1], "resume").resolve())
    before = folder.read()
    if before.call.program not in PROGRAMS or before.call.words[:1] == (PROOF,):
        raise UserError(f"{folder.run} holds no run that could go on: start it again as the first time")
    os.chdir(before.cwd)  # where the recipe's relative paths start
    ours, changes, rest = split_words(words[1:])
    options = tyro.cli(SubmitOptions, args=ours, default=SubmitOptions(nodes=before.nodes))
    chosen = any(word.partition("=")[0] == "--cluster" for word in ours)
    cluster = read_cluster(options.cluster, changes=tuple(changes)) if chosen or changes else before.cluster
    if changes and not chosen:
        raise UserError("--cluster.OPTION changes a cluster's file: name it with --cluster as well")
    again, here = list(before.call.words), []
    if before.call.recipe:  # which names the folder that the run had when it was submitted; it may have been moved
        again, here = ["--recipe", str(folder.recipe)], ["--run.folder", str(folder.run)]
    call = _check(before.call.program, [*again, *rest, *here], cluster=cluster, nodes=options.nodes)
    _queue([dataclasses.replace(call, folder=folder.run)], cluster=cluster, options=options)


def _doctor(words: list[str]) -> None:
    ours, changes, rest = split_words(words)
    options = parse_options(ours)
    consult(options, rest, cluster=read_cluster(options.cluster, changes=tuple(changes)))


def _verify_resume(words: list[str]) -> None:
    """``verify-resume``: submit the proof; `logs` shows the evidence."""
    ours, changes, rest = split_words(words, more=OF_PROOFS)
    options = proof.parse_options(ours)
    cluster = read_cluster(options.cluster, changes=tuple(changes))
    call = proof.proof_call(options, rest, cluster=cluster)
    _queue([call], cluster=proof.without_restarts(cluster), options=options)


def _cluster_options(_words: list[str]) -> None:
    """``cluster-options``: what a cluster's file may hold."""
    parse(ClusterConfig, ["--help"])


def _run_folder(words: list[str], command: str) -> Path:
    if len(words) != 1 or not Path(words[0]).is_dir():
        raise UserError(f"{command} takes one run folder that exists, got {' '.join(words) or 'nothing'}")
    return Path(words[0])


def _status(words: list[str]) -> None:
    console = Console()
    for table in status(JobFolder(_run_folder(words, "status"))):
        console.print(table)


def _logs(words: list[str]) -> None:
    logs(JobFolder(_run_folder(words[:1], "logs")), tyro.cli(LogOptions, args=words[1:]))


def _cancel(words: list[str]) -> None:
    now = "--now" in words
    Console(soft_wrap=True).print(
        cancel(JobFolder(_run_folder([word for word in words if word != "--now"], "cancel")), now=now)
    )


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "resume": _resume,
    "doctor": _doctor,
    "verify-resume": _verify_resume,
    "cluster-options": _cluster_options,
    "settle": lambda words: settle(int(words[0]), [Path(word) for word in words[1:]]),
}
