"""What the commands of the pretraining program do."""

import sys
from pathlib import Path

import torch
from rich.console import Console

from data.loading.mixing import training_order
from data.shards.shard_set import open_shards
from engine.commands import ExistingRun
from engine.loop.optimizer import Schedule
from engine.loop.resume import check_start
from pretrain.config import PretrainConfig
from pretrain.evaluation.probe import check_probe_shards
from pretrain.evaluation.report import write_report
from pretrain.model.greenmim import build_model
from pretrain.model.memory import explain_out_of_memory, probe_memory
from pretrain.options import ProofRuns, ReplayOptions
from pretrain.replay import replay
from pretrain.trainer import check_locations, train
from pretrain.verify_resume.proof import verify_resume


def run_training(config: PretrainConfig) -> None:
    """Pretrain, and explain running out of memory."""
    with explain_out_of_memory(config):
        train(config)


def run_check(config: PretrainConfig) -> None:
    """Refuse what a run would refuse before its first step; nothing is written, and no image read."""
    check_locations(config)
    with torch.device("meta"):
        build_model(config)
    shards = open_shards(config.data.shards, cache=config.data.cache, labelled=False)
    order = training_order(config.data, shards, seed=config.run.seed)
    schedule = Schedule(config.optimizer, batch_size=config.data.batch_size, steps_per_epoch=order.steps_per_epoch)
    check_start(config.run)
    check_probe_shards(config)
    Console(soft_wrap=True).print(f"nothing to refuse: {schedule}", markup=False)


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
