"""How many samples each class has."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from data.shards.shard_set import ShardSet

MAX_ROWS = 40


def class_counts(shards: ShardSet) -> dict[str, int]:
    """Count the samples of each class by name; empty where samples have none."""
    labels = shards.labels()
    return {} if shards.classes is None or not (labels >= 0).any() else count_labels(labels, classes=shards.classes)


def count_labels(labels: npt.NDArray[np.int64], *, classes: tuple[str, ...]) -> dict[str, int]:
    """Count class numbers by class name; -1 is none."""
    counts = np.bincount(labels[labels >= 0], minlength=len(classes)).tolist()
    return dict(zip(told_apart(classes), counts, strict=False))


def told_apart(classes: Sequence[str]) -> tuple[str, ...]:
    """Add their numbers to the names that several classes have, as categories of COCO may."""
    uses = Counter(classes)
    return tuple(f"{name} (class {label})" if uses[name] > 1 else name for label, name in enumerate(classes))


def count_table(counts: dict[str, int]) -> Table:
    """Show all classes, or of many those with the most and the fewest samples."""
    return split_table(tuple(counts), splits={"samples": counts})


def split_table(classes: Sequence[str], *, splits: Mapping[str, Mapping[str, int]]) -> Table:
    """Show the classes with a column of counts for each split; of many, those with the most and the fewest samples."""
    table = Table("class", "name", *splits)
    names = told_apart(classes)
    rows = [(label, name, [counts.get(name, 0) for counts in splits.values()]) for label, name in enumerate(names)]
    gap: list[tuple[str, ...]] = []
    if len(rows) > MAX_ROWS:
        rows.sort(key=lambda row: -row[2][0])
        gap = [("...", f"{len(rows) - MAX_ROWS // 2} more", *("..." for _ in splits))]
        rows = [*rows[: MAX_ROWS // 4], *rows[-MAX_ROWS // 4 :]]
    shown = [(str(label), name, *map(str, counts)) for label, name, counts in rows]
    place = MAX_ROWS // 4 if gap else 0
    for row in [*shown[:place], *gap, *shown[place:]]:
        table.add_row(*map(Text, row))
    return table
