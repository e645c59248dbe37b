"""The pretraining program and its commands."""

import logging

from engine.commands import EXISTING_RUN, STATUS, Command, run_program
from engine.errors import one_line_errors
from engine.recipe import on_rank_zero

ABOUT = "Pretrain a vision backbone on unlabelled images by masked image modelling."
EVERYDAY = (
    "data.shards",
    "run.folder",
    "backbone.name",
    "backbone.img_size",
    "data.batch_size",
    "data.micro_batch_size",
    "optimizer.epochs",
    "optimizer.base_lr",
    "mim.mask_ratio",
    "distributed.precision",
)
COMMANDS = {
    "train": Command(
        "pretrain a backbone",
        options="pretrain.config:PretrainConfig",
        run="pretrain.commands:run_training",
        usage="--recipe FILE --data.shards DIR",
        recipes=True,
        everyday=EVERYDAY,
    ),
    "check": Command(
        "refuse what a run would refuse before its first step; starts none",
        options="pretrain.config:PretrainConfig",
        run="pretrain.commands:run_check",
        usage="--recipe FILE --data.shards DIR",
        recipes=True,
    ),
    "status": STATUS,
    "report": Command(
        "write report.html of a run again", options=EXISTING_RUN, run="pretrain.commands:run_report", usage="RUN"
    ),
    "probe-memory": Command(
        "show which micro-batch sizes fit; reads no data",
        options="pretrain.options:parse_without_shards",
        run="pretrain.commands:run_probe_memory",
        usage="--recipe FILE",
    ),
    "replay": Command(
        "repeat a micro-batch that was not finite, and show where it goes wrong",
        options="pretrain.options:ReplayOptions",
        run="pretrain.commands:run_replay",
        usage="RECORD",
    ),
    "verify-resume": Command(
        "prove here that a killed run ends as one left alone; exit code 1 where it does not",
        options="pretrain.options:parse_proof",
        run="pretrain.commands:run_proof",
        usage="--recipe FILE --data.shards DIR",
    ),
}


@one_line_errors
def main() -> None:
    """Run the command that the first argument names, or train."""
    logging.basicConfig(level=logging.INFO if on_rank_zero() else logging.ERROR, format="%(message)s")
    run_program(COMMANDS, about=ABOUT, default="train")
