"""`launch/main.py doctor`: examines the nodes in a short job, and shows what was found."""

import dataclasses
import sys
import time
from pathlib import Path

import tyro
from rich.console import Console

from launch.commands.monitor import log_file, state
from launch.config import ClusterConfig, RestartConfig, SubmitOptions, processes_per_node
from launch.doctor.findings import FILE, findings_table, read_findings
from launch.job_folder import Job, JobFolder
from launch.program_calls import DOCTOR, Call, check_call
from launch.slurm_queue import SlurmError
from launch.submission import submit

TIME_LIMIT_MIN = 15
POLL_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsultOptions(SubmitOptions):
    """Examine the nodes before a long run: give the words of the pretraining command, or none for the machine alone."""

    gpu_images_per_s: float | None = None
    """Images a second that a GPU trains on, to judge the loader by."""


def consult(options: ConsultOptions, words: list[str], *, cluster: ClusterConfig) -> None:
    """Submit the examination, wait for it, and print the table.

    Raises:
        SystemExit: with 1 where something failed, or the job found nothing out.
    """
    console = Console()
    run = Path("runs")
    if words:
        num_processes = options.nodes * processes_per_node(cluster)
        run = check_call("pretrain", words, num_processes=num_processes).folder.parent
    folder = JobFolder(run / "doctor")
    folder.run.mkdir(parents=True, exist_ok=True)
    (folder.run / FILE).unlink(missing_ok=True)
    job = Job(
        call=_call(options, words, folder=folder.run, cluster=cluster),
        cluster=dataclasses.replace(cluster, time_limit_min=TIME_LIMIT_MIN, restart=RestartConfig(limit=0)),
        nodes=options.nodes,
        cwd=str(Path.cwd()),
    )
    number = submit([job], base=folder.run, name=options.job_name or "doctor", parallel=1)[0]
    folder.cancelled.touch()  # it sends itself the warning that makes other jobs go on
    console.print(f"job {number} examines {options.nodes} node(s); its log: python launch/main.py logs {folder.run}")
    _wait(folder, console=console)
    findings = read_findings(folder.run)
    if not findings:
        sys.exit(f"error: job {number} found nothing out; the reason is in {log_file(folder, node=0)}")
    console.print(findings_table(findings, title=f"doctor: {options.nodes} node(s) of {options.cluster}"))
    sys.exit(1 if any(finding.level == "failure" for finding in findings) else 0)


def _wait(folder: JobFolder, *, console: Console) -> None:
    """Return when the job has ended; a Slurm that does not answer is waited for, and said to be."""
    said = False
    while True:
        try:
            if state(folder.read()) == "ended":
                return
            said = False
        except SlurmError as error:
            if not said:
                console.print(f"{error}; waiting for it")
            said = True
        time.sleep(POLL_S)


def _call(options: ConsultOptions, words: list[str], *, folder: Path, cluster: ClusterConfig) -> Call:
    own = ["--folder", str(folder.absolute()), "--gpus-per-node", str(cluster.gpus_per_node or 0)]
    if options.gpu_images_per_s is not None:
        own += ["--gpu-images-per-s", str(options.gpu_images_per_s)]
    return Call(program=DOCTOR, words=(*own, *words), folder=folder, recipe="", starter="torchrun", zero_stage=0)


def parse_options(words: list[str]) -> ConsultOptions:
    """Return the doctor's own options."""
    return tyro.cli(ConsultOptions, args=words, prog="launch/main.py doctor")
