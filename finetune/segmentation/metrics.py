"""How well label maps agree: pixels by true class and guessed class, and what follows from them.

Legend: c classes, h w height and width in pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from finetune.segmentation.void import VOID


def confusion_matrix(
    labels: Int[Tensor, "*shape"], guesses: Int[Tensor, "*shape"], *, num_classes: int
) -> Int[Tensor, "c c"]:
    """Return the valid pixels by true class (row) and guessed class (column)."""
    valid = labels != VOID
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
        """Return the figures that fit on a line."""
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy}


def segment_scores(
    confusion: Int[Tensor, "c c"], *, num_images: int, num_unreadable: int, num_empty: int, images_per_s: float
) -> SegmentScores:
    """Return what follows from the pixels of all images."""
    right, true, guessed = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    union = (true + guessed - right).tolist()
    per_class = tuple(hit / all_ if all_ else None for hit, all_ in zip(right.tolist(), union, strict=True))
    known = [value for value in per_class if value is not None]
    return SegmentScores(
        num_images=num_images,
        num_unreadable=num_unreadable,
        num_empty=num_empty,
        miou=sum(known) / max(len(known), 1),
        pixel_accuracy=int(right.sum()) / max(int(confusion.sum()), 1),
        per_class=per_class,
        confusion=tuple(map(tuple, confusion.tolist())),
        images_per_s=images_per_s,
    )


def as_json(scores: SegmentScores, *, classes: tuple[str, ...] | None, **more: Any) -> dict[str, Any]:
    """Return the scores as JSON values, each class by its name or number."""
    names = classes or tuple(map(str, range(len(scores.per_class))))
    return {
        **more,
        **scores.summary(),
        "num_images": scores.num_images,
        "num_unreadable": scores.num_unreadable,
        "num_empty": scores.num_empty,
        "per_class": dict(zip(names, scores.per_class, strict=True)),
        "confusion": [list(row) for row in scores.confusion],
    }
