"""Trained weights of every task: what is said of them, where a run keeps them, and how they are found again.

runs/x/
├── checkpoints/step-000000400/    raw and averaged (ema) weights
└── best/raw-step-000000150/       weights.safetensors and described.json; of classifiers a folder that timm reads
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backbones.weights.handoff import CONFIG, read_backbone
from data.shards.shard_set import ShardSet
from engine.checkpoint.format import INDEX, read_index
from engine.checkpoint.slices import Kind
from engine.checkpoint.store import Checkpoint, newest_checkpoint, open_checkpoint
from engine.config import RunConfig
from engine.errors import UserError
from engine.pixels import Statistics
from engine.recipe import plain
from engine.run.durable import fsync_folder, write_durably
from finetune.evaluation.log import newest_best
from finetune.network.start import Start

DESCRIBED, TENSORS = "described.json", "weights.safetensors"
TASK_OF_PROGRAM = {"finetune": "classify", "detect": "detect", "segment": "segment"}
"""What the program of a checkpoint is on the command line."""
CHOICES = ("raw", "ema", "best-raw", "best-ema")
"""Weights that may be chosen on a command line."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One set of trained weights, not read yet."""

    name: str
    """raw or ema, best raw or best ema."""
    step: int
    """Optimizer steps they had."""
    described: dict[str, Any]
    """What :func:`describe` said."""
    fill: Callable[[nn.Module], None]
    """Copies them into a network; refuses other names or shapes with a ``ValueError``."""


def describe(
    program: str, config: Any, *, start: Start, train: ShardSet, classes: Iterable[str] | None, num_classes: int
) -> dict[str, Any]:
    """Return what every checkpoint of a program says about its network, enough to build it again."""
    return {
        "program": program,
        "architecture": start.architecture,
        "model_args": plain(start.model_args),
        "img_size": list(start.img_size),
        "mean": list(start.mean),
        "std": list(start.std),
        "num_classes": num_classes,
        "classes": None if classes is None else list(classes),
        "manifest_digest": train.manifest.digest,
        "shards_per_folder": [len(part) for part in train.parts],
        "recipe": plain(config),
    }


def described_start(described: dict[str, Any]) -> Start:
    """Return the network of :func:`describe` as it will be built, without weights."""
    return Start(
        architecture=described["architecture"],
        model_args=described["model_args"],
        img_size=(described["img_size"][0], described["img_size"][1]),
        mean=three(described["mean"]),
        std=three(described["std"]),
        folder=None,
    )


def find_weights(path: Path, *, program: str) -> dict[str, Weights]:
    """Return the weights, by name, of a run folder's newest checkpoint, of a checkpoint, or in a folder of best weights.

    Raises:
        UserError: there are none, or they are of another program.
    """
    if (path / DESCRIBED).is_file():
        where, found = path, [_from_folder(path)]
    else:
        checkpoint = _checkpoint(path)
        where, found = checkpoint.path, _from_checkpoint(checkpoint)
    theirs = found[0].described.get("program", "pretrain")
    if theirs == "pretrain":
        raise UserError(
            f"{where} is a checkpoint of pretraining, which has no head; fine-tune its backbone/ folder first, or measure that "
            "with --task.method knn"
        )
    if theirs != program:
        raise UserError(
            f"{where} holds weights of --task {TASK_OF_PROGRAM[theirs]}; expected those of --task {TASK_OF_PROGRAM[program]}"
        )
    return {weights.name: weights for weights in found}


def stored_description(folder: Path) -> dict[str, Any] | None:
    """Return what a checkpoint or best weights say about themselves, ``program`` and ``recipe`` among it; None of others."""
    if (folder / DESCRIBED).is_file():
        return json.loads((folder / DESCRIBED).read_text())
    if (folder / CONFIG).is_file():
        known = read_backbone(folder).provenance
        return {"program": "finetune", **known} if "method" in known else None
    if (folder / INDEX).is_file():
        state = read_index(folder)["state"]
        return state if "program" in state else None
    return None


def choose_weights(run: Path, choice: str | None) -> tuple[Path, str | None]:
    """Return where the weights are that a choice on a command line means (one of ``CHOICES``), and their name there.

    No choice means raw weights, or those that a folder of best weights holds.

    Raises:
        UserError: the run keeps no best weights.
    """
    best, dash, weights = (choice or "").partition("-")
    if not dash:
        return run, choice
    if (run / DESCRIBED).is_file() or (run / CONFIG).is_file():
        return run, f"{best} {weights}"
    folder = newest_best(run, weights)
    if folder is None:
        raise UserError(f"{run} keeps no best {weights} weights; choose other --weights")
    return folder, f"{best} {weights}"


def write_best(folder: Path, *, described: dict[str, Any], state: dict[str, Tensor], step: int, weights: str) -> None:
    """Write weights and buffers as a folder that :func:`find_weights` reads; ``weights`` says which they are (raw, ema)."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{TENSORS}"
    save_file({name: value.contiguous() for name, value in state.items()}, beside)
    beside.rename(folder / TENSORS)
    fsync_folder(folder)
    known = {**described, "step": step, "weights": f"best {weights}"}
    write_durably(folder / DESCRIBED, json.dumps(known).encode())


def results_folder(measured: Path, *, run: RunConfig) -> Path:
    """Return where the scores of ``eval_only`` go: ``run.folder`` where it was given, else the measured run itself."""
    ours = run.folder == RunConfig().folder and (measured / "config.yaml").exists()
    return measured if ours else run.folder


def three(values: Any) -> Statistics:
    """Return a mean or standard deviation of the channels, read from JSON."""
    red, green, blue = values
    return float(red), float(green), float(blue)


def _checkpoint(path: Path) -> Checkpoint:
    if not (path / "checkpoints").is_dir():
        return open_checkpoint(path)
    newest = newest_checkpoint(path / "checkpoints")
    if newest is None:
        raise UserError(f"the run {path} has no checkpoint yet; expected one in {path / 'checkpoints'}")
    return newest


def _from_checkpoint(checkpoint: Checkpoint) -> list[Weights]:
    kinds: dict[str, Kind] = {"raw": "weight", **({"ema": "ema"} if checkpoint.names("ema") else {})}
    return [
        Weights(
            name=name,
            step=checkpoint.step,
            described=checkpoint.state,
            fill=partial(checkpoint.load_weights, kind=kind, architecture=checkpoint.state.get("architecture")),
        )
        for name, kind in kinds.items()
    ]


def _from_folder(folder: Path) -> Weights:
    described = json.loads((folder / DESCRIBED).read_text())

    def fill(network: nn.Module) -> None:
        try:
            network.load_state_dict(load_file(folder / TENSORS))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{folder / TENSORS} does not fit {described['architecture']}: {error}") from error

    return Weights(name=described["weights"], step=described["step"], described=described, fill=fill)
