"""`launch/main.py doctor`: examines the nodes in a short job, and shows the findings."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from engine.extensions import loaded_extensions
from engine.run.folder import make_private
from launch.commands.arguments import Arguments, read_arguments
from launch.commands.monitor import log_file, queue_state
from launch.config import RestartConfig, SubmitOptions, processes_per_node
from launch.doctor.findings import FILE, findings_table, read_findings
from launch.job_folder import Job, JobFolder
from launch.program_calls import DOCTOR, Call, check_call
from launch.slurm_queue import SlurmError
from launch.submission import submit

TIME_LIMIT_MIN = 15
POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class ExaminationOptions(SubmitOptions):
    """Examine the nodes before a long run.

    Give the options of the pretraining to examine them for, or none for the machine alone.
    """

    gpu_images_per_s: float | None = None
    """Images a second that a GPU trains on, to judge the loader by."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What is examined, and the folder of its job."""

    arguments: Arguments[ExaminationOptions]
    folder: JobFolder


def parse_doctor(argv: Sequence[str], program: str) -> Examination:
    """Check the options of the doctor, and of the pretraining if there are any."""
    arguments = read_arguments(ExaminationOptions, argv, program=program)
    runs = Path("runs")
    if arguments.program:
        num_processes = arguments.options.nodes * processes_per_node(arguments.cluster)
        runs = check_call("pretrain", arguments.program, num_processes=num_processes).folder.parent
    return Examination(arguments=arguments, folder=JobFolder(runs / "doctor"))


def examine_nodes(examination: Examination) -> None:
    """Submit the examination, wait for it, and print the table.

    Raises:
        SystemExit: with 1 where a check failed, or the job wrote no findings.
    """
    console = Console()
    folder, options = examination.folder, examination.arguments.options
    make_private(folder.run)
    (folder.run / FILE).unlink(missing_ok=True)
    number = submit([_job(examination)], base=folder.run, name=options.job_name or "doctor", parallel=1)[0]
    folder.cancelled.touch()  # it sends itself the warning that makes other jobs go on
    console.print(f"job {number} examines {options.nodes} node(s); its log: python launch/main.py logs {folder.run}")
    _wait(folder, console=console)
    findings = read_findings(folder.run)
    if not findings:
        sys.exit(f"error: job {number} found nothing out; the reason is in {log_file(folder, node=0)}")
    console.print(findings_table(findings, title=f"doctor: {options.nodes} node(s) of {options.cluster}"))
    sys.exit(1 if any(finding.level == "failure" for finding in findings) else 0)


def _job(examination: Examination) -> Job:
    arguments, folder = examination.arguments, examination.folder.run
    cluster, options = arguments.cluster, arguments.options
    own = ["--folder", str(folder.absolute()), "--gpus-per-node", str(cluster.gpus_per_node or 0)]
    if options.gpu_images_per_s is not None:
        own += ["--gpu-images-per-s", str(options.gpu_images_per_s)]
    call = Call(
        program=DOCTOR,
        arguments=(*own, *arguments.program),
        folder=folder,
        recipe="",
        starter="torchrun",
        zero_stage=0,
        extensions=tuple(loaded_extensions()),
    )
    short = dataclasses.replace(cluster, time_limit_min=TIME_LIMIT_MIN, restart=RestartConfig(limit=0))
    return Job(call=call, cluster=short, nodes=options.nodes, cwd=str(Path.cwd()))


def _wait(folder: JobFolder, *, console: Console) -> None:
    """Wait until the job has ended; that Slurm does not answer is shown once, and waited for, too."""
    is_shown = False
    while True:
        try:
            if queue_state(folder.read()) == "ended":
                return
            is_shown = False
        except SlurmError as error:
            if not is_shown:
                console.print(f"{error}; waiting for it")
            is_shown = True
        time.sleep(POLL_S)
