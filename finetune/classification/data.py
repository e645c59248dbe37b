"""The labelled shards of a run, checked before anything else starts, and which of their labels it may use."""

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.shards.labelled import check_labels, check_same_classes
from data.shards.shard_set import open_shards
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
        check_labels(shards, num_classes=num_classes, option=option, remedy="set a larger task.num-classes")
    check_same_classes(train, val, options=("data.shards", "val-shards"))
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
