"""Options of the commands of finetune/main.py. Imports no torch."""

import dataclasses
import logging
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import tyro

from engine.commands import WIDTH, field_docs, say
from engine.errors import UserError
from engine.recipe import parse
from finetune.config import FinetuneConfig
from finetune.tasks import TASKS, choose_task, take_option

logger = logging.getLogger(__name__)

EVERYDAY = (
    "data.shards",
    "val_shards",
    "backbone.init",
    "backbone.name",
    "backbone.img_size",
    "run.folder",
    "data.batch_size",
    "optimizer.epochs",
    "optimizer.base_lr",
    "distributed.precision",
)
"""Options of every task that everybody needs."""
SHARED = ("data", "val_shards", "backbone", "optimizer", "run", "report", "distributed", "eval_only")
"""Sections that every task's recipes have."""
COLUMN = 32
"""Width of the names of options in the overview."""
Weights = Literal["raw", "ema", "best-raw", "best-ema"]


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What to measure, and the options that say how."""

    what: str
    """A run folder, a checkpoint, best weights, a backbone folder with a classifier, or a model name of timm's."""
    argv: tuple[str, ...]
    """Options of its task; what they leave out is as in the recipe that it was trained with."""
    program: str
    """Name of the program and its command, for messages."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Say what a trained network sees in images: classes, objects or label maps, as JSON and drawn into the images.

    FOLDER/predictions.json has an entry an image, in the order of their names; beside it lie NAME.overlay.png and, of
    runs that segment, NAME.labels.png with the class of each pixel (and NAME.similarities.png of SegViT's class
    queries).
    """

    run: tyro.conf.Positional[Path]
    """Run folder, one of its checkpoints, or best weights."""
    images: tyro.conf.Positional[Path]
    """An image, or a folder of images."""
    out: Path
    """Folder for the answers."""
    weights: Weights | None = None
    """raw (what None means) or ema of the newest checkpoint, or the best measured."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a trained network that takes raw pixels, and check the file against torch.

    Classifiers and segmenters become ONNX (needs the extra `export`), one-stage detectors boxes and scores before
    suppression as torch.export's FILE.pt2.
    """

    run: tyro.conf.Positional[Path]
    """Run folder, one of its checkpoints, or best weights."""
    file: tyro.conf.Positional[Path]
    """Where to, such as model.onnx, or model.pt2 of a detector."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; None is the run's."""
    dynamic_batch: bool = False
    """Take any number of images."""
    dynamic_size: bool = False
    """Take any size, where the network allows it."""
    weights: Weights | None = None
    """raw (what None means) or ema of the newest checkpoint, or the best measured."""


def parse_training(argv: Sequence[str], program: str) -> FinetuneConfig | EvaluationRequest:
    """Choose the task and fill its recipe; ``--eval-only WHAT`` means the command ``evaluate``.

    Raises:
        UserError: there is no such task, or the options belong to several.
    """
    named, rest = take_option(argv, "--eval-only")
    what = named[-1] if named else None
    if what == "":
        raise UserError("--eval-only takes what to measure, got nothing; it is now: finetune/main.py evaluate WHAT")
    if what is None:
        _help_on_request(argv, program=program, about="Fine-tune a backbone: classify, detect or segment.")
        name, options = choose_task(rest)
        config = parse(TASKS[name].config, options, program=program)
        what, rest = config.eval_only, list(argv)
        if what is None:
            return config
    logger.warning("--eval-only %s is now: finetune/main.py evaluate %s", what, what)
    return EvaluationRequest(what=what, argv=tuple(rest), program=program)


def parse_recipe(argv: Sequence[str], program: str) -> FinetuneConfig:
    """Choose the task and fill its recipe."""
    name, options = choose_task(argv)
    return parse(TASKS[name].config, options, program=program)


def parse_evaluation(argv: Sequence[str], program: str) -> EvaluationRequest:
    """Separate what is to be measured, the first argument, from the options.

    Raises:
        UserError: nothing is named.
    """
    _help_on_request(
        argv,
        program=f"{program} WHAT",
        about="Measure a run folder, a checkpoint, best weights, a backbone folder with a classifier, or a model of "
        "timm's on --val-shards.\nWhat the options leave out is as in the recipe that it was trained with; those of "
        "its network cannot be others.",
    )
    if not argv or argv[0].startswith("-"):
        raise UserError(
            f"{program} takes first what to measure, such as a run folder, got {argv[0] if argv else 'nothing'}"
        )
    return EvaluationRequest(what=argv[0], argv=tuple(argv[1:]), program=program)


def _help_on_request(argv: Sequence[str], *, program: str, about: str) -> None:
    """Show the options of the task that is meant, or of all tasks where none is, and end the program."""
    if not {"-h", "--help"} & set(argv):
        return
    name, options = choose_task(argv, default="")
    if name:
        parse(TASKS[name].config, options, program=program, about=about)  # which ends the program
    say("\n".join(_overview(program, about=about)))
    sys.exit(0)


def _overview(program: str, *, about: str) -> list[str]:
    """List the options of all tasks: those that they share once, then those that each has alone."""
    tasks = ",".join(TASKS)
    lines = [about, "", f"usage: {program} [--task {{{tasks}}}] [--recipe FILE]... [--extension FILE]... [OPTIONS]", ""]
    lines += ["The task is the one whose section the recipes or options hold, or --task; else it is classify."]
    lines += ["`--task NAME --help` shows a task's options in full.", ""]
    first, *_ = TASKS
    lines += [f"options of every task (with the defaults of {first}):", *_options(TASKS[first].config, sections=SHARED)]
    for name, entry in TASKS.items():
        own = [section.name for section in dataclasses.fields(entry.config) if section.name not in SHARED]
        lines += ["", f"options of {name} alone:", *_options(entry.config, sections=own)]
    return lines


def _options(config: type[Any], *, sections: Sequence[str]) -> list[str]:
    """List the options in some sections of a config, each with the first sentence of what stands below it."""
    lines: list[str] = []
    hints, defaults = get_type_hints(config), {each.name: each for each in dataclasses.fields(config)}
    for name in sections:
        if dataclasses.is_dataclass(hints[name]):
            factory = defaults[name].default_factory
            values = hints[name] if factory is dataclasses.MISSING else factory()
            lines += _section(hints[name], values, prefix=f"{name}.")
        else:
            lines += _option(f"--{name.replace('_', '-')}", field_docs(config)[name])
    return lines


def _section(section: type[Any], values: Any, *, prefix: str) -> list[str]:
    docs, hints, lines = field_docs(section), get_type_hints(section), []
    for field in dataclasses.fields(section):
        name, value = f"{prefix}{field.name}", getattr(values, field.name, dataclasses.MISSING)
        if dataclasses.is_dataclass(hints[field.name]):
            lines += _section(hints[field.name], hints[field.name], prefix=f"{name}.")
        else:
            default = "required" if value is dataclasses.MISSING else f"default: {value}"
            lines += _option(f"--{name.replace('_', '-')}", docs[field.name], default)
    return lines


def _option(name: str, doc: str, default: str = "") -> list[str]:
    sentence = " ".join(doc.split()).split(". ")[0].rstrip(".")
    text = f"{sentence} ({default})" if default else sentence
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {name:{COLUMN}} ", subsequent_indent=" " * (COLUMN + 3))
