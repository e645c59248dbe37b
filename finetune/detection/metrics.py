"""COCO's box and mask average precision, by faster-coco-eval (equal to pycocotools), and the table of it."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from faster_coco_eval import COCO, COCOeval_faster
from rich.table import Table

Kind = Literal["box", "mask"]
IOU_TYPES: dict[Kind, Literal["bbox", "segm"]] = {"box": "bbox", "mask": "segm"}
FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
RECALLS = ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")
NONE = -1.0
COLUMNS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "AP_small", "APm": "AP_medium", "APl": "AP_large"}
"""Headings of the table, narrow enough for 80 characters, and the figures under them."""

Scores = dict[str, Any]
"""``box`` and, where masks are found, ``mask`` (COCO's figures), ``num_images`` and ``num_unreadable``."""


def average_precision(truth: dict[str, Any], predictions: list[dict[str, Any]], *, kind: Kind) -> dict[str, Any]:
    """Compute COCO's twelve figures and ``per_class`` (AP by category name), from 0 to 1; None where there is nothing.

    Args:
        truth: a COCO dataset: images, annotations, categories.
        predictions: COCO's results: image_id, category_id, bbox or segmentation, score.
        kind: what is compared: boxes or masks.
    """
    reference = COCO(copy.deepcopy(truth), print_function=_say_nothing)
    measured = COCOeval_faster(
        reference, reference.loadRes(_of_kind(predictions, kind)), IOU_TYPES[kind], print_function=_say_nothing
    )
    measured.evaluate()
    measured.accumulate()
    measured.summarize()
    figures: dict[str, Any] = dict(zip((*FIGURES, *RECALLS), map(_or_none, measured.all_stats[:12]), strict=True))
    names = {category["id"]: category["name"] for category in truth["categories"]}
    precision = measured.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; all sizes, most detections
    classes = zip(measured.params.catIds, precision.transpose(2, 0, 1), strict=True)
    return {**figures, "per_class": {names[number]: _mean_defined(values) for number, values in classes}}


def _of_kind(predictions: list[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """Copies with only boxes, or only masks: a mask's size class follows from its own area, not the box's."""
    dropped = "segmentation" if kind == "box" else "bbox"
    return [{name: value for name, value in line.items() if name != dropped} for line in predictions]


def _mean_defined(values: Any) -> float | None:
    defined = values[values > NONE]
    return float(defined.mean()) if defined.size else None


def _or_none(value: float) -> float | None:
    return None if value <= NONE else float(value)


def _say_nothing(*_messages: Any) -> None:
    """Take the library's progress messages."""


def flat(scores: Scores) -> dict[str, float | None]:
    """Give COCO's figures of boxes and masks names such as box_AP50."""
    return {
        f"{kind}_{name}": value
        for kind in _kinds(scores)
        for name, value in scores[kind].items()
        if name != "per_class"
    }


def summary(scores: Scores) -> str:
    """Put AP and AP50 of boxes and masks on a line."""
    parts = [
        f"{kind} AP {_percent(scores[kind]['AP'], ' %')}, AP50 {_percent(scores[kind]['AP50'], ' %')}"
        for kind in _kinds(scores)
    ]
    return ", ".join(parts)


def _kinds(scores: Scores) -> list[str]:
    return [kind for kind in ("box", "mask") if kind in scores]


def results_table(results: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """Lay out a row for boxes and one for masks of each set of weights, in percent."""
    table = Table(title=f"{title}, in %", padding=(0, 0, 0, 1))
    for column in ("weights", "step", "of", *COLUMNS, "images"):
        table.add_column(column, no_wrap=True)
    for line in results:
        for kind in ("box", "mask"):
            if kind in line:
                figures = (_percent(line[kind].get(figure)) for figure in COLUMNS.values())
                table.add_row(
                    line["name"], _formatted(line.get("step")), kind, *figures, _formatted(line.get("num_images"))
                )
    return table


def _percent(share: float | None, unit: str = "") -> str:
    return "-" if share is None else f"{100 * share:.1f}{unit}"


def _formatted(value: int | None) -> str:
    return "-" if value is None else str(value)
