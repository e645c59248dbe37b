"""The labelled data of a run, checked before anything else starts."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.shards.shard_set import ShardSet, open_shards
from engine.errors import UserError
from finetune.classification.label_subset import choose_labelled
from finetune.config import FinetuneConfig

logger = logging.getLogger(__name__)

LIST_NAME = "labelled_samples.tsv"


@dataclass(frozen=True, kw_only=True)
class LabelledShards:
    """What a run learns from and is measured on."""

    train: ShardSet
    """Only the samples whose labels may be used."""
    val: ShardSet
    """All samples that accuracy is measured on."""
    num_classes: int
    """Number of classes."""
    classes: tuple[str, ...] | None
    """Their names, where the manifest has them."""
    chosen: npt.NDArray[np.int64] | None
    """Numbers of the training samples, or None for all."""


def open_labelled(config: FinetuneConfig) -> LabelledShards:
    """Open both sets of shards.

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
    task, chosen = config.task, None
    if task.label_fraction < 1 or task.labels_per_class is not None:
        chosen = choose_labelled(
            train.labels(), seed=config.run.seed, fraction=task.label_fraction, per_class=task.labels_per_class
        )
        train = train.subset(chosen)
        logger.info("training on %d labelled samples", len(chosen))
    return LabelledShards(train=train, val=val, num_classes=num_classes, classes=classes, chosen=chosen)


def write_list(folder: Path, labelled: LabelledShards) -> Path:
    """Write the chosen samples into the run folder, as lines of number, class and shard; return the file."""
    assert labelled.chosen is not None
    shards = labelled.train.manifest.shards
    numbers = np.searchsorted(np.cumsum([shard.num_samples for shard in shards]), labelled.chosen, side="right")
    rows = zip(labelled.chosen.tolist(), labelled.train.labels().tolist(), numbers.tolist(), strict=True)
    lines = ["sample\tclass\tshard", *(f"{sample}\t{label}\t{shards[number].name}" for sample, label, number in rows)]
    path = folder / LIST_NAME
    path.write_text("\n".join(lines) + "\n")
    return path


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
            f"{option} {shards.folder}: {missing} of {len(labels)} samples have no label, and classification needs one for each "
            f"(the first: sample {int(np.argmax(labels < 0))}); write the shards from a folder with one subfolder per class"
        )
    if labels.max() >= num_classes:
        raise UserError(
            f"{option} {shards.folder} has class {int(labels.max())}, but there are {num_classes} classes, 0 to "
            f"{num_classes - 1}; set task.num-classes to at least {int(labels.max()) + 1}"
        )


def _num_classes(config: FinetuneConfig, classes: tuple[str, ...] | None, *, folders: Path | str) -> int:
    asked = config.task.num_classes
    if classes is None and asked is None:
        raise UserError(f"the manifests of {folders} and {config.val_shards} name no classes; set task.num-classes")
    if classes is not None and asked is not None and asked != len(classes):
        raise UserError(
            f"task.num-classes is {asked}, but the manifest of {folders} names {len(classes)} classes; "
            f"leave task.num-classes out or set it to {len(classes)}"
        )
    return asked if classes is None else len(classes)  # pyright: ignore[reportReturnType]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
