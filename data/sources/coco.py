"""COCO: images with boxes, classes, masks and crowd flags, from `instances_*.json` files.

    SOURCE/annotations/instances_train2017.json     images in SOURCE/train2017 or SOURCE/images/train2017
    SOURCE/annotations/instances_val2017.json       (or a single JSON file as source, with the folder of its images;
                                                    other layouts: data/sources/trees/coco_files.py)

Beside its image a sample has a `.json`:

    {"image_id": 139, "file_name": "000000000139.jpg", "height": 426, "width": 640, "objects": [
      {"category": 0, "category_id": 1, "id": 230831, "bbox": [x, y, width, height], "area": 531.8, "iscrowd": 0,
       "segmentation": polygons [[x, y, x, y, ...], ...] or RLE {"size": [height, width], "counts": ...}}, ...]}

An object is COCO's own annotation as it stands, with ``category`` added: its class number without gaps, by rising id
(0 to 79 in COCO), which is what the manifest's class names count. Images without annotations are kept, with no objects.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.images.annotations import ObjectFaults
from data.images.decode import BadImage, read_header
from data.sources.config import Preparation, Write
from data.sources.formats import SourceFormat, refuse_resize
from data.sources.image_folder import ImageFiles
from data.sources.preparation import Prepared
from data.sources.trees.coco_files import PREFIX, annotation_files, image_folders, split_name
from engine.documents import member, parse_json, whole_number
from engine.errors import UserError
from engine.terms import Size

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What is drawn into one image."""

    size: Size
    """Height and width that it was made for."""
    text: bytes
    """The sample's `.json`."""

    def __str__(self) -> str:
        return self.text.decode()

    def members(self, image: Prepared, *, preparation: Preparation) -> dict[str, bytes]:
        """Keep it as it is, if the image has the size that it was made for."""
        if image.size != self.size:
            actual, expected = (f"{height}x{width}" for height, width in (image.size, self.size))
            orientation = read_header(image.content, max_pixels=preparation.max_pixels).orientation
            if orientation >= 5 and image.size == self.size[::-1]:
                raise BadImage(
                    f"its EXIF orientation {orientation} makes it {actual} pixels upright, its annotations are made "
                    f"for {expected}, as it is stored: remove the tag (`exiftool -Orientation= FILE`)"
                )
            raise BadImage(f"it is {actual} pixels upright, its annotations are made for {expected}")
        return {"json": self.text}


def find_coco(options: Write, _index_folder: Path) -> dict[str, ImageFiles]:
    """Read the annotated images by split: `train` and `val`, other splits under the name that their file gives.

    Raises:
        UserError: no annotations, images that are not found, splits with other classes, or a resize is asked for.
    """
    source, images = Path(options.source), options.images
    refuse_resize(options, what="boxes and masks")
    files = [source] if source.is_file() else annotation_files(source)
    if not files:
        raise UserError(f"expected annotations/{PREFIX}*.json in {source}, or one such JSON file as --source")
    if images is not None and len(files) > 1:
        raise UserError(f"--images goes with one annotation file, but {source} has {len(files)}: give one as --source")
    splits: dict[str, ImageFiles] = {}
    for path in files:
        name = "train" if len(files) == 1 else split_name(path)
        if name in splits:
            raise UserError(f"{path} is a second {name} split; give one of them as --source FILE --images FOLDER")
        splits[name] = _read(path, images=images, preparation=options.preparation)
    if len({split.classes for split in splits.values()}) > 1:
        raise UserError(f"the annotation files of {source} have different categories; write them one by one")
    return splits


def _read(path: Path, *, images: Path | None, preparation: Preparation) -> ImageFiles:
    try:
        tree = parse_json(path.read_bytes())
        records, categories = (_by_id(tree, name) for name in ("images", "categories"))
        _check_names(records)
        objects = _objects(tree, numbers={c["id"]: n for n, c in enumerate(categories)})
        unknown = objects.keys() - {record["id"] for record in records}
        if unknown:
            raise UserError(f"annotations of image {min(unknown)}, which is not listed")
        if not records:
            raise UserError("no images")
        annotations = [_annotation(record, objects=objects.get(record["id"], [])) for record in records]
        names = [str(member(record, "file_name", object)) for record in records]
        classes = tuple(str(member(category, "name", object)) for category in categories)
    except UserError as error:
        raise UserError(f"{path} is no COCO instances file: {error}") from None
    _say_faults(path, annotations, objects=objects, records=records)
    folder = images or _image_folder(path, first=names[0])
    paths = tuple(str(folder / name) for name in names)
    return ImageFiles(
        paths=paths,
        beside=tuple(annotations),
        classes=classes,
        read_from=(str(path),),
        preparation=preparation,
    )


def _by_id(tree: Any, name: str) -> list[dict[str, Any]]:
    """Sort the entries of a list of the file by their ids."""
    entries: list[dict[str, Any]] = member(tree, name, list)
    kinds = {type(_id(entry, "id", of=name)) for entry in entries}
    if len(kinds) > 1:
        raise UserError(f"some ids of {name} are numbers and some are text")
    by_id: dict[int | str, dict[str, Any]] = {}
    for entry in entries:
        if by_id.setdefault(entry["id"], entry) != entry:
            raise UserError(f"two entries of {name} have the id {entry['id']}")
    if len(by_id) < len(entries):
        logger.warning("%d entries of %s are listed twice and count once", len(entries) - len(by_id), name)
    return sorted(by_id.values(), key=lambda entry: entry["id"])


def _check_names(records: list[dict[str, Any]]) -> None:
    """Refuse images that lie outside their folder, and one image under several ids, which would share its objects out.

    Raises:
        UserError: with the first such name.
    """
    ids: dict[str, int | str] = {}
    for record in records:
        name = str(member(record, "file_name", object))
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in name[:2]:
            raise UserError(f"image {record['id']} has the file_name {name!r}, which leads out of the folder of images")
        if ids.setdefault(str(path), record["id"]) != record["id"]:
            raise UserError(
                f"{name} is listed under the ids {ids[str(path)]} and {record['id']}, with objects of their own: give "
                "all of them one id"
            )


def _say_faults(
    path: Path,
    annotations: list[Annotation],
    *,
    objects: Mapping[int | str, list[dict[str, Any]]],
    records: list[dict[str, Any]],
) -> None:
    """Warn of objects that training will leave out; the shards hold them all the same."""
    faults = ObjectFaults()
    for record, annotation in zip(records, annotations, strict=True):
        faults.add(objects.get(record["id"], []), size=annotation.size, name=str(record["file_name"]))
    if text := str(faults):
        logger.warning("%s: %s", path.name, text)


def _id(entry: Any, key: str, *, of: str) -> int | str:
    value = member(entry, key, object)
    if not isinstance(value, int | str):
        raise UserError(f"an entry of {of} has {key} {value!r}, expected a number or text")
    return value


def _objects(tree: Any, *, numbers: dict[int | str, int]) -> dict[int | str, list[dict[str, Any]]]:
    """Sort the objects by image, in the order of the file."""
    objects: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for annotation in member(tree, "annotations", list):
        category, image = (_id(annotation, key, of="annotations") for key in ("category_id", "image_id"))
        if category not in numbers:
            raise UserError(f"annotation {annotation.get('id')} has category {category}, not listed")
        rest = {name: value for name, value in annotation.items() if name != "image_id"}
        objects[image].append({"category": numbers[category], **rest})
    return objects


def _annotation(record: dict[str, Any], *, objects: list[dict[str, Any]]) -> Annotation:
    size = whole_number(record, "height"), whole_number(record, "width")
    names = {"image_id": record["id"]} | {n: member(record, n, object) for n in ("file_name", "height", "width")}
    licence = {"license": record["license"]} if "license" in record else {}
    text = json.dumps({**names, **licence, "objects": objects}, separators=(",", ":"))
    return Annotation(size=size, text=text.encode())


def _image_folder(path: Path, *, first: str) -> Path:
    """Find the folder in which the first image lies."""
    places = image_folders(path)
    folder = next((place for place in places if (place / first).is_file()), None)
    if folder is None:
        raise UserError(
            f"{first} of {path.name} is in none of {', '.join(map(str, places[:3]))}; say where the images lie with "
            f"--source {path} --images FOLDER"
        )
    return folder


def _is_coco(source: Path) -> bool:
    return bool(annotation_files(source)) or (source.is_file() and source.suffix.lower() == ".json")


FORMAT = SourceFormat(
    open=find_coco,
    says="images with COCO's annotations",
    recognise=_is_coco,
    options=("images",),
    narrows=("folder",),
)
