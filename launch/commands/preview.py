"""What would be submitted, and what would run on the nodes: the dry run."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launch.attempt.processes import Place, process_environment, python_command, start_command
from launch.config import processes_per_node
from launch.job_folder import Job, JobFolder
from launch.submission import script


def show_plan(jobs: Sequence[Job], *, base: Path, name: str, parallel: int, console: Console) -> None:
    """Print the script for sbatch, the recipes, and the command that each node runs; nothing is written."""
    job = jobs[0]
    if job.cluster.scheduler == "slurm":
        console.print("# sbatch would be given:", markup=False)
        console.print(script(jobs, base=base, name=name, parallel=parallel), markup=False)
    else:
        console.print("# a process on this machine, in the background", markup=False)
    for each in jobs:
        if each.call.recipe:
            console.print(f"# {JobFolder(each.call.folder).recipe}:\n{each.call.recipe}", markup=False)
    console.print(f"# on each of {job.nodes} node(s), in {job.cwd}:", markup=False)
    for each in jobs:
        console.print(_command(each), markup=False)


def _command(job: Job) -> str:
    """Write a node's command; its number, the first node's name and the port are known only in the job."""
    place = Place(node=0, nodes=job.nodes, processes=processes_per_node(job.cluster), master="FIRST-NODE", port=0)
    call = job.call
    command = start_command(
        JobFolder(call.folder).program(job),
        starter=call.starter,
        zero_stage=call.zero_stage,
        place=place,
        python=python_command(job.cluster),
    )
    variables = [f"{name}={shlex.quote(value)}" for name, value in process_environment(job.cluster).items()]
    return (
        " ".join([*variables, shlex.join(command)])
        .replace("--machine_rank 0", "--machine_rank NODE")
        .replace("--node-rank 0", "--node-rank NODE")
        .replace("_port 0", "_port PORT")
        .replace("-port 0", "-port PORT")
    )
