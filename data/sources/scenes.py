"""Generated scenes: patterned objects that overlap on textured ground, with class, boxes, masks and semantic map.

An image's class is that of its main object, the one that shows the largest area. A class is a shape and a pattern, and
has a hue that its objects stray around: neither colour nor shape nor pattern alone tells the class. Scene i is a pure
function of (seed, i, size).

    000123.jpg       the image
    000123.cls       class of the main object
    000123.json      {"height", "width", "label", "objects": [{"category", "bbox": [x, y, w, h], "area",
                     "segmentation": {"size": [h, w], "counts": [...]}}]}: COCO's uncompressed RLE of what is visible
    000123.seg.png   semantic map: 0 is background, 1 + class elsewhere
"""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from data.sources import scene_parts as parts
from data.sources.config import Write
from data.sources.formats import SourceFormat
from data.sources.scene_parts import Grid
from data.writing.writer import NewSample
from engine.randomness import stream

SHAPES = {"disc": parts.disc, "star": parts.star, "heart": parts.heart, "cross": parts.cross}
PATTERNS = {"striped": parts.stripes, "dotted": parts.dots, "checked": parts.checks}
CLASSES = tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS)

JPEG_QUALITY = 92
DEFAULT_SIZE_PX = 128
CLEARLY_LARGER = 1.6
"""The main object shows at least this many times the area of any other, or lies in front."""
LEAST_VISIBLE = 0.15
"""Objects of which less than this share shows are not drawn."""


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object and what shows of it."""

    category: int
    """Its class."""
    mask: npt.NDArray[np.bool_]
    """[height, width], true where it is visible."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image and everything that is known about it."""

    image: npt.NDArray[np.uint8]
    """[height, width, 3]."""
    objects: tuple[SceneObject, ...]
    """From back to front."""
    label: int
    """Class of the object that shows the largest area."""

    @property
    def semantic_map(self) -> npt.NDArray[np.uint8]:
        """[height, width]: 0 is background, 1 + class elsewhere."""
        result = np.zeros(self.image.shape[:2], np.uint8)
        for item in self.objects:
            result[item.mask] = item.category + 1
        return result


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """An object's pixels in its own box, before others cover it."""

    category: int
    rows: slice
    columns: slice
    colours: Grid
    alpha: Grid
    shadow: Grid
    mask: npt.NDArray[np.bool_]


HUE_DEVIATION = 0.09
"""How far an object's main hue strays from its class's own, of a circle of 1: colour helps, and does not tell alone."""


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Scenes as a source of samples, with labels, boxes and masks."""

    seed: int
    """Seed of all scenes."""
    first: int
    """Number of the first scene."""
    count: int
    """How many scenes."""
    size: int
    """Side in pixels."""
    classes: tuple[str, ...] = CLASSES
    """Names of the kinds of objects."""
    labels: None = None
    """Known once a scene is drawn."""

    def __len__(self) -> int:
        """Count the scenes."""
        return self.count

    def prepare(self, number: int) -> NewSample:
        """Draw one scene."""
        label, members = scene_members(self.seed, number=self.first + number, size=self.size)
        return NewSample(source=f"scene {self.first + number}", members=members, label=label)

    def listing(self) -> Iterator[str]:
        """Yield the one line that says all."""
        yield f"{self}"


def make_scene(seed: int, *, number: int, size: int) -> Scene:
    """Draw scene ``number``, ``size`` pixels high and wide."""
    rng = stream(seed, "scene", number, size)
    image = parts.background(rng, size=size)
    drawn = _visible_enough(
        _ordered([_draw(rng, size=size, radius=radius) for radius in _radii(rng)], size=size), size=size
    )
    for item in drawn:
        part = image[item.rows, item.columns]
        part *= 1 - item.shadow[..., None]
        part += item.alpha[..., None] * (item.colours - part)
    image += rng.standard_normal((size, size, 1), np.float32) * np.float32(rng.uniform(0.005, 0.02))
    masks = _visible_masks(drawn, size=size)
    objects = tuple(SceneObject(category=item.category, mask=mask) for item, mask in zip(drawn, masks, strict=True))
    main = max(objects, key=lambda item: int(item.mask.sum()))
    return Scene(image=(image * 255).clip(0, 255).astype(np.uint8), objects=objects, label=main.category)


def scene_members(seed: int, *, number: int, size: int) -> tuple[int, dict[str, bytes]]:
    """Draw a scene; give its label and its files by extension."""
    scene = make_scene(seed, number=number, size=size)
    map_file = io.BytesIO()
    Image.fromarray(scene.semantic_map).save(map_file, "PNG", compress_level=3)
    members = {
        "jpg": simplejpeg.encode_jpeg(scene.image, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"),
        "json": json.dumps(annotation(scene), separators=(",", ":")).encode(),
        "seg.png": map_file.getvalue(),
    }
    return scene.label, members


def annotation(scene: Scene) -> dict[str, Any]:
    """Describe label, boxes and masks as plain values."""
    height, width = scene.image.shape[:2]
    objects = [
        {
            "category": item.category,
            "bbox": bounding_box(item.mask),
            "area": int(item.mask.sum()),
            "segmentation": {"size": [height, width], "counts": run_lengths(item.mask)},
        }
        for item in scene.objects
    ]
    return {"height": height, "width": width, "label": scene.label, "objects": objects}


def bounding_box(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Bound the true pixels by [x, y, width, height]."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]


def run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Encode a mask as COCO's uncompressed RLE: lengths of false, true, false, ... runs, column by column."""
    values = mask.ravel(order="F")
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    lengths: list[int] = np.diff(np.concatenate([[0], changes, [len(values)]])).tolist()
    return [0, *lengths] if values[0] else lengths


def _radii(rng: np.random.Generator) -> list[float]:
    """Draw the objects' radii from back to front, as parts of the image's side: one is large."""
    others = rng.uniform(0.08, 0.13, size=int(rng.integers(1, 4))).tolist()
    others.insert(int(rng.integers(len(others) + 1)), rng.uniform(0.32, 0.44))
    return others


def _draw(rng: np.random.Generator, *, size: int, radius: float) -> _Drawn:
    """Draw one object; what is drawn from ``rng``, and in which order, makes the scene, so neither may change."""
    category = int(rng.integers(len(CLASSES)))
    margin = min(radius, 0.4)  # objects lie inside the image, large ones reach over its edge
    center_x, center_y = (float(value) * size for value in rng.uniform(margin, 1 - margin, size=2))
    radius_px = radius * size
    rows, columns = (_span(center, reach=radius_px * 1.3, size=size) for center in (center_y, center_x))
    # Coordinates in units of the radius, from the object's centre, as shapes take them.
    across, down = (np.arange(each.start, each.stop, dtype=np.float32) for each in (columns, rows))
    x = (across[None] + np.float32(0.5 - center_x)) / np.float32(radius_px)
    y = (down[:, None] + np.float32(0.5 - center_y)) / np.float32(radius_px)
    shape = SHAPES[CLASSES[category].split()[1]]
    turn = rng.uniform(-0.6, 0.6)
    distance = shape(*_turned(x, y, turn=turn))
    pixel = 1 / radius_px
    alpha = parts.step(-distance, softness=1.2 * pixel)  # an edge of about one pixel, as a lens leaves it
    light = rng.uniform(0, 2 * math.pi)
    # The shadow is the same shape, moved away from the light and softened.
    shift_x, shift_y = (np.float32(0.12 * part) for part in (math.cos(light), math.sin(light)))
    shadow = parts.step(-shape(*_turned(x + shift_x, y + shift_y, turn=turn)), softness=0.22) * np.float32(0.5)
    colours = _surface(rng, category=category, x=x, y=y, pixel=pixel)
    colours *= _relief(distance, light=light, pixel=pixel)[..., None]
    return _Drawn(
        category=category, rows=rows, columns=columns, colours=colours, alpha=alpha, shadow=shadow, mask=alpha > 0.5
    )


def _surface(rng: np.random.Generator, *, category: int, x: Grid, y: Grid, pixel: float) -> Grid:
    """Colour an object with a pattern of two colours."""
    hue = rng.normal(category / len(CLASSES), HUE_DEVIATION)
    first = parts.colour(rng, saturation=(0.55, 1.0), value=(0.35, 1.0), hue=hue)
    second = parts.contrasting(rng, first=first)
    period = max(rng.uniform(0.36, 0.52), 4.5 * pixel)
    u, v = _turned(x, y, turn=rng.uniform(0, 2 * math.pi))
    shift_u, shift_v = (np.float32(value) for value in rng.uniform(0, 1, size=2))
    amount = PATTERNS[CLASSES[category].split()[0]](u + shift_u, v + shift_v, period=period, pixel=pixel)
    return first + (second - first) * amount[..., None]


def _relief(distance: Grid, *, light: float, pixel: float) -> Grid:
    """Brightness as if the object's edge were rounded and lit from ``light``."""
    depth = (-distance / np.float32(0.3)).clip(0, 1)
    height = np.sqrt(1 - (1 - depth) ** 2) * np.float32(0.3)
    slope_y, slope_x = np.gradient(height, np.float32(pixel))
    lit = slope_x * np.float32(math.cos(light)) + slope_y * np.float32(math.sin(light))
    return np.float32(0.95) + np.float32(0.32) * np.tanh(lit)


def _turned(x: Grid, y: Grid, *, turn: float) -> tuple[Grid, Grid]:
    cosine, sine = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    return x * cosine + y * sine, y * cosine - x * sine


def _span(center: float, *, reach: float, size: int) -> slice:
    return slice(max(0, math.floor(center - reach)), min(size, math.ceil(center + reach)))


def _visible_masks(drawn: list[_Drawn], *, size: int) -> list[npt.NDArray[np.bool_]]:
    """What shows of each object once those in front cover it."""
    covered = np.zeros((size, size), bool)
    masks: list[npt.NDArray[np.bool_]] = []
    for item in reversed(drawn):
        mask = np.zeros((size, size), bool)
        mask[item.rows, item.columns] = item.mask & ~covered[item.rows, item.columns]
        covered[item.rows, item.columns] |= item.mask
        masks.append(mask)
    return masks[::-1]


def _ordered(drawn: list[_Drawn], *, size: int) -> list[_Drawn]:
    """Bring the largest object to the front where the others leave too little of it to be the main one for sure."""
    areas = [int(mask.sum()) for mask in _visible_masks(drawn, size=size)]
    large = max(range(len(drawn)), key=lambda place: int(drawn[place].mask.sum()))
    rest = max(areas[:large] + areas[large + 1 :])
    if areas[large] >= CLEARLY_LARGER * rest:
        return drawn
    return [*drawn[:large], *drawn[large + 1 :], drawn[large]]


def _visible_enough(drawn: list[_Drawn], *, size: int) -> list[_Drawn]:
    """Leave out objects that others hide."""
    masks = _visible_masks(drawn, size=size)
    return [item for item, mask in zip(drawn, masks, strict=True) if mask.sum() >= LEAST_VISIBLE * item.mask.sum() > 0]


def _open(options: Write, _index_folder: Path) -> dict[str, Scenes]:
    num_held_out = round(options.count * options.val_fraction)
    size = options.size or DEFAULT_SIZE_PX
    train = Scenes(seed=options.seed, first=0, count=options.count - num_held_out, size=size)
    return {"train": train, "val": replace(train, first=train.count, count=num_held_out)}


FORMAT = SourceFormat(open=_open, options=("count",), is_drawn=True, narrows=())
