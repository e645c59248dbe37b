"""What the commands of the pretraining program do."""

import sys
from pathlib import Path

from rich.console import Console

from engine.commands import ExistingRun
from pretrain.config import PretrainConfig
from pretrain.evaluation.report import write_report
from pretrain.model.memory import explain_out_of_memory, probe_memory
from pretrain.options import ProofRuns, ReplayOptions
from pretrain.replay import replay
from pretrain.trainer import train
from pretrain.verify_resume.proof import verify_resume


def run_training(config: PretrainConfig) -> None:
    """Pretrain, and explain running out of memory."""
    with explain_out_of_memory(config):
        train(config)


def run_report(options: ExistingRun) -> None:
    """Write report.html again."""
    Console(soft_wrap=True).print(f"report: {write_report(options.folder)}")


def run_probe_memory(config: PretrainConfig) -> None:
    """Show which micro-batch sizes fit."""
    Console().print(probe_memory(config))


def run_replay(options: ReplayOptions) -> None:
    """Show how a recorded micro-batch runs through the network."""
    Console().print(replay(Path(options.record)))


def run_proof(options: tuple[ProofRuns, PretrainConfig]) -> None:
    """Prove exact resuming and show the evidence."""
    runs, config = options
    evidence = verify_resume(config, steps=runs.steps, processes=runs.processes, moved_processes=runs.moved_processes)
    Console().print(evidence.table())
    if not evidence.proved:
        sys.exit(1)
