"""YOLO sets: images and, under the same names, text with a line `class x y width height` for each object.

    SOURCE/data.yaml                       names: [cat, dog]   (or obj.names, classes.txt; --classes FILE)
    SOURCE/images/train/1.jpg              SOURCE/train/images/1.jpg        also beside the images, as darknet has them
    SOURCE/labels/train/1.txt              SOURCE/train/labels/1.txt        (other layouts: data/sources/trees/pairs.py)

Numbers are shares of the image's sides; more than five in a line are a polygon. An image without a file, or with an
empty one, has no objects: that is YOLO's rule.
"""

import logging
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data.images.decode import BadImage
from data.shards.class_names import read_class_names
from data.sources.boxes.objects import box_object, polygon_object, sample_json
from data.sources.config import Preparation, Write
from data.sources.formats import SourceFormat
from data.sources.image_folder import BesideFile, ImageFiles
from data.sources.preparation import Prepared, read_limited
from data.sources.trees.listing import files_in, paths_in, walk
from data.sources.trees.pairs import Pair, find_boxes
from engine.documents import read_text, read_yaml
from engine.errors import UserError
from engine.terms import Size

logger = logging.getLogger(__name__)

SUFFIX = ".txt"
NAME_FILES = ("obj.names", "classes.txt", "_darknet.labels", "predefined_classes.txt")
LINE = re.compile(rb"\s*\d+(\.0*)?(\s+[-+.\deE]+){4,}\s*")
FILES_LOOKED_AT = 20
SLACK = 0.01
"""Boxes stick out of images by rounding; more than this share is a mistake."""


@dataclass(frozen=True)
class YoloBoxes(BesideFile):
    """The boxes of one image."""

    image: str
    """Name of the image's file."""
    num_classes: int
    """How many classes there are."""
    is_pose: bool
    """Whether key points follow the boxes, which are left out."""

    def __str__(self) -> str:
        return self.path

    def members(self, image: Prepared, *, preparation: Preparation) -> dict[str, bytes]:
        """Read them; an image without a file has none."""
        path = Path(self.path)
        content = read_limited(path) if path.is_file() else b""
        lines = enumerate(content.decode(errors="replace").splitlines(), 1)
        objects = [self._object(line, place=place, size=image.size) for place, line in lines if line.strip()]
        return {"json": sample_json(objects, file_name=self.image, size=image.size)}

    def _object(self, line: str, *, place: int, size: Size) -> dict[str, Any]:
        where = f"line {place} of {self.path}"
        try:
            category, *shares = map(float, line.split())
        except ValueError:
            raise BadImage(f"{where} is {line.strip()[:60]!r}, expected a class number and shares") from None
        if not category.is_integer() or not 0 <= category < self.num_classes:
            raise BadImage(f"{where} has class {category:g}, there are {self.num_classes}, from 0")
        outside = next((share for share in shares if not -SLACK <= share <= 1 + SLACK), None)
        shares = shares[:4] if self.is_pose else shares
        if outside is not None and not self.is_pose:
            raise BadImage(f"{where} has {outside:g}, expected shares of the image's sides, 0 to 1")
        height, width = size
        if len(shares) == 4:
            x, y, across, down = shares[0] * width, shares[1] * height, shares[2] * width, shares[3] * height
            corners = (x - across / 2, y - down / 2, x + across / 2, y + down / 2)
            return box_object(int(category), corners=corners, size=size)
        if len(shares) < 6 or len(shares) % 2:
            raise BadImage(f"{where} has {len(shares)} numbers after its class, expected 4 or a polygon's pairs")
        points = [share * (height if place % 2 else width) for place, share in enumerate(shares)]
        return polygon_object(int(category), points=points, size=size)


def find_yolo(options: Write, _index_folder: Path) -> dict[str, ImageFiles]:
    """Pair images with their boxes, by split.

    Raises:
        UserError: no such set, no class names, or a resize is asked for.
    """
    folder = Path(options.source)
    if options.size is not None:
        raise UserError("--size cannot be used with boxes, which would no longer fit; resize when training")
    pairs = find_boxes(folder, suffix=SUFFIX, splits=options.splits)
    if pairs is None:
        raise UserError(f"expected images/ and labels/ with .txt files of the same names in {folder}")
    names, read_from, is_pose = _names(folder, given=options.classes)
    return {
        name: _boxes(pair, names=names, read_from=read_from, is_pose=is_pose, preparation=options.preparation)
        for name, pair in pairs.items()
    }


def _boxes(
    pair: Pair, *, names: tuple[str, ...], read_from: Path, is_pose: bool, preparation: Preparation
) -> ImageFiles:
    paths = pair.paths()
    if not paths:
        raise UserError(f"no image in {pair.images}")
    existing = {path for files in walk(pair.labels, suffixes=(SUFFIX,)) for path in paths_in(pair.labels, files)}
    files = [str(pair.beside(path, suffix=SUFFIX)) for path in paths]
    without = sum(path not in existing for path in files)
    if without:
        logger.warning("%s: %d of %d images have no file of boxes: no object", pair.images, without, len(paths))
    beside = tuple(
        YoloBoxes(file, Path(path).name, len(names), is_pose) for path, file in zip(paths, files, strict=True)
    )
    return ImageFiles(
        paths=tuple(paths), beside=beside, classes=names, read_from=(str(read_from),), preparation=preparation
    )


def _names(folder: Path, *, given: Path | None) -> tuple[tuple[str, ...], Path, bool]:
    """Read the class names, where they stand, and whether key points are annotated, too."""
    near = (folder, folder.resolve().parent)
    tables = [(path, read_yaml(path)) for place in near for path in files_in(place, suffixes=(".yaml", ".yml"))]
    path, tree = next(((path, tree) for path, tree in tables if "names" in tree), (None, {}))
    is_pose = "kpt_shape" in tree
    if given is not None:
        return tuple(read_class_names(given)), given, is_pose
    if path is not None:
        return _listed(tree["names"], path=path), path, is_pose
    places = [place / name for place in (folder, folder / "labels") for name in NAME_FILES]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no data.yaml with names, nor {NAME_FILES[0]}: give them with --classes FILE")
    return tuple(line.strip() for line in read_text(path).splitlines() if line.strip()), path, is_pose


def _listed(names: Any, *, path: Path) -> tuple[str, ...]:
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: names must be a list, or numbers from 0 with names, got {str(names)[:80]}")
    return tuple(map(str, names))


def _is_yolo(folder: Path) -> bool:
    """Whether there are images with text of the same names that holds numbers: captions lie so, too."""
    pairs = find_boxes(folder, suffix=SUFFIX) or {}
    for pair in pairs.values():
        paths = (str(pair.beside(path, suffix=SUFFIX)) for path in pair.paths())
        contents = (read_limited(Path(path)) for path in paths if Path(path).is_file())
        lines = [content.splitlines()[0] for content in islice(filter(bytes.strip, contents), FILES_LOOKED_AT)]
        if lines and all(LINE.fullmatch(line) for line in lines):
            return True
    return False


FORMAT = SourceFormat(
    open=find_yolo,
    says="YOLO's boxes",
    recognise=_is_yolo,
    options=("classes", "splits"),
    narrows=("folder",),
)
