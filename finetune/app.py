"""The classification program: fine-tunes, or measures what ``--eval-only`` names; ``status RUN`` and ``results RUN`` only look."""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import yaml
from rich.console import Console

from engine.errors import one_line_errors
from engine.recipe import parse
from engine.status import status
from finetune.config import FinetuneConfig
from finetune.eval_only import measure
from finetune.results import FILE_NAME, results_table
from finetune.trainer import train


@one_line_errors
def main() -> None:
    """Run the command that the first word names, or train."""
    on_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if on_main else logging.ERROR, format="%(message)s")
    command = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if command is not None:
        command(sys.argv[2:])
        return
    config = parse(FinetuneConfig, with_own_recipe(with_shards(sys.argv[1:])))
    results = measure(config) if config.eval_only else train(config)
    if results and on_main:
        Console().print(results_table(results, title=config.eval_only or str(config.run.folder)))


def with_shards(words: list[str]) -> list[str]:
    """Return the command line, with the shards to measure on given as those to train on where nothing is trained."""
    val = _value(words, "--val-shards")
    if _value(words, "--eval-only") and val and not _value(words, "--data.shards"):
        return [*words, "--data.shards", val]
    return words


def with_own_recipe(words: list[str]) -> list[str]:
    """Return the command line with the recipe of the run to measure first, so that it is measured as it was there."""
    measured = _value(words, "--eval-only")
    recipe = Path(measured or "") / "config.yaml"
    if measured is None or not recipe.is_file() or "val_shards" not in yaml.safe_load(recipe.read_text()):
        return words
    return ["--recipe", str(recipe), "--run.folder", measured, *words]


def _value(words: list[str], option: str) -> str | None:
    spelled = {option, option.replace("-", "_").replace("__", "--", 1)}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in spelled:
            return value if equals else following
    return None


def _status(words: list[str]) -> None:
    """``status RUN``: step, time left, images/s, last checkpoint."""
    Console().print(status(_run_folder(words, "status")))


def _results(words: list[str]) -> None:
    """``results RUN``: the table of a finished run again."""
    path = _run_folder(words, "results") / FILE_NAME
    if not path.is_file():
        raise ValueError(f"{path} is not there yet: a run writes it at its end")
    Console().print(results_table(json.loads(path.read_text())["results"], title=str(path.parent)))


def _run_folder(words: list[str], command: str) -> Path:
    if len(words) != 1 or not Path(words[0]).is_dir():
        raise ValueError(f"{command} takes one run folder that exists, got {' '.join(words) or 'nothing'}")
    return Path(words[0])


COMMANDS: dict[str, Callable[[list[str]], None]] = {"status": _status, "results": _results}
