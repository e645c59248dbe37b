"""The examination of the nodes: every process takes part, process 0 shows the findings.

Runs on the nodes as a job's program, ``launch/doctor/main.py --folder DIR [PRETRAINING OPTIONS]``. Exit code 1 where a
check fails. Collectives are called by all processes alike, whatever one of them has found.
"""

import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import tyro
from rich.console import Console

from engine.errors import UserError, one_line_errors
from engine.extensions import load_extensions
from engine.recipe import parse
from launch.doctor.disk import check_shared, check_space, check_write_speed, leave_mark, remove_mark
from launch.doctor.findings import Finding, findings_table, judged, write_findings
from launch.doctor.loader import check_loader
from launch.doctor.network import check_all_reduce, check_clocks, everyone, join
from launch.doctor.software import build_tools, check_builds, check_versions, versions
from launch.doctor.stop_signal import Mailbox, check_delivery, send_warning
from pretrain.config import PretrainConfig
from pretrain.model.greenmim import build_model

JOIN_S = 300.0


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What to examine."""

    folder: Path
    """Where the findings go; on the file system of run folders."""
    gpus_per_node: int = 0
    """GPUs that every node must have."""
    gpu_images_per_s: float | None = None
    """Images a second that a GPU trains on, to judge the loader by."""


@one_line_errors
def main() -> None:
    """Examine this machine together with the others."""
    on_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if on_main else logging.ERROR, format="%(message)s")
    options, rest = tyro.cli(DoctorOptions, args=load_extensions(sys.argv[1:]), return_unknown_args=True)
    config = parse(PretrainConfig, rest) if rest else None
    mailbox = Mailbox()
    join(timeout_s=JOIN_S)
    findings = examine(options, config=config, mailbox=mailbox)
    failed = any(finding.level == "failure" for finding in findings)
    if on_main:
        write_findings(options.folder, findings)
        Console(width=160).print(findings_table(findings, title=f"{dist.get_world_size()} processes"))
    dist.barrier()
    dist.destroy_process_group()
    sys.exit(1 if failed else 0)


def examine(options: DoctorOptions, *, config: PretrainConfig | None, mailbox: Mailbox) -> list[Finding]:
    """Carry out all checks; the findings are the same on every process (collective)."""
    rank, local_rank = dist.get_rank(), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    findings = [
        check_versions(everyone(versions())),
        _check_gpus(everyone((socket.gethostname(), local_rank, _gpus())), expected=options.gpus_per_node),
        check_builds(everyone(build_tools()), faults=everyone(_operator_fault() if local_rank == 0 else None)),
        check_clocks(),
        check_all_reduce(device),
        _check_folder(options.folder),
        *_from_first(lambda: _check_alone(options, config=config)),
    ]
    dist.barrier()
    before = time.time()
    sender, sent_at = everyone((send_warning(rank=rank, local_rank=local_rank), before))[0]
    return [*findings, check_delivery(everyone(mailbox.wait(sent_at=sent_at)), sender=sender)]


def _check_alone(options: DoctorOptions, *, config: PretrainConfig | None) -> list[Finding]:
    """Check what one process is enough for."""
    if config is None:
        return [check_write_speed(options.folder, num_parameters=0)]
    size = sum(parameter.numel() for parameter in build_model(config).parameters())
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return [
        check_space(options.folder, num_parameters=size, kept=config.run.keep_last),
        check_write_speed(options.folder, num_parameters=size),
        *check_loader(config, processes_per_node=per_node, gpu_images_per_s=options.gpu_images_per_s),
    ]


def _from_first(check: Callable[[], list[Finding]]) -> list[Finding]:
    """Check on process 0 for all; an error there is a finding, so that no process waits for it."""
    findings: list[Finding] = []
    if dist.get_rank() == 0:
        try:
            findings = check()
        except (OSError, UserError, torch.OutOfMemoryError) as error:
            findings = [judged("disk and data", " ".join(str(error).split()), fail=True, advice="see the message")]
    return everyone(findings)[0]


def _check_folder(folder: Path) -> Finding:
    """See whether every process's file is there for every other one (collective)."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    token = everyone(uuid.uuid4().hex if rank == 0 else None)[0]
    error = None
    try:
        leave_mark(folder, token=token, rank=rank)
    except OSError as problem:
        error = f"process {rank} on {socket.gethostname()}: {problem.strerror}"
    problems = [problem for problem in everyone(error) if problem]
    missing = everyone(check_shared(folder, token=token, world_size=world_size))
    dist.barrier()
    remove_mark(folder, token=token, rank=rank)
    if separate := [rank for rank, others in enumerate(missing) if others]:
        problems.append(f"processes {', '.join(map(str, separate[:8]))} do not see the files of the others")
    return judged(
        "run folder",
        "; ".join(problems) or f"{folder} is the same for all {world_size} processes",
        fail=bool(problems),
        advice="--run.folder must lie on a file system that all nodes mount, and that you may write to",
    )


def _gpus() -> list[str]:
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _check_gpus(everywhere: list[tuple[str, int, list[str]]], *, expected: int) -> Finding:
    nodes = [(host, gpus) for host, local_rank, gpus in everywhere if local_rank == 0]
    short = [host for host, gpus in nodes if len(gpus) < expected]
    kinds = sorted({name for _, gpus in nodes for name in gpus})
    counts = ", ".join(sorted({str(len(gpus)) for _, gpus in nodes}))
    return judged(
        "GPUs",
        f"{len(nodes)} nodes with {counts} GPUs: {', '.join(kinds) or 'none'}"
        + (f"; {', '.join(short[:8])} have fewer than {expected}" if short else ""),
        fail=bool(short),
        warn=len(kinds) > 1,
        advice="leave the nodes out (--cluster.exclude), ask for one kind (--cluster.constraint), or correct "
        "gpus_per_node",
    )


def _operator_fault() -> str | None:
    """Why DeepSpeed could not build operators here, None if it could; none is built, since that takes a minute."""
    from deepspeed.accelerator import get_accelerator  # noqa: PLC0415 - takes seconds, and only here

    accelerator: Any = get_accelerator()
    on_gpu = torch.cuda.is_available()
    builder: Any = accelerator.create_op_builder("FusedAdamBuilder" if on_gpu else "ShareMemCommBuilder")
    return None if builder.is_compatible(verbose=False) else f"{builder.name}: not compatible with this machine"
