"""Labelled shards are checked before anything learns from them: a class for every sample, and the same in two sets."""

import numpy as np

from data.shards.shard_set import ShardSet
from engine.errors import UserError

SHOWN_NAMES = 3


def check_labels(shards: ShardSet, *, num_classes: int | None, option: str, remedy: str) -> None:
    """Refuse shards in which a sample has no label, or one that is too large.

    Args:
        shards: all are looked at, of a subset those selected.
        num_classes: classes that there are; None allows any number.
        option: what names the shards, for messages.
        remedy: what to do about too large a label.

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
    if num_classes is not None and labels.max() >= num_classes:
        raise UserError(
            f"{option} {shards.folder} has class {int(labels.max())}, but there are {num_classes} classes, 0 to "
            f"{num_classes - 1}; {remedy}"
        )


def check_same_classes(one: ShardSet, other: ShardSet, *, options: tuple[str, str]) -> None:
    """Refuse two sets whose classes have other names, or the same in another order: their numbers mean other things.

    Raises:
        UserError: says of both what they have.
    """
    if one.classes and other.classes and one.classes != other.classes:
        raise UserError(
            f"the classes of {options[0]} ({len(one.classes)}: {_differing(one.classes, other.classes)}) are not those "
            f"of {options[1]} ({len(other.classes)}: {_differing(other.classes, one.classes)}); write both with the "
            "same class folders"
        )


def _differing(names: tuple[str, ...], others: tuple[str, ...]) -> str:
    """Show the first names, from the first one on that is another there."""
    first = next((i for i, pair in enumerate(zip(names, others, strict=False)) if pair[0] != pair[1]), 0)
    first = first if first >= SHOWN_NAMES else 0
    shown = ", ".join(names[first : first + SHOWN_NAMES])
    return ("..., " if first else "") + shown + (", ..." if first + SHOWN_NAMES < len(names) else "")
