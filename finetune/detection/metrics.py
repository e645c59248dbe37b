"""COCO's box and mask average precision, by faster-coco-eval; equal to pycocotools on the same predictions."""

import copy
from typing import Any, Literal

from faster_coco_eval import COCO, COCOeval_faster

Kind = Literal["box", "mask"]
IOU_TYPES: dict[Kind, Literal["bbox", "segm"]] = {"box": "bbox", "mask": "segm"}
FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
RECALLS = ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")
NONE = -1.0


def average_precision(truth: dict[str, Any], predictions: list[dict[str, Any]], *, kind: Kind) -> dict[str, Any]:
    """Return COCO's twelve figures and ``per_class`` (AP by category name), from 0 to 1; None where nothing is to be found.

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
    figures: dict[str, Any] = dict(zip((*FIGURES, *RECALLS), map(_known, measured.all_stats[:12]), strict=True))
    names = {category["id"]: category["name"] for category in truth["categories"]}
    precision = measured.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; all sizes, most detections
    classes = zip(measured.params.catIds, precision.transpose(2, 0, 1), strict=True)
    return {**figures, "per_class": {names[number]: _mean_known(values) for number, values in classes}}


def _of_kind(predictions: list[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """Return copies with only boxes, or only masks: a mask's size class follows from its own area, not the box's."""
    dropped = "segmentation" if kind == "box" else "bbox"
    return [{name: value for name, value in line.items() if name != dropped} for line in predictions]


def _mean_known(values: Any) -> float | None:
    known = values[values > NONE]
    return float(known.mean()) if known.size else None


def _known(value: float) -> float | None:
    return None if value <= NONE else float(value)


def _say_nothing(*_words: Any) -> None:
    """Take the library's progress messages."""
