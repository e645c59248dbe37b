"""What the labels of a table mean: class numbers, names, or none; what can be either is asked.

Labels that are all whole numbers (also as pandas writes them, 1.0) are class numbers; others are class names, numbered
in sorted order. An empty one is none.
"""

import logging
import re
import unicodedata
from collections.abc import Sequence

from data.shards.class_names import MAX_CLASSES
from data.shards.index import UNLABELLED
from engine.errors import UserError

logger = logging.getLogger(__name__)

NO_COLUMN = "none"
MISSING = {"nan", "na", "n/a", "null", "none", "<na>"}
"""What programs write for no value; among names it is taken as a name."""
WHOLE = re.compile(r"\d{1,18}(\.0*)?", re.ASCII)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
SEVERAL = re.compile(r"\d+([ ,;|]+\d+)+", re.ASCII)
MOST_SHOWN = 60
"""Characters of a label in a message."""


def number_labels(
    values: Sequence[str], *, names: Sequence[str] | None, column: str, no_label: str | None
) -> tuple[list[int], tuple[str, ...]]:
    """Turn a column into class numbers, with the names of the classes.

    Raises:
        UserError: labels that are no classes, or can be meant in two ways.
    """
    # The same letters in other bytes are the same class, as they are of folders.
    values = [unicodedata.normalize("NFC", "" if value == no_label else value) for value in values]
    names = None if names is None else [unicodedata.normalize("NFC", name) for name in names]
    labels = {value for value in values if value}
    if not labels:
        raise UserError(f"column {column!r} holds no label; choose another with --label-column, or {NO_COLUMN}")
    listed = names is not None and labels <= set(names)
    missing = {label for label in labels if label.lower() in MISSING}
    rest = labels - missing
    if rest and all(WHOLE.fullmatch(label) for label in rest):
        if missing:
            logger.warning("column %r: %s is taken for no label", column, ", ".join(sorted(missing)))
        return _from_numbers(["" if value in missing else value for value in values], names=names, column=column)
    if not listed:
        _refuse_doubtful(labels, column=column)
    return _from_names(values, names=names, column=column)


def _from_numbers(
    values: Sequence[str], *, names: Sequence[str] | None, column: str
) -> tuple[list[int], tuple[str, ...]]:
    numbers = {value: int(value.partition(".")[0]) for value in set(values) if value}
    highest, lowest = max(numbers.values()), min(numbers.values())
    limit = len(names) if names else MAX_CLASSES
    if highest >= limit:
        raise UserError(f"column {column!r} holds class number {highest}, expected at most {limit - 1}")
    classes = tuple(names) if names else tuple(str(number) for number in range(highest + 1))
    used = len(set(numbers.values()))
    if lowest or used < len(classes):
        logger.warning(
            "column %r: its class numbers are from %d to %d, and %d of the %d classes from 0 on have no image",
            column,
            lowest,
            highest,
            len(classes) - used,
            len(classes),
        )
    return [numbers[value] if value else UNLABELLED for value in values], classes


def _from_names(
    values: Sequence[str], *, names: Sequence[str] | None, column: str
) -> tuple[list[int], tuple[str, ...]]:
    labels = {value for value in values if value}
    classes = tuple(names) if names else tuple(sorted(labels))
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = sorted(labels - numbers.keys())
    if unknown:
        raise UserError(
            f"column {column!r} holds {unknown[0][:MOST_SHOWN]!r}, which is not among the {len(classes)} class names "
            "given"
        )
    return [numbers[value] if value else UNLABELLED for value in values], classes


def _refuse_doubtful(labels: set[str], *, column: str) -> None:
    """Ask where labels are numbers that are no class numbers, or some are numbers and some are not."""
    numbers = {label for label in labels if NUMBER.fullmatch(label)}
    negative = sorted(label for label in numbers if label.startswith("-"))
    several = next((label for label in sorted(labels) if SEVERAL.fullmatch(label)), None)
    if several is not None:
        raise UserError(
            f"column {column!r} holds {several[:MOST_SHOWN]!r}, several labels of one image: only one is read"
        )
    names = "--classes FILE lists all labels in the order of their numbers"
    if numbers == labels and negative:
        raise UserError(
            f"column {column!r} holds {negative[0]}: say --no-label={negative[0]} if it means no label; if it is a "
            f"class, {names}"
        )
    if numbers == labels:
        broken = min(label for label in labels if not WHOLE.fullmatch(label))[:MOST_SHOWN]
        raise UserError(
            f"column {column!r} holds {broken}, which is no class number; choose another with --label-column "
            f"({NO_COLUMN} for images without labels); if it is a class, {names}"
        )
    if numbers:
        word = min(labels - numbers)[:MOST_SHOWN]
        raise UserError(
            f"column {column!r} holds numbers ({min(numbers)[:MOST_SHOWN]}, ...) and {word!r}: say --no-label={word!r} "
            f"if that means no label; if it is a class, {names}"
        )
