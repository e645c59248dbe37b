"""What can be fine-tuned: each task with its config, its loop and its table, and how a command line says which it is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from finetune import eval_only, results, trainer
from finetune.config import FinetuneConfig
from finetune.detection import eval_only as detect_eval_only
from finetune.detection import results_table as detect_results
from finetune.detection import trainer as detect_trainer
from finetune.detection.config import DetectConfig
from finetune.detection.pictures import object_predictor
from finetune.predict_classes import class_predictor
from finetune.predict_labels import label_predictor
from finetune.prediction import MakePredictor
from finetune.segmentation import eval_only as segment_eval_only
from finetune.segmentation import results as segment_results
from finetune.segmentation import trainer as segment_trainer
from finetune.segmentation.config import SegmentConfig

Results = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of fine-tuning."""

    config: type[Any]
    """Its config class; it has ``run.folder``, ``val_shards`` and ``eval_only`` in every task."""
    section: str | None
    """The section that only its recipes have; None: the task of all that have no such section."""
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
        config=FinetuneConfig,
        section=None,
        train=trainer.train,
        measure=eval_only.measure,
        table=results.results_table,
        predictor=class_predictor,
    ),
    "detect": Task(
        config=DetectConfig,
        section="detector",
        train=detect_trainer.train,
        measure=detect_eval_only.measure,
        table=detect_results.results_table,
        predictor=object_predictor,
    ),
    "segment": Task(
        config=SegmentConfig,
        section="segmenter",
        train=segment_trainer.train,
        measure=segment_eval_only.measure,
        table=segment_results.segment_table,
        predictor=label_predictor,
    ),
}


def choose_task(words: list[str]) -> tuple[Task, list[str]]:
    """Return the task of a command line, and the words without ``--task NAME``.

    Without that option it is the task whose section the recipes or the options hold, else classification.

    Raises:
        ValueError: there is no such task, or the recipes belong to several.
    """
    named, rest = _without_option(words, "--task")
    held = sorted({name for name, task in TASKS.items() if task.section in _sections(rest)})
    if len(held) > 1:
        raise ValueError(f"the recipes and options belong to {' and '.join(held)}; give those of one task")
    name = named or (held[0] if held else "classify")
    if name not in TASKS:
        raise ValueError(f"--task takes {', '.join(TASKS)}, got {name!r}")
    return TASKS[name], rest


def task_of_run(folder: Path) -> Task:
    """Return the task of the run in ``folder``, or of the run whose checkpoint lies there."""
    of_checkpoint = folder.parent.parent / "config.yaml"
    recipe = folder / "config.yaml"
    task, _ = choose_task(["--recipe", str(recipe if recipe.is_file() else of_checkpoint)])
    return task


def option_values(words: list[str], option: str) -> Iterator[str]:
    """Yield the values of an option that may be spelled ``--a.b-c V``, ``--a.b_c V`` or with ``=``."""
    spelled = {option, option.replace("-", "_").replace("__", "--", 1)}
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if name in spelled:
            yield value if equals else following


def _without_option(words: list[str], option: str) -> tuple[str | None, list[str]]:
    value, rest, left = None, [], iter(words)
    for word in left:
        name, equals, inside = word.partition("=")
        if name == option:
            value = inside if equals else next(left, "")
        else:
            rest.append(word)
    return value, rest


def _sections(words: list[str]) -> set[str]:
    """Return the top-level sections that recipes and options name; a recipe that cannot be read is refused later."""
    sections = {word.removeprefix("--").partition(".")[0] for word in words if word.startswith("--")}
    for path in option_values(words, "--recipe"):
        try:
            tree = yaml.safe_load(Path(path).read_text())
        except (OSError, yaml.YAMLError):
            continue
        sections |= {str(key) for key in tree} if isinstance(tree, dict) else set()
    return sections
