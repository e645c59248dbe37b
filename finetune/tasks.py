"""The tasks of fine-tuning, and which of them a command line means. Imports no torch.

A new task is a line here, and the folder that it names (``finetune/task.py`` says what must be in it).
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.commands import resolve
from engine.documents import read_yaml
from engine.errors import UserError
from engine.recipe import find_recipe
from finetune.config import FinetuneConfig


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """What is known of a task before torch is imported."""

    recipe: str
    """module:class of its recipes."""
    implementation: str
    """module:class of its :class:`finetune.task.Task`."""
    head: str | None = None
    """The section of its recipes that no other task has, and that says what stands on the backbone."""

    @property
    def config(self) -> type[Any]:
        """The class of its recipes."""
        return resolve(self.recipe)


TASKS: dict[str, TaskEntry] = {
    "classify": TaskEntry(
        recipe="finetune.classification.config:ClassifyConfig",
        implementation="finetune.classification.task:Classification",
    ),
    "detect": TaskEntry(
        recipe="finetune.detection.config:DetectConfig",
        implementation="finetune.detection.task:Detection",
        head="detector",
    ),
    "segment": TaskEntry(
        recipe="finetune.segmentation.config:SegmentConfig",
        implementation="finetune.segmentation.task:Segmentation",
        head="segmenter",
    ),
}


def task_of_config(config: FinetuneConfig) -> str:
    """Name the task that a config is of."""
    return next(name for name, entry in TASKS.items() if isinstance(config, entry.config))


def choose_task(argv: Sequence[str], *, default: str = "classify") -> tuple[str, list[str]]:
    """Name the task that a command line means; also return the line without ``--task NAME``.

    Without that option it is the task whose section the recipes or the options hold, else ``default``.

    Raises:
        UserError: there is no such task, or the recipes belong to several.
    """
    names, rest = take_option(argv, "--task")
    sections = _sections(rest)
    candidates = sorted(task for task, entry in TASKS.items() if entry.head in sections)
    if len(candidates) > 1:
        raise UserError(f"the recipes and options belong to {' and '.join(candidates)}; give those of one task")
    name = names[-1] if names else candidates[0] if candidates else default
    if name not in TASKS and (names or name):
        raise UserError(f"--task takes {', '.join(TASKS)}, got {name!r}")
    return name, rest


def take_option(argv: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """Take the values of an option, however it is spelled, out of a command line; also return the rest of it."""
    spellings = (option, option.replace("-", "_").replace("__", "--", 1))
    values: list[str] = []
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in spellings:
            values.append(value if equals else next(arguments, ""))
        else:
            rest.append(argument)
    return values, rest


def _sections(argv: Sequence[str]) -> set[str]:
    """Collect the top-level sections of recipes and options; a recipe that cannot be read is refused later."""
    sections = {argument.removeprefix("--").partition(".")[0] for argument in argv if argument.startswith("--")}
    for path in take_option(argv, "--recipe")[0]:
        with suppress(OSError, UserError):
            sections |= {str(key) for key in read_yaml(find_recipe(Path(path), program="finetune"))}
    return sections
