"""YOLO sets: images and, under the same names, text with a line `class x y width height` for each object.

    SOURCE/data.yaml                       names: [cat, dog]   (or obj.names, classes.txt; --classes FILE)
    SOURCE/images/train/1.jpg              SOURCE/train/images/1.jpg        also beside the images, as darknet has them
    SOURCE/labels/train/1.txt              SOURCE/train/labels/1.txt        (other layouts: data/sources/trees/pairs.py)

Numbers are shares of the image's sides; more than five in a line are a polygon. An image without a file, or with an
empty one, has no objects: that is YOLO's rule.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data.images.decode import BadImage
from data.shards.class_names import read_class_names
from data.sources.boxes.objects import box_object, polygon_object, sample_json
from data.sources.boxes.set_file import SetFile, find_set_file
from data.sources.config import Preparation, Write
from data.sources.formats import SourceFormat, refuse_resize
from data.sources.image_folder import BesideFile, ImageFiles
from data.sources.preparation import Prepared, read_limited
from data.sources.trees.listing import paths_in, walk
from data.sources.trees.pairs import Pair, find_boxes
from engine.documents import read_text
from engine.errors import UserError
from engine.terms import Size

logger = logging.getLogger(__name__)

SUFFIX = ".txt"
NAME_FILES = ("obj.names", "classes.txt", "_darknet.labels", "predefined_classes.txt")
LINE = re.compile(rb"\s*\d+(\.0*)?([\s,;]+([-+.\deE]+|nan|[-+]?inf)){4,}\s*", re.IGNORECASE)
"""A line of numbers, if not a right one: those that are wrong are named when they are read."""
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
            return box_object(int(category), corners=corners, size=size, where=where)
        if len(shares) < 6 or len(shares) % 2:
            raise BadImage(f"{where} has {len(shares)} numbers after its class, expected 4 or a polygon's pairs")
        points = [share * (height if place % 2 else width) for place, share in enumerate(shares)]
        return polygon_object(int(category), points=points, size=size, where=where)


def find_yolo(options: Write, _index_folder: Path) -> dict[str, ImageFiles]:
    """Pair images with their boxes, by split.

    Raises:
        UserError: no such set, no class names, or a resize is asked for.
    """
    folder = Path(options.source)
    refuse_resize(options, what="boxes")
    pairs = find_boxes(folder, suffix=SUFFIX, splits=options.splits)
    if pairs is None:
        raise UserError(f"expected images/ and labels/ with .txt files of the same names in {folder}")
    set_file = find_set_file(folder)
    names, read_from = _names(folder, set_file=set_file, given=options.classes)
    files = {split: _files(pair) for split, pair in pairs.items()}
    if set_file is not None and options.splits is None:
        files = _divided(files, folder=folder, set_file=set_file)
    labels = {pair.labels for pair in pairs.values()}
    texts = {path for place in labels for files in walk(place, suffixes=(SUFFIX,)) for path in paths_in(place, files)}
    is_pose = set_file is not None and set_file.is_pose
    for split, beside in files.items():
        without = sum(text not in texts for text in beside.values())
        if without:
            logger.warning(
                "%s, %s: %d of %d images have no file of boxes: no object", folder, split, without, len(beside)
            )
    return {
        split: ImageFiles(
            paths=tuple(beside),
            beside=tuple(YoloBoxes(text, Path(path).name, len(names), is_pose) for path, text in beside.items()),
            classes=names,
            read_from=(str(read_from),),
            preparation=options.preparation,
        )
        for split, beside in files.items()
    }


def _files(pair: Pair) -> dict[str, str]:
    """Name the file of each image, which need not be there."""
    files = {path: str(pair.beside(path, suffix=SUFFIX)) for path in pair.paths()}
    if not files:
        raise UserError(f"no image in {pair.images}")
    return files


def _divided(files: Mapping[str, dict[str, str]], *, folder: Path, set_file: SetFile) -> dict[str, dict[str, str]]:
    """Divide images as data.yaml says, where it names them otherwise than by the folders that were found.

    Raises:
        UserError: it names for a split what was not found.
    """
    found = {split: {Path(path).relative_to(folder).as_posix(): path for path in each} for split, each in files.items()}
    paths = {name: path for each in found.values() for name, path in each.items()}
    held_out = "val" if set_file.entries("val") else "test"
    named = {"train": set_file.images("train", among=paths), "val": set_file.images(held_out, among=paths)}
    if named["train"] == named["val"]:  # nothing, or all, as in small examples that validate on what they train on
        if set_file.entries("train"):
            logger.warning("%s: train and val lead to no images of their own: folders decide", set_file.path)
        return dict(files)
    named = {split: images for split, images in named.items() if images}
    if all(images == found.get(split, {}).keys() for split, images in named.items()):
        return dict(files)
    if "train" not in named or (set_file.entries(held_out) and "val" not in named):
        split = held_out if "train" in named else "train"
        raise UserError(
            f"{set_file.path} says {split}: {', '.join(set_file.entries(split)) or 'nothing'}, which leads to no image "
            f"found in {folder} for that alone: correct it, or choose with --splits"
        )
    if named["train"] & named.get("val", set()):
        logger.warning("%s names some images for both train and val", set_file.path)
    rest = len(paths.keys() - set().union(*named.values()))
    if rest:
        logger.warning("%s names %d of %d images; the rest is left out", set_file.path, len(paths) - rest, len(paths))
    texts = {path: text for each in files.values() for path, text in each.items()}
    return {split: {paths[name]: texts[paths[name]] for name in sorted(images)} for split, images in named.items()}


def _names(folder: Path, *, set_file: SetFile | None, given: Path | None) -> tuple[tuple[str, ...], Path]:
    """Read the class names, and where they stand: what lies in the set's folder goes before what lies beside it."""
    if given is not None:
        return tuple(read_class_names(given)), given
    places = [place / name for place in (folder, folder / "labels") for name in NAME_FILES]
    path = next((path for path in places if path.is_file()), None)
    if set_file is not None and (set_file.is_inside or path is None):
        return set_file.names, set_file.path
    if path is None:
        raise UserError(f"{folder} has no data.yaml with names, nor {NAME_FILES[0]}: give them with --classes FILE")
    return tuple(line.strip() for line in read_text(path).splitlines() if line.strip()), path


def _is_yolo(folder: Path) -> bool:
    """Whether there are images with text of the same names that mostly holds numbers: captions lie so, too."""
    pairs = find_boxes(folder, suffix=SUFFIX) or {}
    set_file = find_set_file(folder) if pairs else None
    if set_file is not None and set_file.is_inside:
        return True
    for pair in pairs.values():
        paths = (str(pair.beside(path, suffix=SUFFIX)) for path in pair.paths())
        contents = (read_limited(Path(path)) for path in paths if Path(path).is_file())
        lines = [content.splitlines()[0] for content in islice(filter(bytes.strip, contents), FILES_LOOKED_AT)]
        if lines and 2 * sum(LINE.fullmatch(line) is not None for line in lines) >= len(lines):
            return True
    return False


FORMAT = SourceFormat(
    open=find_yolo,
    says="YOLO's boxes",
    recognise=_is_yolo,
    options=("classes", "splits"),
    narrows=("folder",),
)
