"""How well images are told apart: accuracies, by class and as a confusion matrix; and their table.

Legend: n images, c classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from rich.table import Table
from torch import Tensor

TOP_K = 5


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The result of one evaluation."""

    num_images: int
    """Images that were classified, each once."""
    num_unreadable: int
    """Those of them that could not be decoded; they count as they were guessed."""
    loss: float
    """Mean cross-entropy."""
    top1: float
    """Share of images whose class was the best guess."""
    top5: float
    """Share of images whose class was among the five best guesses (all, with fewer classes)."""
    per_class: tuple[float | None, ...]
    """Top-1 by class; None for a class without images."""
    confusion: tuple[tuple[int, ...], ...]
    """Images by true class (row) and guessed class (column)."""

    def summary(self) -> dict[str, float]:
        """The figures that fit on a line."""
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss}


def score(
    *,
    labels: Int64[Tensor, " n"],
    guesses: Int64[Tensor, " n"],
    in_top_k: Bool[Tensor, " n"],
    losses: Float[Tensor, " n"],
    num_classes: int,
    num_unreadable: int = 0,
) -> Scores:
    """Compare guesses with true classes."""
    counts = torch.bincount(labels * num_classes + guesses, minlength=num_classes**2).view(num_classes, num_classes)
    right, of_class = counts.diagonal().tolist(), counts.sum(1).tolist()
    return Scores(
        num_images=len(labels),
        num_unreadable=num_unreadable,
        loss=float(losses.double().mean()),
        top1=sum(right) / len(labels),
        top5=float(in_top_k.double().mean()),
        per_class=tuple(hit / total if total else None for hit, total in zip(right, of_class, strict=True)),
        confusion=tuple(map(tuple, counts.tolist())),
    )


def as_json(scores: Scores, *, classes: tuple[str, ...] | None) -> dict[str, Any]:
    """Turn scores into JSON values, each class by its name or number."""
    names = classes or tuple(map(str, range(len(scores.per_class))))
    return {
        **scores.summary(),
        "num_images": scores.num_images,
        "num_unreadable": scores.num_unreadable,
        "per_class": dict(zip(names, scores.per_class, strict=True)),
        "confusion": [list(row) for row in scores.confusion],
    }


def results_table(results: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """Lay out results, with the hardest and easiest class of each."""
    table = Table(title=title)
    for column in ("weights", "step", "top-1 %", "top-5 %", "loss", "images", "hardest class", "easiest class"):
        table.add_column(column, no_wrap=column not in ("weights", "hardest class", "easiest class"))
    for line in results:
        hardest, easiest = _extremes(line.get("per_class") or {})
        table.add_row(
            line["name"],
            _formatted(line.get("step"), "d"),
            _percent(line.get("top1")),
            _percent(line.get("top5")),
            _formatted(line.get("loss"), ".4f"),
            _formatted(line.get("num_images"), "d"),
            hardest,
            easiest,
        )
    return table


def _extremes(per_class: dict[str, float | None]) -> tuple[str, str]:
    shares = sorted((share, name) for name, share in per_class.items() if share is not None)
    if not shares:
        return "-", "-"
    (low, hardest), (high, easiest) = shares[0], shares[-1]
    return f"{hardest} {100 * low:.1f}", f"{easiest} {100 * high:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _formatted(value: int | float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
