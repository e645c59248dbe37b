"""Trained weights of every task: what is said of them, where a run keeps them, and how they are found again.

runs/x/
├── checkpoints/step-000000400/    raw and averaged (ema) weights
├── best/raw-step-000000150/       weights.safetensors and described.json; of classifiers a folder that timm reads
└── best/raw-step-000000150.json   their scores, written last
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from backbones.weights.handoff import CONFIG, TIMM, read_backbone, stored_skeleton, write_backbone
from backbones.weights.stored import check_size, check_statistics
from engine.checkpoint.format import INDEX, read_index
from engine.checkpoint.slices import Kind
from engine.checkpoint.store import Checkpoint, newest_checkpoint, open_checkpoint
from engine.checkpoint.tensor_files import read_tensors, write_tensors
from engine.documents import DocumentError, member, read_json
from engine.errors import UserError
from engine.pixels import Pixels, Statistics
from engine.run.durable import write_durably
from engine.terms import Size
from finetune.network.start import Start

T = TypeVar("T")

METADATA, TENSORS = "described.json", "weights.safetensors"
OLD_TASKS = {"finetune": "classify"}
"""What tasks are called in checkpoints of earlier versions."""
MEMBERS = {"weights": str, "step": int, "program": str, "recipe": dict}
"""What ``described.json`` holds in every task beside the network itself."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network with its weights and what it needs to be used."""

    name: str
    """Which weights it has: raw, ema, "best raw", ..."""
    step: int | None
    """Optimizer steps they had, where that is known."""
    network: nn.Module
    """The network itself."""
    classes: tuple[str, ...] | None
    """Names of its classes, where they are known."""
    num_classes: int
    """Classes that it tells apart."""
    img_size: Size
    """Height and width that it was made for, in pixels."""
    mean: Statistics
    """Channel means of its pixels in [0, 1]."""
    std: Statistics
    """Channel standard deviations of its pixels in [0, 1]."""
    metadata: Mapping[str, Any]
    """What its checkpoint or folder says of it (``task.describe``), its recipe too; empty for networks of others."""

    @property
    def pixels(self) -> Pixels:
        """How its images are normalised."""
        return Pixels(self.mean, self.std)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of its classes, or their numbers."""
        return self.classes or tuple(map(str, range(self.num_classes)))


Loaders = dict[str, Callable[[], Trained]]
"""What loads each set of weights, by its name."""


def start_from(metadata: Mapping[str, Any]) -> Start:
    """Read the architecture out of what is stored of a network, without weights.

    Raises:
        UserError: it is no network's.
    """
    try:
        stored = dict(metadata)
        height, width = member(stored, "img_size", tuple[int, int])
        start = Start(
            architecture=member(stored, "architecture", str),
            model_args=member(stored, "model_args", dict[str, Any]),
            img_size=(height, width),
            mean=three(member(stored, "mean", tuple[float, float, float])),
            std=three(member(stored, "std", tuple[float, float, float])),
            folder=None,
            exact_windows=stored.get("windows") != TIMM,
        )
        check_size(start.img_size, name="img_size")
        check_statistics(start.mean, start.std)
    except UserError as error:
        raise UserError(f"what is stored of the network is nonsense: {error}") from error
    return start


def as_trained(network: nn.Module, *, name: str, step: int | None, metadata: Mapping[str, Any]) -> Trained:
    """Put a network together with what is stored of it."""
    start, classes = start_from(metadata), metadata["classes"]
    return Trained(
        name=name,
        step=step,
        network=network,
        classes=None if classes is None else tuple(classes),
        num_classes=metadata["num_classes"],
        img_size=start.img_size,
        mean=start.mean,
        std=start.std,
        metadata=metadata,
    )


def task_in(metadata: Mapping[str, Any]) -> str:
    """Name the task that stored metadata are of, by its present name."""
    program = str(metadata.get("program", "pretrain"))
    return OLD_TASKS.get(program, program)


def stored_metadata(folder: Path) -> dict[str, Any] | None:
    """Read what a checkpoint or best weights say of themselves, task and recipe too; None where nothing does."""
    if (folder / METADATA).is_file():
        return read_described(folder)
    if (folder / CONFIG).is_file():
        provenance = read_backbone(folder).provenance
        return {"program": "classify", **provenance} if "method" in provenance else None
    if (folder / INDEX).is_file():
        state = read_index(folder)["state"]
        return state if "program" in state else None
    return None


def read_described(folder: Path) -> dict[str, Any]:
    """Read what a folder of best weights says of them.

    Raises:
        UserError: the file is damaged; the message names the place.
    """
    path = folder / METADATA
    metadata = read_json(path)
    try:
        for name, kind in MEMBERS.items():
            member(metadata, name, kind)
    except DocumentError as error:
        raise UserError(f"{path}: {error}; restore the file, or take other weights of the run") from None
    return metadata


def find_weights(path: Path, *, task: str, build: Callable[[Mapping[str, Any]], nn.Module]) -> Loaders:
    """Find the weights of a run folder's newest checkpoint, of a checkpoint, or in a folder of best weights.

    Args:
        path: the folder.
        task: whose weights they must be.
        build: makes the network that metadata describe, to load weights into.

    Raises:
        UserError: there are none, or they are of another program or task.
    """
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give that of a run, of one of its checkpoints or of best weights")
    if (path / METADATA).is_file():
        metadata = read_described(path)
        _check_task(path, metadata, task=task)
        return {metadata["weights"]: partial(_load_folder, path, metadata, build)}
    checkpoint = _checkpoint(path)
    _check_task(checkpoint.path, checkpoint.state, task=task)
    kinds: dict[str, Kind] = {"raw": "weight", **({"ema": "ema"} if checkpoint.names("ema") else {})}
    return {name: partial(_load_checkpoint, checkpoint, name, kind, build) for name, kind in kinds.items()}


def choose_weights(run: Path, choice: str | None) -> tuple[Path, str | None]:
    """Find the folder of the weights that a choice on a command line means, and their name there.

    No choice (raw, ema, best-raw, best-ema) means raw weights, or those that a folder of best weights holds.

    Raises:
        UserError: the run keeps no best weights.
    """
    best, dash, weights = (choice or "").partition("-")
    if not dash:
        return run, choice
    if (run / METADATA).is_file() or (run / CONFIG).is_file():
        return run, f"{best} {weights}"
    folder = newest_best(run, weights)
    if folder is None:
        raise UserError(f"{run} keeps no best {weights} weights; choose other --weights")
    return folder, f"{best} {weights}"


def pick_weights(loaders: Mapping[str, T], name: str | None, *, where: Path) -> T:
    """Pick weights by name; None takes raw, or the only ones where there are others.

    Raises:
        UserError: the run has no such weights.
    """
    if name is None and len(loaders) == 1:
        return next(iter(loaders.values()))
    name = name or "raw"
    if name not in loaders:
        raise UserError(f"{where} has no {name} weights, only {', '.join(loaders)}; choose with --weights")
    return loaders[name]


def best_folder(run: Path, weights: str, step: int) -> Path:
    """Say where a run keeps its best weights of one kind, raw or ema, if they are those of ``step``."""
    return run / "best" / f"{weights}-step-{step:09d}"


def scores_file(folder: Path) -> Path:
    """Say where the scores of best weights are, beside their folder."""
    return folder.with_suffix(".json")


def is_whole(folder: Path) -> bool:
    """Whether best weights were written to the end: their scores come last."""
    return folder.is_dir() and scores_file(folder).is_file()


def newest_best(run: Path, weights: str) -> Path | None:
    """Find a run's best weights of one kind; older ones are there for older checkpoints."""
    folders = sorted(path for path in (run / "best").glob(f"{weights}-step-*") if is_whole(path))
    return folders[-1] if folders else None


def write_best(folder: Path, *, metadata: dict[str, Any], state: dict[str, Tensor], step: int, weights: str) -> None:
    """Write weights (such as "best raw") and buffers as a folder that :func:`find_weights` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / TENSORS, state)
    labelled = {**metadata, "step": step, "weights": weights}
    write_durably(folder / METADATA, json.dumps(labelled).encode())


def hand_off_backbone(
    folder: Path,
    *,
    metadata: Mapping[str, Any],
    model_args: dict[str, Any],
    state: dict[str, Tensor],
    step: int,
    weights: str,
) -> None:
    """Write the backbone of a trained network, without its head, as a folder that timm reads.

    Args:
        folder: where to.
        metadata: of the whole network.
        model_args: what timm makes the backbone with.
        state: the backbone's weights and buffers, under its own names.
        step: optimizer steps that they had.
        weights: which they are, such as "last raw".
    """
    origin = {key: metadata[key] for key in ("program", "classes", "manifest_digest", "recipe", "windows")}
    write_backbone(
        folder,
        architecture=metadata["architecture"],
        model_args=model_args,
        state=state,
        mean=metadata["mean"],
        std=metadata["std"],
        provenance={**origin, "step": step, "weights": weights},
    )


def three(values: Any) -> Statistics:
    """Read a mean or standard deviation of the channels out of JSON."""
    red, green, blue = values
    return float(red), float(green), float(blue)


def _check_task(where: Path, metadata: Mapping[str, Any], *, task: str) -> None:
    theirs = task_in(metadata)
    if theirs == "pretrain":
        raise UserError(
            f"{where} is a checkpoint of pretraining, which has no head; fine-tune its backbone/ folder first, or "
            "measure that with --task.method knn"
        )
    if theirs != task:
        raise UserError(f"{where} holds weights of --task {theirs}; expected those of --task {task}")


def _checkpoint(path: Path) -> Checkpoint:
    if not (path / "checkpoints").is_dir():
        return open_checkpoint(path)
    newest = newest_checkpoint(path / "checkpoints")
    if newest is None:
        raise UserError(f"the run {path} has no checkpoint yet; expected one in {path / 'checkpoints'}")
    return newest


def _load_checkpoint(
    checkpoint: Checkpoint, name: str, kind: Kind, build: Callable[[Mapping[str, Any]], nn.Module]
) -> Trained:
    _check_network(checkpoint.state, where=checkpoint.path)
    network = build(checkpoint.state)
    checkpoint.load_weights(network, kind=kind, architecture=checkpoint.state.get("architecture"))
    return as_trained(network.eval(), name=name, step=checkpoint.step, metadata=checkpoint.state)


def _load_folder(folder: Path, metadata: dict[str, Any], build: Callable[[Mapping[str, Any]], nn.Module]) -> Trained:
    _check_network(metadata, where=folder)
    network = build(metadata)
    try:
        network.load_state_dict(read_tensors(folder / TENSORS))
    except RuntimeError as error:
        raise UserError(f"{folder / TENSORS} does not fit {metadata['architecture']}: {error}") from error
    return as_trained(network.eval(), name=metadata["weights"], step=metadata["step"], metadata=metadata)


def _check_network(metadata: Mapping[str, Any], *, where: Path) -> None:
    """Refuse, before anything is made of it, what describes no network: it may come from anywhere."""
    try:
        start = start_from(metadata)
        stored_skeleton(start.architecture, start.model_args)
        member(dict(metadata), "num_classes", int)
        if member(dict(metadata), "classes", object) is not None:
            member(dict(metadata), "classes", list[str])
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
