"""Which rows of a table are to train and which to validate on, as one of its columns says.

    split: train, val, test, trainval      or subset, partition, set
    is_valid: True, False, 1, 0            or is_val, is_test, is_train

What is none of these is asked: a row that is taken for training by mistake spoils what is measured later.
"""

import logging
from collections.abc import Container, Sequence
from pathlib import Path

from data.sources.tables.labels import NO_COLUMN
from data.sources.trees.names import split_of
from data.split_names import Split
from engine.errors import UserError

logger = logging.getLogger(__name__)

SPLIT_COLUMNS = ("split", "subset", "partition", "set")
FLAG_COLUMNS: dict[str, tuple[Split, Split]] = {
    "is_valid": ("val", "train"),
    "is_val": ("val", "train"),
    "is_validation": ("val", "train"),
    "is_test": ("test", "train"),
    "is_train": ("train", "val"),
}
"""Columns of yes and no: the split of the rows that say yes, and that of the others."""
YES, NO = {"true", "1", "1.0", "yes", "t", "y"}, {"false", "0", "0.0", "no", "f", "n"}
BOTH = "trainval"
MOST_SHOWN = 6


def split_column(columns: Sequence[str], *, name: str | None, others: Container[str | None], table: Path) -> str | None:
    """Choose the column of splits: that of this name, or one with a usual name that is none of the ``others``.

    Raises:
        UserError: there is none of the name that is given.
    """
    if name == NO_COLUMN:
        return None
    if name is not None:
        if name not in columns:
            raise UserError(f"{table} has no column {name!r} for --split-column: it has {', '.join(columns)}")
        return name
    by_lower_case = {column.lower(): column for column in columns if column not in others}
    return next((by_lower_case[name] for name in (*SPLIT_COLUMNS, *FLAG_COLUMNS) if name in by_lower_case), None)


def rows_by_split(values: Sequence[str], *, column: str, table: Path) -> dict[str, list[int]] | None:
    """List the rows to train and to validate on; None where all rows say the same, so that nothing is divided.

    Rows to test on are for validation where none are.

    Raises:
        UserError: a value means no split, or no row is to train on.
    """
    if len(set(values)) == 1:
        return None
    meanings = {value: _meaning(value, column=column) for value in dict.fromkeys(values)}
    unknown = [value for value, split in meanings.items() if split is None]
    ignored = f"--split-column {NO_COLUMN} takes all rows without dividing them"
    if unknown:
        raise UserError(
            f"column {column!r} of {table} holds {_shown(list(meanings))}, of which {_shown(unknown)} is no split that "
            f"is known: write train, val or test in each row, or name another column; {ignored}"
        )
    splits = [meanings[value] for value in values]
    if "train" not in splits:
        raise UserError(f"column {column!r} of {table} holds {_shown(list(meanings))}, no row to train on; {ignored}")
    held_out = "val" if "val" in splits else "test"
    left = sum(split not in ("train", held_out) for split in splits)
    logger.info("splits are the column %r of %s; val is %s", column, table.name, held_out)
    if left:
        logger.warning("%s: %d rows to test on are left alone", table, left)
    rows = {"train": "train", "val": held_out}
    return {
        name: [number for number, each in enumerate(splits) if each == split]
        for name, split in rows.items()
        if split in splits
    }


def _meaning(value: str, *, column: str) -> Split | None:
    flag, word = FLAG_COLUMNS.get(column.lower()), value.lower()
    if flag is not None and (word in YES or word in NO):
        return flag[0] if word in YES else flag[1]
    return "train" if word == BOTH else split_of(value)


def _shown(values: Sequence[str]) -> str:
    more = f" and {len(values) - MOST_SHOWN} more" if len(values) > MOST_SHOWN else ""
    return ", ".join(repr(value[:60]) for value in values[:MOST_SHOWN]) + more
