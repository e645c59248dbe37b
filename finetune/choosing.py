"""Which task of fine-tuning a command line means, and the config that its options fill. Imports no torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from engine.errors import UserError
from engine.recipe import RecipeError, find_recipe
from finetune.config import FinetuneConfig
from finetune.detection.config import DetectConfig
from finetune.segmentation.config import SegmentConfig

CONFIGS: dict[str, type[Any]] = {"classify": FinetuneConfig, "detect": DetectConfig, "segment": SegmentConfig}
"""The config class of each task; it has ``run.folder``, ``val_shards`` and ``eval_only`` in every task."""
SECTIONS = {"detector": "detect", "segmenter": "segment"}
"""The sections that only one task's recipes have."""


def choose_task(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the task that a command line means, and the words without ``--task NAME``.

    Without that option it is the task whose section the recipes or the options hold, else classification.

    Raises:
        UserError: there is no such task, or the recipes belong to several.
    """
    named, rest = _without_option(words, "--task")
    held = sorted({task for section, task in SECTIONS.items() if section in _sections(rest)})
    if len(held) > 1:
        raise UserError(f"the recipes and options belong to {' and '.join(held)}; give those of one task")
    name = named or (held[0] if held else "classify")
    if name not in CONFIGS:
        raise UserError(f"--task takes {', '.join(CONFIGS)}, got {name!r}")
    return name, rest


def option_values(words: Sequence[str], option: str) -> Iterator[str]:
    """Yield the values of an option that may be spelled ``--a.b-c V``, ``--a.b_c V`` or with ``=``."""
    spelled = {option, option.replace("-", "_").replace("__", "--", 1)}
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if name in spelled:
            yield value if equals else following


def _without_option(words: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    value, rest, left = None, [], iter(words)
    for word in left:
        name, equals, inside = word.partition("=")
        if name == option:
            value = inside if equals else next(left, "")
        else:
            rest.append(word)
    return value, rest


def _sections(words: Sequence[str]) -> set[str]:
    """Return the top-level sections that recipes and options name; a recipe that cannot be read is refused later."""
    sections = {word.removeprefix("--").partition(".")[0] for word in words if word.startswith("--")}
    for path in option_values(words, "--recipe"):
        try:
            tree = yaml.safe_load(find_recipe(Path(path)).read_text())
        except (OSError, yaml.YAMLError, RecipeError):
            continue
        sections |= {str(key) for key in tree} if isinstance(tree, dict) else set()
    return sections
