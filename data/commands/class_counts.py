"""How many samples each class has."""

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
    return dict(zip(classes, counts, strict=False))


def count_table(counts: dict[str, int]) -> Table:
    """Show all classes, or of many those with the most and the fewest samples."""
    table = Table("class", "name", "samples")
    rows = [(str(label), Text(name), str(count)) for label, (name, count) in enumerate(counts.items())]
    if len(rows) > MAX_ROWS:
        rows.sort(key=lambda row: -int(row[2]))
        gap = ("...", Text(f"{len(rows) - MAX_ROWS // 2} more"), "...")
        rows = [*rows[: MAX_ROWS // 4], gap, *rows[-MAX_ROWS // 4 :]]
    for row in rows:
        table.add_row(*row)
    return table
