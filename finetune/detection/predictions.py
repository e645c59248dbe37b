"""Detections as COCO's results, from networks to files, and gathered from all processes.

Legend: n detections of one image, m side of a mask as the network gives it.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from engine.distributed.engine import Engine
from engine.run.durable import write_durably
from engine.terms import Size

MASK_SHARE = 0.5

Found = dict[str, Any]
"""One image: ``sample``, and lists ``boxes`` ([x, y, width, height] in pixels of the picture itself), ``scores``, ``classes``
and, where there are any, ``masks`` (RLE)."""


def in_picture(detections: dict[str, Tensor], *, content: Size, true_size: Size) -> dict[str, Tensor]:
    """Return detections in pixels of the picture itself: boxes [n, 4] clipped to it, masks [n, height, width] cut at 0.5.

    Args:
        detections: boxes in pixels of the canvas, scores, labels and perhaps masks [n, 1, m, m].
        content: height and width of the resized picture on the canvas.
        true_size: height and width of the picture.
    """
    (height, width), boxes = true_size, detections["boxes"]
    scale = boxes.new_tensor([width / content[1], height / content[0]]).repeat(2)
    limits = boxes.new_tensor([width, height]).repeat(2)
    moved = torch.minimum((boxes * scale).clamp(min=0), limits)
    found = {**detections, "boxes": moved}
    if "masks" in detections:
        pasted = paste_masks_in_image(detections["masks"].float().cpu(), moved.float().cpu(), (height, width))
        found["masks"] = pasted[:, 0] > MASK_SHARE
    return found


def as_found(detections: dict[str, Tensor], *, sample: int) -> Found:
    """Return the detections of one picture (:func:`in_picture`) as plain values."""
    boxes = detections["boxes"].double().cpu()
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    found: Found = {
        "sample": sample,
        "boxes": boxes.tolist(),
        "scores": detections["scores"].double().tolist(),
        "classes": detections["labels"].tolist(),
    }
    if "masks" in detections:
        found["masks"] = [as_rle(mask) for mask in detections["masks"].numpy()]
    return found


def as_rle(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return a boolean mask [height, width] as COCO's compressed RLE."""
    coded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = coded["counts"]
    return {"size": list(coded["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def gather(found: Iterable[Found], *, engine: Engine) -> list[Found]:
    """Return all processes' images in the samples' order, on every process (collective)."""
    return sorted(engine.gather_lines(list(found)), key=lambda one: one["sample"])


def as_coco(found: Iterable[Found], *, image_ids: list[int], category_ids: list[int]) -> list[dict[str, Any]]:
    """Return COCO's results: one entry a detection, images in the samples' order, best score first."""
    return list(_coco_lines(found, image_ids=image_ids, category_ids=category_ids))


def write_predictions(path: Path, predictions: list[dict[str, Any]]) -> None:
    """Write COCO's results file."""
    write_durably(path, json.dumps(predictions).encode())


def _coco_lines(found: Iterable[Found], *, image_ids: list[int], category_ids: list[int]) -> Iterator[dict[str, Any]]:
    for one in found:
        for row, box in enumerate(one["boxes"]):
            line = {
                "image_id": image_ids[one["sample"]],
                "category_id": category_ids[one["classes"][row]],
                "bbox": box,
                "score": one["scores"][row],
            }
            yield {**line, "segmentation": one["masks"][row]} if "masks" in one else line
