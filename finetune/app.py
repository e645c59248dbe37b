"""The fine-tuning program and its commands."""

import logging

from engine.commands import EXISTING_RUN, STATUS, Command, run_program
from engine.errors import one_line_errors
from engine.recipe import on_rank_zero
from finetune.commands.options import EVERYDAY

ABOUT = """Fine-tune a backbone to classify images, detect objects in them or segment them; measure, use and export it.

The task is the one that the recipe belongs to, or --task classify, detect or segment."""
COMMANDS = {
    "train": Command(
        "fine-tune, or measure kNN",
        options="finetune.commands.options:parse_training",
        run="finetune.commands.evaluate:run_training",
        usage="--recipe FILE --data.shards DIR --val-shards DIR",
        everyday=EVERYDAY,
        documented="finetune.classification.config:ClassifyConfig",
    ),
    "evaluate": Command(
        "measure what was trained on other shards or in another way",
        options="finetune.commands.options:parse_evaluation",
        run="finetune.commands.evaluate:run_evaluation",
        usage="WHAT --val-shards DIR",
    ),
    "predict": Command(
        "say what a trained network sees in images",
        options="finetune.commands.options:PredictOptions",
        run="finetune.commands.predict:predict",
        usage="RUN IMAGES --out DIR",
    ),
    "export": Command(
        "write a trained network as ONNX, or a detector as torch.export's file",
        options="finetune.commands.options:ExportOptions",
        run="finetune.commands.export:export",
        usage="RUN FILE",
    ),
    "results": Command(
        "show the results of a run again",
        options=EXISTING_RUN,
        run="finetune.commands.evaluate:show_results",
        usage="RUN",
    ),
    "check": Command(
        "refuse what a run would refuse before its first step; starts none",
        options="finetune.commands.options:parse_recipe",
        run="finetune.commands.evaluate:run_check",
        usage="--recipe FILE --data.shards DIR --val-shards DIR",
    ),
    "status": STATUS,
}


@one_line_errors
def main() -> None:
    """Run the command that the first argument names, or train."""
    logging.basicConfig(level=logging.INFO if on_rank_zero() else logging.ERROR, format="%(message)s")
    run_program(COMMANDS, about=ABOUT, default="train")
