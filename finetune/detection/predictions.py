"""Detections as COCO's results, from networks to files, and gathered from all processes.

Legend: n detections of one image, m side of a mask as the network gives it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from engine.distributed.engine import Engine
from engine.terms import Size

MASK_SHARE = 0.5

Detected = dict[str, Any]
"""One image: ``sample``, and lists ``boxes`` ([x, y, width, height] in pixels of the image itself), ``scores``,
``classes`` and, where there are any, ``masks`` (RLE)."""


def in_image(detections: dict[str, Tensor], *, content: Size, true_size: Size) -> dict[str, Tensor]:
    """Convert detections to pixels of the image itself: boxes [n, 4] clipped, masks [n, height, width] cut at 0.5.

    Args:
        detections: boxes in pixels of the canvas, scores, labels and perhaps masks [n, 1, m, m].
        content: height and width of the resized image on the canvas.
        true_size: height and width of the image.
    """
    (height, width), boxes = true_size, detections["boxes"]
    scale = boxes.new_tensor([width / content[1], height / content[0]]).repeat(2)
    limits = boxes.new_tensor([width, height]).repeat(2)
    moved = torch.minimum((boxes * scale).clamp(min=0), limits)
    inside = {**detections, "boxes": moved}
    if "masks" in detections:
        pasted = paste_masks_in_image(detections["masks"].float().cpu(), moved.float().cpu(), (height, width))
        inside["masks"] = pasted[:, 0] > MASK_SHARE
    return inside


def as_plain(detections: dict[str, Tensor], *, sample: int) -> Detected:
    """Convert the detections of one image (:func:`in_image`) to plain values."""
    boxes = detections["boxes"].double().cpu()
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    lines: Detected = {
        "sample": sample,
        "boxes": boxes.tolist(),
        "scores": detections["scores"].double().tolist(),
        "classes": detections["labels"].tolist(),
    }
    if "masks" in detections:
        lines["masks"] = [as_rle(mask) for mask in detections["masks"].numpy()]
    return lines


def as_rle(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Encode a boolean mask [height, width] as COCO's compressed RLE."""
    coded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = coded["counts"]
    return {"size": list(coded["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def gather(detections: Iterable[Detected], *, engine: Engine) -> list[Detected]:
    """Bring all processes' images, in the samples' order, to every process (collective)."""
    return sorted(engine.gather_lines(list(detections)), key=lambda one: one["sample"])


def as_coco(
    detections: Iterable[Detected], *, image_ids: list[int], category_ids: list[int]
) -> Iterator[dict[str, Any]]:
    """Yield COCO's results: one entry a detection, images in the samples' order, best score first."""
    for one in detections:
        for row, box in enumerate(one["boxes"]):
            line = {
                "image_id": image_ids[one["sample"]],
                "category_id": category_ids[one["classes"][row]],
                "bbox": box,
                "score": one["scores"][row],
            }
            yield {**line, "segmentation": one["masks"][row]} if "masks" in one else line
