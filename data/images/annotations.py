"""What is drawn into an image, from its sample's members: boxes, classes and masks of objects, and a label map.

    000123.json      {"height", "width", "objects": [{"category", "bbox": [x, y, width, height], "iscrowd", "area",
                     "segmentation": polygons [[x, y, x, y, ...], ...] or RLE {"size": [h, w], "counts": ...}}, ...]}
    000123.seg.png   label map, one value a pixel

``iscrowd``, ``area`` and ``segmentation`` may be absent. RLE counts are COCO's, plain or compressed. A polygon covers
the pixels that PIL fills, its outline's too: in COCO 3 % more area than annotated (median) and up to a pixel outside
the box.

Legend: n objects, h w height and width of the upright image in pixels.
"""

import functools
import io
import logging
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from data.images.decode import BadImage, check_rows
from data.images.png import read_layout
from engine.documents import member, parse_json, real_number, whole_number
from engine.errors import UserError, is_refusal
from engine.terms import Size

logger = logging.getLogger(__name__)

MAX_MASK_PIXELS = 2**30
MAX_CORNERS = 20_000
MAX_EDGE_ROWS = 10_000_000
"""Most rows that a mask's edges run through, each for itself: filling takes half a second for so many."""
MAX_EXAMPLES = 3
MAX_COORDINATE = 1e6
MAX_RUN_BITS = 40
MAX_WARNINGS = 10_000
"""Most warnings of objects that a process remembers, so as not to repeat them."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The objects of one image."""

    boxes: npt.NDArray[np.float32]
    """[n, 4]: left, top, right, bottom in pixels."""
    categories: npt.NDArray[np.int64]
    """[n], class numbers."""
    crowd: Mask
    """[n], true for a box around many."""
    areas: npt.NDArray[np.float32]
    """[n], in square pixels, as annotated; of the box where that is not said."""
    masks: Mask | None
    """[n, h, w]; None where none are asked for."""


def read_objects(content: bytes, *, size: Size, masks: bool = True, sample: str = "a sample") -> Objects:
    """Read a sample's `.json`; an object that :func:`fault_of_object` finds fault with is left out.

    Where ``masks`` are asked for, objects without one are left out, too. A warning names the ``sample`` of what is left
    out, once in a process.

    Raises:
        BadImage: it is not of this form, or made for an image of another ``size`` (height, width).
    """
    try:
        return _objects(parse_json(content), size=size, masks=masks, sample=sample)
    except UserError as error:
        raise BadImage(f"its annotations are not as expected: {error}") from None


def read_label_map(content: bytes, *, size: Size) -> npt.NDArray[np.integer[Any]]:
    """Read a sample's `.seg.png` as [h, w], uint8 or (of 16 bits) int32.

    Raises:
        BadImage: it does not decode, has colours, or another ``size`` (height, width) than the image.
    """
    try:
        layout = read_layout(content)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.size != size[::-1]:
                raise UserError(f"{image.height}x{image.width} pixels, the image has {size[0]}x{size[1]}")
            if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
                raise UserError(f"mode {image.mode}, expected one value a pixel")
            values = np.asarray(image)
            check_rows(image, content, layout=layout)
    except Exception as error:  # plugins raise what they like on hostile bytes
        if not isinstance(error, UserError) and not is_refusal(error):
            raise
        raise BadImage(f"its label map is not as expected: {error}") from error
    return values.astype(np.int32 if values.dtype.itemsize > 1 else np.uint8)


def fault_of_object(item: Any, *, size: Size, masks: bool) -> str:
    """Say why an object cannot be used in an image of this ``size`` (height, width); nothing where it can.

    Its mask is judged only where ``masks`` are learnt; one that has none is no fault here.
    """
    try:
        _checked_outline(item, size=size, masks=masks)
    except UserError as error:
        return str(error)
    return ""


@dataclass(kw_only=True)
class ObjectFaults:
    """What training will leave out of a data set's objects, counted, and the first of them by name."""

    num_unusable: int = 0
    """Objects that nothing can be learnt from."""
    num_without_mask: int = 0
    """Other objects whose mask is unusable: detectors that learn masks leave them out."""
    examples: list[str] = field(default_factory=list[str])
    """The first of both."""

    def add(self, objects: Any, *, size: Size, name: str) -> None:
        """Judge the objects of one image as training does."""
        for number, item in enumerate(objects if isinstance(objects, list) else []):
            reason = fault_of_object(item, size=size, masks=False)
            self.num_unusable += bool(reason)
            if not reason:
                reason = fault_of_object(item, size=size, masks=True)
                self.num_without_mask += bool(reason)
            if reason and len(self.examples) < MAX_EXAMPLES:
                own_id = item.get("id") if isinstance(item, dict) else None
                self.examples.append(f"{name}, object {number if own_id is None else own_id}: {reason}")

    def join(self, other: "ObjectFaults") -> None:
        """Add those of other images."""
        self.num_unusable += other.num_unusable
        self.num_without_mask += other.num_without_mask
        self.examples = [*self.examples, *other.examples][:MAX_EXAMPLES]

    def __str__(self) -> str:
        counts = [f"{self.num_unusable} objects cannot be learnt from"] if self.num_unusable else []
        counts += [f"{self.num_without_mask} have no usable mask, only a box"] if self.num_without_mask else []
        return f"{' and '.join(counts)}: training leaves them out; {'; '.join(self.examples)}" if counts else ""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """An object's mask before it is filled: runs or polygons."""

    size: Size
    """Height and width of the image."""
    runs: npt.NDArray[np.int64] | None = None
    """Lengths of the false, true, false, ... runs, column by column."""
    polygons: tuple[npt.NDArray[np.float64], ...] = ()
    """[corners, 2], x and y of each."""

    @staticmethod
    def read(segmentation: Any, *, size: Size) -> "Outline":
        """Read polygons or an RLE.

        Raises:
            UserError: it is neither, or has another size.
        """
        if isinstance(segmentation, dict):
            return Outline(size=size, runs=_runs(segmentation, size=size))
        if not isinstance(segmentation, list):
            raise UserError(f"a mask that is neither polygons nor runs: {segmentation!r:.40}")
        if segmentation and all(isinstance(value, int | float) for value in segmentation):
            raise UserError("a mask that is one list of numbers, expected a list of polygons: [[x, y, x, y, ...], ...]")
        num_corners = sum(len(polygon) for polygon in segmentation if isinstance(polygon, list)) // 2
        if num_corners > MAX_CORNERS:
            raise UserError(f"a mask with {num_corners} corners, at most {MAX_CORNERS} are filled")
        polygons = [_corners(polygon) for polygon in segmentation]
        if num_corners * size[0] > MAX_EDGE_ROWS:
            rows = sum(np.abs(np.diff(each[:, 1])).clip(max=size[0]).sum() for each in polygons)
            if rows > MAX_EDGE_ROWS:
                raise UserError(f"a mask whose edges run through {rows:.0f} rows, at most {MAX_EDGE_ROWS} are filled")
        return Outline(size=size, polygons=tuple(each for each in polygons if len(each) >= 3))  # fewer enclose nothing

    def is_empty(self) -> bool:
        """Whether no pixel is true, which runs and most polygons tell many times faster than by filling them."""
        if self.runs is not None:
            return not self.runs[1::2].any()
        last = self.size[1] - 1, self.size[0] - 1
        has_corner_inside = any(((each >= 0) & (each <= last)).all(1).any() for each in self.polygons)
        return not (has_corner_inside or self.filled().any())

    def filled(self) -> Mask:
        """Fill it as [h, w]."""
        if self.runs is not None:
            return np.repeat(np.arange(len(self.runs)) % 2 == 1, self.runs).reshape(self.size, order="F")
        canvas = Image.new("1", (self.size[1], self.size[0]))
        draw = ImageDraw.Draw(canvas)
        for corners in self.polygons:
            draw.polygon(corners.flatten().tolist(), fill=1)
        return np.array(canvas.convert("L")) > 0  # PIL's own booleans are bytes of 255, which views as numbers


def _checked_outline(item: Any, *, size: Size, masks: bool) -> Outline | None:
    """Check an object, and read the outline of its mask, if it has one and ``masks`` are asked for.

    Raises:
        UserError: says why it cannot be used.
    """
    whole_number(item, "category")
    whole_number(item, "category_id", default=0)
    whole_number(item, "iscrowd", default=0)
    real_number(item, "area", default=0)
    _check_box(_box(item), size=size)
    segmentation = item.get("segmentation")
    if not masks or not segmentation:
        return None
    outline = Outline.read(segmentation, size=size)
    if outline.is_empty():
        raise UserError("its mask is empty")
    return outline


def _objects(tree: Any, *, size: Size, masks: bool, sample: str) -> Objects:
    made_for = (whole_number(tree, "height"), whole_number(tree, "width"))
    if made_for != size:
        raise UserError(f"made for {made_for[0]}x{made_for[1]} pixels, the image has {size[0]}x{size[1]}")
    items: list[dict[str, Any]] = []
    outlines: list[Outline | None] = []
    for number, item in enumerate(member(tree, "objects", list)):
        try:
            outline = _checked_outline(item, size=size, masks=masks)
            if masks and outline is None:
                raise UserError("it has no mask")
            outlines.append(outline)
            items.append(item)
        except UserError as error:
            _warn_once(f"{sample}: object {number} is left out: {error}")
    boxes = np.array([_box(item) for item in items], np.float32).reshape(len(items), 4)
    boxes[:, 2:] += boxes[:, :2]
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = [real_number(item, "area", default=side.prod()) for item, side in zip(items, sides, strict=True)]
    return Objects(
        boxes=boxes,
        categories=np.array([whole_number(item, "category") for item in items], np.int64),
        crowd=np.array([bool(item.get("iscrowd", 0)) for item in items], np.bool_),
        areas=np.array(areas, np.float32),
        masks=_filled(outlines, size=size) if masks else None,
    )


@functools.lru_cache(MAX_WARNINGS)
def _warn_once(text: str) -> None:
    """Warn of what comes again in every epoch, but once in a process."""
    logger.warning("%s", text)


def _box(item: Any) -> list[float]:
    box = member(item, "bbox", list)
    try:
        numbers = [float(value) for value in box]
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"its box {box} holds what is no number") from None
    if len(numbers) != 4:
        raise UserError(f"its box {box} has {len(numbers)} numbers, expected left, top, width and height")
    return numbers


def _check_box(box: list[float], *, size: Size) -> None:
    left, top, width, height = box
    if not all(map(math.isfinite, box)):
        raise UserError(f"its box {box} is not finite")
    if width <= 0 or height <= 0:
        raise UserError(f"its box {box} is empty")
    if left >= size[1] or top >= size[0] or left + width <= 0 or top + height <= 0:
        raise UserError(f"its box {box} lies outside the image of {size[1]}x{size[0]} (width x height)")


def _corners(polygon: Any) -> npt.NDArray[np.float64]:
    """Read a polygon as x and y of each corner."""
    try:
        corners = np.array(polygon, np.float64).reshape(-1, 2)
    except (ValueError, TypeError, OverflowError):
        raise UserError("a polygon that is no list of x and y") from None
    if not (np.abs(corners) <= MAX_COORDINATE).all():
        raise UserError(f"a polygon with a corner that is not within {MAX_COORDINATE:.0f} pixels")
    return corners


def _filled(outlines: list[Outline | None], *, size: Size) -> Mask:
    drawn = [outline for outline in outlines if outline is not None]
    if len(drawn) * size[0] * size[1] > MAX_MASK_PIXELS:
        raise UserError(f"{len(drawn)} masks of {size[0]}x{size[1]} are more than {MAX_MASK_PIXELS} pixels")
    masks = np.zeros((len(drawn), *size), np.bool_)
    for mask, outline in zip(masks, drawn, strict=True):
        mask[:] = outline.filled()
    return masks


def _runs(rle: dict[str, Any], *, size: Size) -> npt.NDArray[np.int64]:
    """Read the lengths of an RLE's runs."""
    if member(rle, "size", list) != list(size):
        raise UserError(f"a mask of {rle['size']} in an image of {list(size)}")
    counts: Any = member(rle, "counts", object)
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    try:
        lengths = np.array(runs, np.int64).reshape(-1)
    except (ValueError, TypeError, OverflowError):
        raise UserError("a mask with runs that are no whole numbers") from None
    if (lengths < 0).any() or lengths.sum() != size[0] * size[1]:
        raise UserError(f"runs over {lengths.sum()} pixels in an image of {size[0]}x{size[1]}")
    return lengths


def _unpacked(text: str) -> list[int]:
    """Unpack the runs of a compressed RLE: six bits a character; after the third, each less the one before the last."""
    counts: list[int] = []
    value = shift = 0
    for character in text.encode(errors="replace"):
        bits = character - 48
        if shift > MAX_RUN_BITS:  # numbers that grow without end would take time by their square
            raise UserError("a compressed mask with a run that does not end")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # five bits, and the flag that more follow
            continue
        if bits & 16:  # negative: later runs are differences
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts
