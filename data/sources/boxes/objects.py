"""Objects as samples hold them (data/sources/coco.py), made from boxes and polygons in pixels."""

import json
import math
from collections.abc import Sequence
from typing import Any

from data.images.decode import BadImage
from engine.terms import Size


def box_object(
    category: int, *, corners: tuple[float, float, float, float], size: Size, where: str, is_crowd: bool = False
) -> dict[str, Any]:
    """Describe a box (left, top, right, bottom), cut at the image's borders.

    Raises:
        BadImage: it is none, as one that ends before it begins; ``where`` says whose it is.
    """
    if not all(map(math.isfinite, corners)):
        raise BadImage(f"{where} has a box with a number that is not finite")
    if corners[2] < corners[0] or corners[3] < corners[1]:
        shown = ", ".join(f"{value:g}" for value in corners)
        raise BadImage(f"{where} has a box that ends before it begins: {shown} (left, top, right, bottom)")
    height, width = size
    left, right = (min(max(x, 0.0), float(width)) for x in corners[::2])
    top, bottom = (min(max(y, 0.0), float(height)) for y in corners[1::2])
    bbox = [round(value, 3) for value in (left, top, right - left, bottom - top)]
    return {
        "category": category,
        "category_id": category,
        "bbox": bbox,
        "area": round(bbox[2] * bbox[3], 3),
        "iscrowd": int(is_crowd),
    }


def polygon_object(category: int, *, points: Sequence[float], size: Size, where: str) -> dict[str, Any]:
    """Describe a polygon x, y, x, y, ... and the box around it; raises as `box_object`."""
    xs, ys = points[::2], points[1::2]
    found = box_object(category, corners=(min(xs), min(ys), max(xs), max(ys)), size=size, where=where)
    area = abs(sum(xs[n - 1] * ys[n] - xs[n] * ys[n - 1] for n in range(len(xs)))) / 2
    return {**found, "area": round(area, 3), "segmentation": [[round(value, 3) for value in points]]}


def sample_json(objects: Sequence[dict[str, Any]], *, file_name: str, size: Size) -> bytes:
    """Write a sample's `.json`."""
    tree = {"file_name": file_name, "height": size[0], "width": size[1], "objects": list(objects)}
    return json.dumps(tree, separators=(",", ":")).encode()
