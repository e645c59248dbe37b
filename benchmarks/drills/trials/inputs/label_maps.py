"""Label maps that are painted, binary or called otherwise than their images, given to `write`, `verify` and `show`."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.drills.trials.case import Case
from data.shards.shard_set import open_shards
from data.writing.writer import NewSample, ShardLimits, write_shards

WRITE = ["data/main.py", "write", "--source", "in", "--out", "out"]
SIZE = (24, 32)
Array = npt.NDArray[np.integer]


def png(values: Array) -> bytes:
    """Encode a map, or a picture."""
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()


def halves(upper: npt.ArrayLike, lower: npt.ArrayLike, *, kind: type = np.uint8) -> Array:
    """Make a map of two values, or colours."""
    shape = (*SIZE, *np.shape(upper))
    values = np.zeros(shape, kind)
    values[: SIZE[0] // 2], values[SIZE[0] // 2 :] = upper, lower
    return values


def pairs(maps: dict[str, Array], *options: str, classes: str = "", image: str = "{}") -> Callable[[Path], list[str]]:
    """Write maps beside the images that ``image`` names for the first part of their names."""

    def make(folder: Path) -> list[str]:
        for part in ("images", "masks"):
            (folder / "in" / part).mkdir(parents=True)
        for name, values in maps.items():
            picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
            (folder / "in" / "images" / f"{image.format(name.split('_')[0])}.png").write_bytes(png(picture))
            (folder / "in" / "masks" / f"{name}.png").write_bytes(png(values))
        (folder / "classes.txt").write_text(classes)
        return [*WRITE, *options]

    return make


def holds(*values: int, classes: tuple[str, ...] | None = None) -> Callable[[Path], str | None]:
    """Check the values that all maps hold together."""

    def check(folder: Path) -> str | None:
        shards = open_shards(folder / "out")
        found = set[int]()
        for position in range(shards.num_samples):
            content = shards.read_member(0, position, extension="seg.png") or b""
            found |= set(np.unique(np.asarray(Image.open(io.BytesIO(content)))).tolist())
        if found != set(values) or (classes is not None and shards.classes != classes):
            return f"the maps hold {sorted(found)} of {shards.classes}"
        return None

    return check


def _shards(values: Array, *command: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        members = {"png": png(picture), "seg.png": png(values)}
        samples = [NewSample(source="", members=members) for _ in range(3)]
        write_shards(samples, out=folder / "shards", classes=("a", "b"), limits=ShardLimits())
        return ["data/main.py", *command, "--shards", "shards"]

    return make


_BINARY = halves(0, 255)
_COLOURS = halves((128, 64, 128), (0, 0, 192))
_LINES = "128 64 128 road\n0 0 192 pavement\n"
_CITY = {f"{city}_gtFine_{kind}": halves(7, 8) for city in ("a", "b") for kind in ("labelIds", "instanceIds")}

CASES = [
    Case(
        name="names_with_numbers",
        make=pairs(
            {"1": halves((0, 0, 0), (255, 0, 0))},
            *("--map-classes", "classes.txt"),
            classes="0 0 0 background\n255 0 0 route 66\n",
        ),
        check=holds(0, 1, classes=("background", "route 66")),
    ),
    Case(
        name="binary_maps_in_verify",
        make=_shards(_BINARY, "verify"),
        says=r"label maps hold the values 0 \(50.0%\), 255 \(50.0%\)",
    ),
    Case(name="binary_maps_in_show", make=_shards(_BINARY, "show"), says=r"hold the values 0 \(50.0%\), 255 \(50.0%\)"),
    Case(
        name="binary_maps_with_their_classes",
        make=pairs({"a": _BINARY, "b": _BINARY}, "--map-classes", "classes.txt", classes="0 background\n255 object\n"),
        check=holds(0, 1, classes=("background", "object")),
    ),
    Case(
        name="painted_maps",
        make=pairs({"a": _COLOURS, "b": _COLOURS}),
        code=1,
        says="mode RGB, .* say which with --map-classes FILE, lines `R G B name`",
    ),
    Case(
        name="painted_maps_with_their_classes",
        make=pairs({"a": _COLOURS, "b": _COLOURS}, "--map-classes", "classes.txt", classes=_LINES),
        check=holds(0, 1, classes=("road", "pavement")),
    ),
    Case(
        name="a_colour_that_is_no_class_s",
        make=pairs(
            {"a": _COLOURS, "b": halves((1, 2, 3), (0, 0, 192))}, "--map-classes", "classes.txt", classes=_LINES
        ),
        says="left out .*b.png.* the colour 1 2 3, which is no class's",
    ),
    Case(
        name="grey_maps_saved_in_colour",
        make=pairs({"a": halves((0, 0, 0), (1, 1, 1))}, "--map-classes", "classes.txt", classes="0 a\n1 b\n"),
        check=holds(0, 1),
    ),
    Case(
        name="maps_called_otherwise",
        make=pairs({"a_mask": halves(0, 1), "b_mask": halves(0, 1)}),
        says="label maps are called as their images, with _mask behind",
        check=holds(0, 1),
    ),
    Case(
        name="several_maps_of_each_image",
        make=pairs(_CITY, image="{}_leftImg8bit"),
        code=1,
        says="--map-suffix _gtFine_instanceIds or _gtFine_labelIds",
    ),
    Case(
        name="cityscapes_suffixes",
        make=pairs(_CITY, "--map-suffix", "_gtFine_labelIds", image="{}_leftImg8bit"),
        check=holds(7, 8),
    ),
    Case(
        name="values_up_to_65535",
        make=pairs({"a": halves(0, 65_535, kind=np.uint16)}),
        check=holds(0, 65_535),
    ),
]
