"""What the one loop of fine-tuning asks of a task.

A new task is a folder with a class that has all of :class:`Task`, and a line in ``finetune/tasks.py``;
``finetune/classification/task.py`` is the shortest example. The loop is ``finetune/train.py``, measuring without
training ``finetune/measure.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.table import Table
from torch import Tensor, nn

from data.loading.loader import Builder
from data.shards.shard_set import ShardSet
from engine.commands import resolve
from engine.distributed.engine import Engine
from engine.recipe import plain
from engine.run.folder import RunFolder
from engine.terms import MicroBatchKey, Size
from finetune.config import FinetuneConfig
from finetune.network.start import Start
from finetune.network.weights import Loaders, Trained, stored_metadata, task_in
from finetune.tasks import TASKS, choose_task

Results = list[dict[str, Any]]
"""One entry for each set of weights: its name, its step and the task's figures."""
RgbImage = npt.NDArray[np.uint8]
"""[height, width, 3], upright."""
RECIPE_NAME = "config.yaml"
LabelImage = npt.NDArray[np.uint8 | np.uint16]


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """What a run learns from and is measured on, checked."""

    train: ShardSet
    """The samples to learn from."""
    val: ShardSet
    """The samples to measure on."""
    classes: tuple[str, ...] | None
    """Names of the classes, where the shards have them."""
    num_classes: int
    """Number of classes."""
    subset: npt.NDArray[np.int64] | None = None
    """Numbers of the training samples where not all may be used."""
    repeats: int = 1
    """Visits that an epoch pays to each sample that it visits at all."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one network on the validation shards."""

    summary: str
    """For the terminal."""
    figures: dict[str, float | None]
    """For a line of ``evaluations.jsonl``."""
    result: dict[str, Any]
    """All of it, as JSON values."""


class Evaluator(Protocol):
    """Measures networks on one set of shards."""

    def evaluate(self, trained: Trained, *, predictions: Path) -> Evaluation:
        """Measure a network in evaluation mode on every sample once (collective).

        ``predictions`` is a file of the run folder for what the network says of each sample, where the task writes
        that.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one image."""

    record: dict[str, Any]
    """JSON values: classes with probabilities, objects, or each class's share of the image."""
    overlay: Image.Image
    """The answer drawn into the image."""
    label_map: LabelImage | None = None
    """[height, width]: the class of each pixel, of runs that segment."""
    similarities: Image.Image | None = None
    """Masks of the class queries beside the image, of runs that segment with SegViT."""


Predictor = Callable[[RgbImage], Prediction]


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A network from raw pixels, uint8 [b, 3, h, w], to float tensors, in evaluation mode."""

    network: nn.Module
    size: Size
    """Height and width that it is exported for, in pixels."""
    outputs: tuple[str, ...]
    """Names of what it returns."""
    classes: tuple[str, ...] | None = None
    """Names of its classes, where they are known."""
    format: Literal["onnx", "pt2"] = "onnx"
    """ONNX, or torch.export's own file."""


class Task(Protocol):
    """One run of a task: its data, its network, its loss, and how the network is measured and kept.

    The methods that are static serve networks that were trained in any run.
    """

    name: ClassVar[str]
    """The task on the command line and in checkpoints."""
    sample_columns: ClassVar[tuple[str, ...]]
    """Tensors of a micro-batch that ``report.samples`` writes down."""

    @staticmethod
    def open_data(config: Any) -> TaskData:
        """Open both sets of shards and refuse, with a ``UserError``, what cannot be learnt from or measured on."""
        ...

    def __init__(self, config: Any, *, start: Start, data: TaskData, engine: Engine, folder: Path) -> None:
        """Get ready to train; the main process may write into the run folder what the data shows (collective)."""
        ...

    @property
    def config(self) -> FinetuneConfig:
        """The recipe."""
        ...

    @property
    def data(self) -> TaskData:
        """What :meth:`open_data` opened."""
        ...

    @property
    def best_by(self) -> str:
        """Name of the figure that makes weights the best; higher is better."""
        ...

    @property
    def evaluator(self) -> Evaluator:
        """Measures on the run's own validation shards."""
        ...

    def untrained_results(self, folder: RunFolder) -> Results | None:
        """Measure a method that trains nothing, such as kNN; None where there is something to train (collective)."""
        ...

    def build_model(self) -> nn.Module:
        """Build the network with its first weights, a function of ``run.seed`` alone."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Say in JSON values, for every checkpoint, all that :meth:`build_bare` needs (:func:`describe` and more)."""
        ...

    def batch_builder(self) -> Builder:
        """Make what turns samples into a micro-batch in the loader's workers."""
        ...

    def losses(self, forward: Callable[..., Any], batch: Mapping[str, Any], *, key: MicroBatchKey) -> dict[str, Tensor]:
        """Run the network (``forward``) on a micro-batch; give ``loss`` and what else is worth a line in the report."""
        ...

    def write_best(
        self, folder: Path, *, metadata: dict[str, Any], state: dict[str, Tensor], step: int, weights: str
    ) -> None:
        """Keep the best weights, such as "best raw", where :meth:`find` finds them."""
        ...

    def hand_off(
        self, folder: Path, *, metadata: dict[str, Any], state: dict[str, Tensor], step: int, weights: str
    ) -> None:
        """Write what of the last weights, such as "last ema", others can use, as a folder that timm reads."""
        ...

    @staticmethod
    def find(what: str, *, img_size: Size | None = None) -> Loaders:
        """Find trained networks by the names of their weights: of a run, a checkpoint or best weights, or others.

        ``img_size`` asks for another input size than their own, of those whose size is fixed.
        """
        ...

    @staticmethod
    def build_bare(metadata: Mapping[str, Any]) -> nn.Module:
        """Build the network that :meth:`metadata` said, with random weights, to load others into."""
        ...

    @staticmethod
    def evaluator_of(config: Any, *, val: ShardSet, trained: Trained, engine: Engine) -> Evaluator:
        """Get ready to measure a trained network on ``val``; refuse classes that it was not trained on."""
        ...

    @staticmethod
    def predictor(trained: Trained) -> Predictor:
        """Make what a trained network says of single images."""
        ...

    @staticmethod
    def exportable(trained: Trained, *, size: Size | None) -> Exportable:
        """Make the form of a trained network that leaves this project, for its own input size or another one."""
        ...

    @staticmethod
    def table(results: Sequence[Mapping[str, Any]], *, title: str) -> Table:
        """Lay out results for the terminal."""
        ...


def describe(task: Task, *, start: Start) -> dict[str, Any]:
    """Say in JSON values what the checkpoints of every task say of their network, enough to build it again."""
    data = task.data
    return {
        "program": task.name,
        "architecture": start.architecture,
        "model_args": plain(start.model_args),
        "img_size": list(start.img_size),
        "mean": list(start.mean),
        "std": list(start.std),
        "windows": "exact" if start.exact_windows else "timm",
        "num_classes": data.num_classes,
        "classes": None if data.classes is None else list(data.classes),
        "manifest_digest": data.train.manifest.digest,
        "shards_per_folder": [len(part) for part in data.train.parts],
        "recipe": plain(task.config),
    }


def load_task(name: str) -> type[Task]:
    """Import a task of ``finetune/tasks.py``, and with it torch."""
    return resolve(TASKS[name].implementation)


def task_of_run(folder: Path) -> type[Task]:
    """Import the task of the run in ``folder``, or of the run whose checkpoint or best weights lie there."""
    metadata = stored_metadata(folder)
    if metadata is not None:
        return load_task(task_in(metadata))
    above = folder.parent.parent / RECIPE_NAME
    recipe = folder / RECIPE_NAME
    name, _ = choose_task(["--recipe", str(recipe if recipe.is_file() else above)])
    return load_task(name)
