"""How well label maps agree: pixels by true class and guessed class, what follows from them, and the table of it.

Legend: c classes, h w height and width in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from rich.table import Table
from torch import Tensor

from finetune.segmentation.labels import IGNORE_INDEX


def confusion_matrix(
    labels: Int[Tensor, "*shape"], guesses: Int[Tensor, "*shape"], *, num_classes: int
) -> Int[Tensor, "c c"]:
    """Count the valid pixels by true class (row) and guessed class (column)."""
    valid = labels != IGNORE_INDEX
    places = labels[valid].long() * num_classes + guesses[valid].long()
    return torch.bincount(places, minlength=num_classes**2).view(num_classes, num_classes)


@dataclass(frozen=True, kw_only=True)
class SegmentScores:
    """The result of one evaluation."""

    num_images: int
    """Images that were segmented, each once."""
    num_unreadable: int
    """Those of them that could not be read, with their label map; they count nothing."""
    num_empty: int
    """Those of them whose label map is void all over; they count nothing."""
    miou: float
    """Mean over the classes that are there, or were guessed, of intersection over union."""
    pixel_accuracy: float
    """Share of valid pixels whose class was guessed."""
    per_class: tuple[float | None, ...]
    """Intersection over union by class; None for a class that is neither there nor guessed."""
    confusion: tuple[tuple[int, ...], ...]
    """Valid pixels by true class (row) and guessed class (column)."""
    images_per_s: float
    """Images segmented and compared a second, by all processes together, reading included."""

    def summary(self) -> dict[str, float]:
        """The figures that fit on a line."""
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy}


def segment_scores(
    confusion: Int[Tensor, "c c"], *, num_images: int, num_unreadable: int, num_empty: int, images_per_s: float
) -> SegmentScores:
    """Derive the figures from the pixels of all images."""
    right, true, guessed = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    union = (true + guessed - right).tolist()
    per_class = tuple(hit / all_ if all_ else None for hit, all_ in zip(right.tolist(), union, strict=True))
    defined = [value for value in per_class if value is not None]
    return SegmentScores(
        num_images=num_images,
        num_unreadable=num_unreadable,
        num_empty=num_empty,
        miou=sum(defined) / max(len(defined), 1),
        pixel_accuracy=int(right.sum()) / max(int(confusion.sum()), 1),
        per_class=per_class,
        confusion=tuple(map(tuple, confusion.tolist())),
        images_per_s=images_per_s,
    )


def as_json(scores: SegmentScores, *, classes: tuple[str, ...] | None) -> dict[str, Any]:
    """Turn scores into JSON values, each class by its name or number."""
    names = classes or tuple(map(str, range(len(scores.per_class))))
    return {
        **scores.summary(),
        "num_images": scores.num_images,
        "num_unreadable": scores.num_unreadable,
        "num_empty": scores.num_empty,
        "per_class": dict(zip(names, scores.per_class, strict=True)),
        "confusion": [list(row) for row in scores.confusion],
    }


def results_table(results: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """Lay out results, with the hardest and easiest class of each."""
    table = Table(title=title)
    for column in ("weights", "step", "mIoU %", "pixel accuracy %", "images", "hardest class", "easiest class"):
        table.add_column(column, no_wrap=column not in ("weights", "hardest class", "easiest class"))
    for line in results:
        by_share = sorted((share, name) for name, share in line["per_class"].items() if share is not None)
        ends = (f"{name} {100 * share:.1f}" for share, name in (by_share[0], by_share[-1])) if by_share else ("-", "-")
        shares = (f"{100 * line[figure]:.2f}" for figure in ("miou", "pixel_accuracy"))
        table.add_row(line["name"], str(line["step"]), *shares, str(line["num_images"]), *ends)
    return table
