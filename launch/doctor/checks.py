"""The examination: every process takes part, process 0 says what was found.

Runs on the nodes as a job's program, ``launch/doctor/main.py --folder DIR [PRETRAINING OPTIONS]``. Exit code 1 where something
fails. Collectives are called by all processes alike, whatever one of them has found.
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
from engine.recipe import parse
from launch.doctor.disk import check_shared, check_space, check_write_speed, leave_mark, remove_mark
from launch.doctor.findings import Finding, findings_table, judged, write_findings
from launch.doctor.loader import check_reading
from launch.doctor.network import check_all_reduce, check_clocks, everyone, join
from launch.doctor.software import build_tools, check_builds, check_versions, versions
from launch.doctor.stop_signal import Mailbox, check_delivery, send_warning
from pretrain.config import PretrainConfig
from pretrain.greenmim import build_model

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
    options, words = tyro.cli(DoctorOptions, return_unknown_args=True)
    config = parse(PretrainConfig, words) if words else None
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
    """Return what all checks found, the same on every process (collective)."""
    rank, local_rank = dist.get_rank(), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    findings = [
        check_versions(everyone(versions())),
        _check_gpus(everyone((socket.gethostname(), local_rank, _gpus())), wanted=options.gpus_per_node),
        check_builds(everyone(build_tools()), faults=everyone(_operator_fault() if local_rank == 0 else None)),
        check_clocks(),
        check_all_reduce(device),
        _check_folder(options.folder),
        *_from_first(lambda: _check_alone(options, config=config)),
    ]
    dist.barrier()
    asked_at = time.time()
    sender, sent_at = everyone((send_warning(rank=rank, local_rank=local_rank), asked_at))[0]
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
        *check_reading(config, processes_per_node=per_node, gpu_images_per_s=options.gpu_images_per_s),
    ]


def _from_first(check: Callable[[], list[Finding]]) -> list[Finding]:
    """Return what process 0 finds, on all; an error there is a finding, so that nobody waits for it."""
    found: list[Finding] = []
    if dist.get_rank() == 0:
        try:
            found = check()
        except (OSError, UserError, RuntimeError) as error:
            found = [judged("disk and data", " ".join(str(error).split()), fail=True, advice="see the message")]
    return everyone(found)[0]


def _check_folder(folder: Path) -> Finding:
    """See whether every process's file is there for every other one (collective)."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    token = everyone(uuid.uuid4().hex if rank == 0 else None)[0]
    error = None
    try:
        leave_mark(folder, token=token, rank=rank)
    except OSError as problem:
        error = f"process {rank} on {socket.gethostname()}: {problem.strerror}"
    errors = [problem for problem in everyone(error) if problem]
    absent = everyone(check_shared(folder, token=token, world_size=world_size))
    dist.barrier()
    remove_mark(folder, token=token, rank=rank)
    blind = [rank for rank, missing in enumerate(absent) if missing]
    return judged(
        "run folder",
        f"{folder} is the same for all {world_size} processes"
        if not blind and not errors
        else "; ".join([*errors, *_blind(blind)]),
        fail=bool(blind or errors),
        advice="--run.folder must lie on a file system that all nodes mount, and that you may write to",
    )


def _blind(ranks: list[int]) -> list[str]:
    return [f"processes {', '.join(map(str, ranks[:8]))} do not see the files of the others"] if ranks else []


def _gpus() -> list[str]:
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _check_gpus(everywhere: list[tuple[str, int, list[str]]], *, wanted: int) -> Finding:
    nodes = [(host, gpus) for host, local_rank, gpus in everywhere if local_rank == 0]
    short = [host for host, gpus in nodes if len(gpus) < wanted]
    kinds = sorted({name for _, gpus in nodes for name in gpus})
    said = f"{len(nodes)} nodes with {', '.join(sorted({str(len(gpus)) for _, gpus in nodes}))} GPUs: {', '.join(kinds) or 'none'}"
    return judged(
        "GPUs",
        said + (f"; {', '.join(short[:8])} have fewer than {wanted}" if short else ""),
        fail=bool(short),
        warn=len(kinds) > 1,
        advice="leave the nodes out (--cluster.exclude), ask for one kind (--cluster.constraint), or correct gpus_per_node",
    )


def _operator_fault() -> str | None:
    """Return why DeepSpeed could not build operators here, None if it could; building one takes a minute, so none is."""
    from deepspeed.accelerator import get_accelerator  # noqa: PLC0415 - takes seconds, and only here

    accelerator: Any = get_accelerator()
    builder: Any = accelerator.create_op_builder("ShareMemCommBuilder" if _on_cpu() else "FusedAdamBuilder")
    return None if builder.is_compatible(verbose=False) else f"{builder.name}: not compatible with this machine"


def _on_cpu() -> bool:
    return not torch.cuda.is_available()
