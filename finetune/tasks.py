"""What can be fine-tuned: the loop, the table and the predictor of each task."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from finetune.choosing import choose_task
from finetune.classification import classifiers as eval_only
from finetune.classification import task as trainer
from finetune.classification.predict import class_predictor
from finetune.detection import eval_only as detect_eval_only
from finetune.detection import results_table as detect_results
from finetune.detection import task as detect_trainer
from finetune.detection.predict import object_predictor
from finetune.evaluation import results
from finetune.network.weights import TASK_OF_PROGRAM, stored_description
from finetune.prediction import MakePredictor
from finetune.segmentation import eval_only as segment_eval_only
from finetune.segmentation import results as segment_results
from finetune.segmentation import task as segment_trainer
from finetune.segmentation.predict import label_predictor

Results = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of fine-tuning."""

    train: Callable[[Any], Results]
    """Trains to the end and returns what was measured (main process only)."""
    measure: Callable[[Any], Results]
    """Measures what ``eval_only`` names."""
    table: Callable[..., Table]
    """Makes a table of results, with a ``title``."""
    predictor: MakePredictor
    """Makes what says something about one picture, of a run."""


TASKS: dict[str, Task] = {
    "classify": Task(
        train=trainer.train, measure=eval_only.measure, table=results.results_table, predictor=class_predictor
    ),
    "detect": Task(
        train=detect_trainer.train,
        measure=detect_eval_only.measure,
        table=detect_results.results_table,
        predictor=object_predictor,
    ),
    "segment": Task(
        train=segment_trainer.train,
        measure=segment_eval_only.measure,
        table=segment_results.segment_table,
        predictor=label_predictor,
    ),
}


def task_of_run(folder: Path) -> str:
    """Return the name of the task of the run in ``folder``, or of the run whose checkpoint or best weights lie there."""
    stored = stored_description(folder)
    if stored is not None:
        return TASK_OF_PROGRAM[stored["program"]]
    above = folder.parent.parent / "config.yaml"
    recipe = folder / "config.yaml"
    name, _ = choose_task(["--recipe", str(recipe if recipe.is_file() else above)])
    return name
