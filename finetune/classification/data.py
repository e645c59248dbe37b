"""The labelled shards of a run, checked before anything else starts, and which of their labels it may use."""

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.shards.shard_set import ShardSet, open_shards
from engine.errors import UserError
from engine.randomness import stream
from finetune.classification.config import ClassifyConfig
from finetune.task import TaskData

logger = logging.getLogger(__name__)

LIST_NAME = "labelled_samples.tsv"


def open_data(config: ClassifyConfig) -> TaskData:
    """Open both sets of shards, of the first only the samples whose labels may be used.

    Raises:
        UserError: a sample has no label, or the classes do not fit; the message names the shards and both numbers.
    """
    train, val = (open_shards(part, cache=config.data.cache) for part in (config.data.shards, config.val_shards))
    classes = train.classes or val.classes
    num_classes = _num_classes(config, classes, folders=train.folder)
    for option, shards in (("data.shards", train), ("val-shards", val)):
        check_labels(shards, num_classes=num_classes, option=option)
    if train.classes and val.classes and train.classes != val.classes:
        raise UserError(
            f"the classes of data.shards ({len(train.classes)}: {_some(train.classes)}) are not those of val-shards "
            f"({len(val.classes)}: {_some(val.classes)}); write both with the same class folders"
        )
    task, subset = config.task, None
    if task.label_fraction < 1 or task.labels_per_class is not None:
        subset = choose_labelled(
            train.labels(), seed=config.run.seed, fraction=task.label_fraction, per_class=task.labels_per_class
        )
        train = train.subset(subset)
        logger.info("training on %d labelled samples", len(subset))
    return TaskData(train=train, val=val, classes=classes, num_classes=num_classes, subset=subset, repeats=task.repeats)


def write_subset(folder: Path, data: TaskData) -> None:
    """Write the samples that may be used into the run folder, as lines of number, class and shard."""
    assert data.subset is not None
    shards = data.train.manifest.shards
    numbers = np.searchsorted(np.cumsum([shard.num_samples for shard in shards]), data.subset, side="right")
    rows = zip(data.subset.tolist(), data.train.labels().tolist(), numbers.tolist(), strict=True)
    lines = ["sample\tclass\tshard", *(f"{sample}\t{label}\t{shards[number].name}" for sample, label, number in rows)]
    (folder / LIST_NAME).write_text("\n".join(lines) + "\n")


def check_labels(shards: ShardSet, *, num_classes: int, option: str) -> None:
    """Refuse shards in which a sample has no label, or one that is too large.

    Raises:
        UserError: says how many, and what to do.
    """
    labels = shards.labels()
    if not len(labels):
        raise UserError(f"{option} {shards.folder} holds no samples; write some with `python data/main.py write`")
    missing = int((labels < 0).sum())
    if missing:
        raise UserError(
            f"{option} {shards.folder}: {missing} of {len(labels)} samples have no label, and classification needs "
            f"one for each (the first: sample {int(np.argmax(labels < 0))}); write the shards from a folder with one "
            "subfolder per class"
        )
    if labels.max() >= num_classes:
        raise UserError(
            f"{option} {shards.folder} has class {int(labels.max())}, but there are {num_classes} classes, 0 to "
            f"{num_classes - 1}; set task.num-classes to at least {int(labels.max()) + 1}"
        )


def choose_labelled(
    labels: npt.NDArray[np.int64], *, seed: int, fraction: float = 1.0, per_class: int | None = None
) -> npt.NDArray[np.int64]:
    """Choose the sorted numbers of the samples to train on, drawn within each class.

    A smaller choice is part of a larger one with the same seed. A fraction leaves at least one sample of each class.

    Args:
        labels: every sample's class.
        seed: the run's seed.
        fraction: share of each class.
        per_class: samples of each class, instead of a share.

    Raises:
        UserError: a class has fewer samples than ``per_class``.
    """
    chosen: list[npt.NDArray[np.int64]] = []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(members))) if per_class is None else per_class
        if count > len(members):
            raise UserError(
                f"task.labels-per-class asks for {count} samples of class {label}, which has {len(members)}; ask for "
                "fewer"
            )
        chosen.append(stream(seed, "labels", label).permutation(members)[:count])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _num_classes(config: ClassifyConfig, classes: tuple[str, ...] | None, *, folders: Path | str) -> int:
    option = config.task.num_classes
    if classes is None and option is None:
        raise UserError(f"the manifests of {folders} and {config.val_shards} name no classes; set task.num-classes")
    if classes is not None and option is not None and option != len(classes):
        raise UserError(
            f"task.num-classes is {option}, but the manifest of {folders} names {len(classes)} classes; "
            f"leave task.num-classes out or set it to {len(classes)}"
        )
    return option if classes is None else len(classes)  # pyright: ignore[reportReturnType]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
