"""The tasks of fine-tuning, and which of them a command line means. Imports no torch.

A new task is a line here, and the folder that it names (``finetune/task.py`` says what must be in it).
"""

from collections.abc import Iterator, Sequence
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
    name, rest = without_option(argv, "--task")
    sections = _sections(rest)
    candidates = sorted(task for task, entry in TASKS.items() if entry.head in sections)
    if len(candidates) > 1:
        raise UserError(f"the recipes and options belong to {' and '.join(candidates)}; give those of one task")
    name = name or (candidates[0] if candidates else default)
    if name and name not in TASKS:
        raise UserError(f"--task takes {', '.join(TASKS)}, got {name!r}")
    return name, rest


def without_option(argv: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """Take an option with one value out of a command line; also return the rest of it."""
    spellings, value, rest, arguments = _spellings(option), None, [], iter(argv)
    for argument in arguments:
        name, equals, inside = argument.partition("=")
        if name in spellings:
            value = inside if equals else next(arguments, "")
        else:
            rest.append(argument)
    return value, rest


def option_values(argv: Sequence[str], option: str) -> Iterator[str]:
    """Yield the values of an option that may be spelled ``--a.b-c V``, ``--a.b_c V`` or with ``=``."""
    spellings = _spellings(option)
    for argument, following in zip(argv, [*argv, ""][1:], strict=True):
        name, equals, value = argument.partition("=")
        if name in spellings:
            yield value if equals else following


def _spellings(option: str) -> set[str]:
    return {option, option.replace("-", "_").replace("__", "--", 1)}


def _sections(argv: Sequence[str]) -> set[str]:
    """Collect the top-level sections of recipes and options; a recipe that cannot be read is refused later."""
    sections = {argument.removeprefix("--").partition(".")[0] for argument in argv if argument.startswith("--")}
    for path in option_values(argv, "--recipe"):
        try:
            sections |= {str(key) for key in read_yaml(find_recipe(Path(path)))}
        except (OSError, UserError):
            continue
    return sections
