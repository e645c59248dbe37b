"""What generated scenes are made of: noise, colours, shapes as signed distances, surface patterns and backgrounds.

Everything is float32 on [height, width] grids. A shape is a function of coordinates in units of the object's radius and
gives the distance to its outline, negative inside. A pattern gives how much of its second colour shows, 0 to 1.
"""

import colorsys
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Grid = npt.NDArray[np.floating[Any]]  # float32; the stubs lose it in arithmetic with float32 scalars


def noise(rng: np.random.Generator, *, size: int, cells: tuple[int, int], octaves: int = 1) -> Grid:
    """Smooth noise in [0, 1] with ``cells`` (rows, columns) bumps, and finer ones of half the height each."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        shape = tuple(min(size, count * 2**octave + 3) for count in cells)
        values = rng.random(shape, np.float32)
        total += _enlarge(values, size=size) * np.float32(0.5**octave)
    total -= total.min()
    return total / np.float32(max(float(total.max()), 1e-6))


def colour(
    rng: np.random.Generator, *, saturation: tuple[float, float], value: tuple[float, float], hue: float | None = None
) -> Grid:
    """Draw an RGB colour in [0, 1], of a given hue or of any."""
    rgb = colorsys.hsv_to_rgb(rng.random() if hue is None else hue % 1, rng.uniform(*saturation), rng.uniform(*value))
    return np.array(rgb, np.float32)


def contrasting(rng: np.random.Generator, *, first: Grid) -> Grid:
    """Draw a colour that is clearly lighter or darker than ``first``."""
    light = brightness(first)
    hue = rng.random()
    value = rng.uniform(0.85, 1.0) if light < 0.5 else rng.uniform(0.08, 0.3)
    rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0.05, 0.45) if light < 0.5 else rng.uniform(0.3, 0.9), value)
    return np.array(rgb, np.float32)


def brightness(rgb: Grid) -> float:
    """The perceived lightness of a colour, 0 to 1."""
    return float(rgb @ np.array([0.299, 0.587, 0.114], np.float32))


def step(values: Grid, *, softness: float) -> Grid:
    """Rise from 0 below zero to 1 above, over a ramp of this width."""
    return (values / np.float32(softness) + np.float32(0.5)).clip(0, 1)


# --- shapes ---


def disc(x: Grid, y: Grid) -> Grid:
    """A circle."""
    return np.hypot(x, y) - np.float32(0.92)


def star(x: Grid, y: Grid) -> Grid:
    """A five-pointed star."""
    sector = np.float32(math.pi / 5)
    angle = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    radius = np.hypot(x, y)
    tip, notch = 1.25, 0.6
    end_x, end_y = notch * math.cos(sector), notch * math.sin(sector)
    length = math.hypot(tip - end_x, end_y)
    normal_x, normal_y = np.float32(end_y / length), np.float32((tip - end_x) / length)
    return (radius * np.cos(angle) - np.float32(tip)) * normal_x + radius * np.sin(angle) * normal_y


def heart(x: Grid, y: Grid) -> Grid:
    """A heart."""
    scale = np.float32(1.75)
    x, y = np.abs(x) / scale, np.float32(0.55) - y / scale
    lobe = np.hypot(x - np.float32(0.25), y - np.float32(0.75)) - np.float32(math.sqrt(2) / 4)
    middle = np.maximum(x + y, 0) * np.float32(0.5)
    low = np.minimum(x * x + (y - 1) ** 2, (x - middle) ** 2 + (y - middle) ** 2)
    return np.where(x + y > 1, lobe, np.sqrt(low) * np.sign(x - y)) * scale


def cross(x: Grid, y: Grid) -> Grid:
    """A plus sign."""
    x, y = np.abs(x), np.abs(y)
    arm, half = np.float32(1.0), np.float32(0.38)
    return np.minimum(np.maximum(x - arm, y - half), np.maximum(x - half, y - arm))


# --- patterns on objects ---


def stripes(x: Grid, y: Grid, *, period: float, pixel: float) -> Grid:
    """Parallel bands."""
    return step(np.sin(x * np.float32(2 * math.pi / period)), softness=2 * math.pi * pixel / period)


def dots(x: Grid, y: Grid, *, period: float, pixel: float) -> Grid:
    """Round spots, each row shifted against the next."""
    rows = np.floor(y / np.float32(period))
    u = (x / np.float32(period) + np.float32(0.5) * (rows % 2)) % 1 - np.float32(0.5)
    v = (y / np.float32(period)) % 1 - np.float32(0.5)
    return step(np.float32(0.3) - np.hypot(u, v), softness=pixel / period)


def checks(x: Grid, y: Grid, *, period: float, pixel: float) -> Grid:
    """A chessboard."""
    turn = np.float32(math.pi / period)
    return step(np.sin(x * turn) * np.sin(y * turn), softness=1.5 * math.pi * pixel / period)


# --- backgrounds ---


def background(rng: np.random.Generator, *, size: int) -> Grid:
    """Draw a textured surface [size, size, 3] in [0, 1], lit from one side."""
    low = colour(rng, saturation=(0.1, 0.55), value=(0.2, 0.55))
    high = colour(rng, saturation=(0.05, 0.5), value=(0.5, 0.95))
    kind = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    amount = kind(rng, size)
    surface = low + (high - low) * amount[..., None]
    return surface * _light(rng, size=size)[..., None]


def _clouds(rng: np.random.Generator, size: int) -> Grid:
    return noise(rng, size=size, cells=(3, 3), octaves=5)


def _grass(rng: np.random.Generator, size: int) -> Grid:
    blades = noise(rng, size=size, cells=(9, 42), octaves=2)
    return blades * np.float32(0.65) + noise(rng, size=size, cells=(2, 2)) * np.float32(0.35)


def _planks(rng: np.random.Generator, size: int) -> Grid:
    count = int(rng.integers(4, 8))
    x, _ = _grid(size)
    place = x * np.float32(count)
    tones = rng.random(count + 1, np.float32)[np.minimum(place.astype(np.int64), count)]
    gap = step(np.abs(place - np.round(place)) - np.float32(0.04), softness=0.06)
    grain = noise(rng, size=size, cells=(2, count * 7), octaves=2)
    return (np.float32(0.25) + tones * np.float32(0.3) + grain * np.float32(0.45)) * gap


def _bricks(rng: np.random.Generator, size: int) -> Grid:
    count = int(rng.integers(5, 9))
    x, y = _grid(size)
    row = np.floor(y * np.float32(count))
    u = x * np.float32(count / 2) + np.float32(0.5) * (row % 2)
    v = y * np.float32(count)
    tones = rng.random((count + 1, count + 2), np.float32)[row.astype(np.int64) % (count + 1), u.astype(np.int64)]
    joint = np.minimum(np.abs(u - np.round(u)) * 2, np.abs(v - np.round(v)))
    stone = np.float32(0.3) + tones * np.float32(0.4) + noise(rng, size=size, cells=(8, 8), octaves=3) * np.float32(0.3)
    return stone * step(joint - np.float32(0.06), softness=0.06)


def _dunes(rng: np.random.Generator, size: int) -> Grid:
    x, y = _grid(size)
    turn = rng.uniform(0, math.pi)
    along = x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))
    bend = noise(rng, size=size, cells=(3, 3), octaves=2)
    waves = np.sin((along + bend * np.float32(0.35)) * np.float32(2 * math.pi * rng.uniform(5, 10)))
    return np.float32(0.5) + np.float32(0.3) * waves + np.float32(0.2) * (bend - np.float32(0.5))


def _cobbles(rng: np.random.Generator, size: int) -> Grid:
    count = int(rng.integers(5, 9))
    cells = np.arange(count)
    spread = rng.random((2, count, count), np.float32) * np.float32(0.8)
    points_x, points_y = (cells[None] + spread[0]).ravel() / count, (cells[:, None] + spread[1]).ravel() / count
    small = 64  # distances are smooth: drawn coarsely, then enlarged
    x, y = _grid(small)
    distances = (x[..., None] - points_x.astype(np.float32)) ** 2 + (y[..., None] - points_y.astype(np.float32)) ** 2
    nearest = np.sqrt(np.partition(distances, 1, axis=-1)[..., :2])
    edge = _enlarge((nearest[..., 1] - nearest[..., 0]) * np.float32(count), size=size)
    stone = np.float32(0.55) + np.float32(0.45) * noise(rng, size=size, cells=(6, 6), octaves=3)
    return stone * (edge * np.float32(2.5)).clip(0.1, 1)


BACKGROUNDS = (_clouds, _grass, _planks, _bricks, _dunes, _cobbles)


def _light(rng: np.random.Generator, *, size: int) -> Grid:
    """Brightness that falls off to one side and to the corners."""
    x, y = _grid(size)
    turn = rng.uniform(0, 2 * math.pi)
    slope = np.float32(rng.uniform(0.05, 0.3))
    side = (x - np.float32(0.5)) * np.float32(math.cos(turn)) + (y - np.float32(0.5)) * np.float32(math.sin(turn))
    corner = (x - np.float32(0.5)) ** 2 + (y - np.float32(0.5)) ** 2
    return np.float32(1.05) + slope * side * 2 - np.float32(0.45) * corner


def _grid(size: int) -> tuple[Grid, Grid]:
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return np.broadcast_to(axis, (size, size)), np.broadcast_to(axis[:, None], (size, size))


def _enlarge(values: Grid, *, size: int) -> Grid:
    """Resize smoothly, leaving out the outermost ring, which has no neighbours to be smooth with."""
    rows, columns = values.shape
    box = (1, 1, columns - 1, rows - 1)
    return np.asarray(Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC, box=box), np.float32)
