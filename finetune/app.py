"""The fine-tuning program: classifies, detects or segments; trains, or measures what ``--eval-only`` names; ``status RUN``
and ``results RUN`` only look, ``predict RUN IMAGES --out FOLDER`` says what a run sees in pictures, ``export RUN FILE`` writes
ONNX, or boxes with torch.export.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from engine.errors import UserError, one_line_errors
from engine.recipe import parse, plain
from engine.run.status import status
from finetune.choosing import CONFIGS, SECTIONS, choose_task, option_values
from finetune.commands.export import export_command
from finetune.commands.predict import predict
from finetune.evaluation.results import FILE_NAME
from finetune.network.weights import TASK_OF_PROGRAM, stored_description
from finetune.tasks import TASKS, task_of_run

APPLIED = ("score_stride",)
"""Options of a head that may be others where it is only measured."""


@one_line_errors
def main() -> None:
    """Run the command that the first word names, or train."""
    on_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if on_main else logging.ERROR, format="%(message)s")
    command = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if command is not None:
        command(sys.argv[2:])
        return
    given = with_shards(sys.argv[1:])
    stored = stored_recipe(given)
    own = ["--task", stored[0]] if stored else []
    name, words = choose_task([*own, *with_own_recipe(given)])
    config = parse(CONFIGS[name], words, below=stored[1] if stored and stored[0] == name else None)
    if config.eval_only:
        refuse_other_network(config, stored[1] if stored else run_recipe(given))
    task = TASKS[name]
    results = task.measure(config) if config.eval_only else task.train(config)
    if results and on_main:
        Console().print(task.table(results, title=config.eval_only or str(config.run.folder)))


def with_shards(words: list[str]) -> list[str]:
    """Return the command line, with the shards to measure on given as those to train on where nothing is trained."""
    val = _value(words, "--val-shards")
    if _value(words, "--eval-only") and val and not _value(words, "--data.shards"):
        return [*words, "--data.shards", val]
    return words


def with_own_recipe(words: list[str]) -> list[str]:
    """Return the command line with the recipe of the run to measure first, so that it is measured as it was there.

    A checkpoint is measured with the recipe of the run that it lies in.
    """
    named = _measured(words)
    folder = None if named is None else _run_of(named)
    return words if folder is None else ["--recipe", str(folder / "config.yaml"), "--run.folder", str(folder), *words]


def stored_recipe(words: list[str]) -> tuple[str, dict[str, Any]] | None:
    """Return the task of the checkpoint or best weights to measure, and the recipe in them, where no run lies around them.

    It does not say where the run was: results go to this command's own run folder.
    """
    named = _measured(words)
    if named is None or _run_of(named) is not None:
        return None
    known = stored_description(named)
    if known is None:
        return None
    run = {key: value for key, value in known["recipe"]["run"].items() if key != "folder"}
    return TASK_OF_PROGRAM[known["program"]], {**known["recipe"], "run": run}


def run_recipe(words: list[str]) -> dict[str, Any]:
    """Return the recipe of the run that is to be measured, or that the checkpoint to measure lies in; empty without one."""
    named = _measured(words)
    folder = None if named is None else _run_of(named)
    return {} if folder is None else yaml.safe_load((folder / "config.yaml").read_text())


def refuse_other_network(config: Any, trained: dict[str, Any]) -> None:
    """Refuse options of a head that was trained with others, which would change nothing: it is built as it was trained.

    Raises:
        UserError: there is one; says what it was trained with.
    """
    for section in SECTIONS.keys() & trained.keys() & vars(config).keys():
        for name, asked in plain(getattr(config, section)).items():
            was = trained[section].get(name, asked)
            if was != asked and name not in APPLIED:
                raise UserError(
                    f"eval-only: {section}.{name.replace('_', '-')} {asked} cannot be measured, {config.eval_only} was trained with "
                    f"{was}; leave it out"
                )


def _measured(words: list[str]) -> Path | None:
    """Return the folder that is to be measured, if it is one."""
    named = _value(words, "--eval-only")
    return Path(named) if named is not None and Path(named).is_dir() else None


def _run_of(measured: Path) -> Path | None:
    """Return the run folder that ``measured`` is or lies in, if it is there."""
    for folder in (measured, measured.parent.parent):
        recipe = folder / "config.yaml"
        if recipe.is_file() and "val_shards" in yaml.safe_load(recipe.read_text()):
            return folder
    return None


def _value(words: list[str], option: str) -> str | None:
    return next(option_values(words, option), None)


def _status(words: list[str]) -> None:
    """``status RUN``: step, time left, images/s, last checkpoint."""
    Console().print(status(_run_folder(words, "status")))


def _results(words: list[str]) -> None:
    """``results RUN``: the table of a finished run again."""
    path = _run_folder(words, "results") / FILE_NAME
    if not path.is_file():
        raise UserError(f"{path} is not there yet: a run writes it at its end")
    table = TASKS[task_of_run(path.parent)].table
    Console().print(table(json.loads(path.read_text())["results"], title=str(path.parent)))


def _run_folder(words: list[str], command: str) -> Path:
    if len(words) != 1 or not Path(words[0]).is_dir():
        raise UserError(f"{command} takes one run folder that exists, got {' '.join(words) or 'nothing'}")
    return Path(words[0])


def _predict(words: list[str]) -> None:
    """``predict RUN IMAGES --out FOLDER``: classes, objects or label maps as JSON, and drawn into the pictures."""
    predict(words, predictor_of=lambda folder: TASKS[task_of_run(folder)].predictor)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "status": _status,
    "results": _results,
    "predict": _predict,
    "export": export_command,
}
