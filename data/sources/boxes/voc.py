"""Pascal VOC: images and, under the same names, XML with a named box for each object.

    SOURCE/JPEGImages/1.jpg         SOURCE/images/1.jpg          SOURCE/train/1.jpg
    SOURCE/Annotations/1.xml        SOURCE/annotations/1.xml     SOURCE/train/1.xml
    SOURCE/ImageSets/Main/train.txt, val.txt                     (other layouts: data/sources/trees/pairs.py)

Classes are the names in use, sorted, or those of --classes. Boxes count pixels from 1, the last one included. Difficult
objects are marked as crowds: they are not learnt, and not missed. Images without a file are left out.
"""

import contextlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from data.images.decode import BadImage
from data.shards.class_names import read_class_names
from data.sources.boxes.objects import box_object, sample_json
from data.sources.config import Preparation, Write
from data.sources.formats import SourceFormat, refuse_resize
from data.sources.image_folder import BesideFile, ImageFiles
from data.sources.preparation import Prepared, read_limited
from data.sources.trees.pairs import Pair, find_boxes
from engine.errors import UserError

logger = logging.getLogger(__name__)

SUFFIX = ".xml"
MAX_BYTES = 2**24
START = re.compile(rb"\s*(\xef\xbb\xbf)?(<\?xml[^>]*>)?\s*<annotation\b")


@dataclass(frozen=True)
class VocBoxes(BesideFile):
    """The boxes of one image."""

    image: str
    """Name of the image's file."""
    numbers: Mapping[str, int]
    """Class numbers by name."""

    def members(self, image: Prepared, *, preparation: Preparation) -> dict[str, bytes]:
        """Read them, if they were made for an image of this size."""
        root = _parsed(Path(self.path))
        stated = tuple(int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
        if all(stated) and stated != image.size:
            actual, expected = (f"{height}x{width}" for height, width in (image.size, stated))
            raise BadImage(f"it is {actual} pixels upright, its boxes are made for {expected}")
        objects = [self._object(item, image=image) for item in root.iter("object")]
        return {"json": sample_json(objects, file_name=self.image, size=image.size)}

    def _object(self, item: ElementTree.Element, *, image: Prepared) -> dict[str, object]:
        name = _name(item)
        if name not in self.numbers:
            raise BadImage(f"{self.path} has an object {name!r}, which is no class")
        try:
            left, top, right, bottom = (
                float(item.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            raise BadImage(f"{self.path} has an object {name!r} without a box in numbers") from None
        is_difficult = (item.findtext("difficult") or "0").strip() not in ("0", "False", "Unspecified")
        corners = (left - 1, top - 1, right, bottom)
        where = f"{self.path}, object {name!r},"
        return box_object(self.numbers[name], corners=corners, size=image.size, where=where, is_crowd=is_difficult)


def find_voc(options: Write, _index_folder: Path) -> dict[str, ImageFiles]:
    """Pair images with their boxes, by split.

    Raises:
        UserError: no such set, no object in it, or a resize is asked for.
    """
    folder = Path(options.source)
    refuse_resize(options, what="boxes")
    pairs = find_boxes(folder, suffix=SUFFIX, splits=options.splits)
    if pairs is None:
        raise UserError(f"expected JPEGImages/ and Annotations/ with .xml files of the same names in {folder}")
    files = {name: _files(pair) for name, pair in pairs.items()}
    names = tuple(read_class_names(options.classes)) if options.classes else _names(files)
    numbers = {name: number for number, name in enumerate(names)}
    return {
        name: ImageFiles(
            paths=tuple(found),
            beside=tuple(VocBoxes(str(path), Path(image).name, numbers) for image, path in found.items()),
            classes=names,
            preparation=options.preparation,
        )
        for name, found in files.items()
    }


def _files(pair: Pair) -> dict[str, Path]:
    """Name the file of each image that has one."""
    paths = pair.paths()
    beside = {path: pair.beside(path, suffix=SUFFIX) for path in paths}
    found = {path: file for path, file in beside.items() if file.is_file()}
    if len(found) < len(paths):
        without = next(path for path in paths if path not in found)
        logger.warning(
            "%s: %d of %d images have no .xml and are left out, for example %s",
            pair.images,
            len(paths) - len(found),
            len(paths),
            Path(without).name,
        )
    if not found:
        raise UserError(f"no image in {pair.images} has its .xml in {pair.labels}")
    return found


def _names(files: Mapping[str, Mapping[str, Path]]) -> tuple[str, ...]:
    """List the names in use; what is no XML is said of its image, when it is read."""
    names: set[str] = set()
    for path in (path for found in files.values() for path in found.values()):
        with contextlib.suppress(BadImage):
            names.update(map(_name, _parsed(path).iter("object")))
    names.discard("")
    if not names:
        raise UserError(f"no object in the .xml files of {', '.join(files)}")
    return tuple(sorted(names))


def _name(item: ElementTree.Element) -> str:
    return (item.findtext("name") or "").strip()


def _parsed(path: Path) -> ElementTree.Element:
    content = read_limited(path)
    if len(content) > MAX_BYTES or b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise BadImage(f"{path} is no annotation of one image: it is too large, or defines entities")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadImage(f"{path} is no XML: {error}") from None


def _is_voc(folder: Path) -> bool:
    pairs = find_boxes(folder, suffix=SUFFIX) or {}
    for pair in pairs.values():
        files = (pair.beside(path, suffix=SUFFIX) for path in pair.paths())
        first = next((path for path in files if path.is_file()), None)
        if first is not None and START.match(read_limited(first)[:1024]):
            return True
    return False


FORMAT = SourceFormat(
    open=find_voc,
    says="Pascal VOC's boxes",
    recognise=_is_voc,
    options=("classes", "splits"),
    narrows=("folder",),
)
