"""COCO: pictures with boxes, classes, masks and crowd flags, from `instances_*.json` files.

    SOURCE/annotations/instances_train2017.json     pictures in SOURCE/train2017 or SOURCE/images/train2017
    SOURCE/annotations/instances_val2017.json       (or a single JSON file as source, with the folder of its pictures)

Beside its picture a sample has a `.json`:

    {"image_id": 139, "file_name": "000000000139.jpg", "height": 426, "width": 640, "objects": [
      {"category": 0, "category_id": 1, "id": 230831, "bbox": [x, y, width, height], "area": 531.8, "iscrowd": 0,
       "segmentation": polygons [[x, y, x, y, ...], ...] or RLE {"size": [height, width], "counts": ...}}, ...]}

An object is COCO's own annotation as it stands, with ``category`` added: its class number without gaps, by rising id (0 to 79
in COCO), which is what the manifest's class names count. Pictures without annotations are kept, with no objects.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.images.decode import BadImage
from data.images.preparation import Preparation, prepare_image, read_limited
from data.sources.image_folder import TRAIN_NAMES, VAL_NAMES
from data.writing.new_sample import NewSample, Rejected
from engine.errors import UserError
from engine.terms import Size

PREFIX = "instances_"


@dataclass(frozen=True, kw_only=True)
class AnnotatedImages:
    """Pictures with what is drawn into them."""

    paths: tuple[str, ...]
    """The pictures."""
    sizes: tuple[Size, ...]
    """Height and width that the annotations were made for."""
    annotations: tuple[bytes, ...]
    """The `.json` of each."""
    classes: tuple[str, ...]
    """Names of the objects' classes."""
    preparation: Preparation
    """What is checked; never a resize."""
    labels: None = None
    """A picture as a whole has no class."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.paths)

    def prepare(self, number: int) -> NewSample | Rejected:
        """Return one picture with its annotations, if it has the size that they were made for."""
        path = self.paths[number]
        try:
            image = prepare_image(read_limited(Path(path)), preparation=self.preparation)
        except (BadImage, OSError) as error:
            return Rejected(source=path, reason=str(error))
        if (image.height, image.width) != self.sizes[number]:
            height, width = self.sizes[number]
            reason = f"it is {image.height}x{image.width} pixels upright, its annotations are made for {height}x{width}"
            return Rejected(source=path, reason=reason)
        return NewSample(source=path, members={image.extension: image.content, "json": self.annotations[number]})

    def listing(self) -> Iterator[str]:
        """Yield a line for each picture."""
        return (f"{path} {text.decode()}" for path, text in zip(self.paths, self.annotations, strict=True))


def annotation_files(folder: Path) -> list[Path]:
    """Return the `instances_*.json` files of a folder in COCO's layout."""
    return sorted((folder / "annotations").glob(f"{PREFIX}*.json"))


def find_coco(source: Path, *, images: Path | None, preparation: Preparation) -> dict[str, AnnotatedImages]:
    """Return the annotated pictures by split: `train` and `val`, other splits under the name that their file gives.

    Raises:
        UserError: no annotations, pictures that are not found, splits with other classes, or a resize is asked for.
    """
    if preparation.resize is not None:
        raise UserError("--size cannot be used with boxes and masks, which would no longer fit; resize when training")
    files = [source] if source.is_file() else annotation_files(source)
    if not files:
        raise UserError(f"expected annotations/{PREFIX}*.json in {source}, or one such JSON file as --source")
    if images is not None and len(files) > 1:
        raise UserError(f"--images goes with one annotation file, but {source} has {len(files)}: give one as --source")
    found: dict[str, AnnotatedImages] = {}
    for path in files:
        name = "train" if len(files) == 1 else _split_name(path)
        if name in found:
            raise UserError(f"{path} is a second {name} split; give one of them as --source FILE --images FOLDER")
        found[name] = _read(path, images=images, preparation=preparation)
    classes = {files.classes for files in found.values()}
    if len(classes) > 1:
        raise UserError(f"the annotation files of {source} have different categories; write them one by one")
    return found


def _split_name(path: Path) -> str:
    name = path.stem.removeprefix(PREFIX)
    plain = name.rstrip("0123456789").rstrip("_-").lower()
    return "train" if plain in TRAIN_NAMES else "val" if plain in VAL_NAMES[:-1] else name


def _read(path: Path, *, images: Path | None, preparation: Preparation) -> AnnotatedImages:
    try:
        tree: Any = json.loads(path.read_bytes())
        pictures: list[dict[str, Any]] = sorted(tree["images"], key=lambda picture: picture["id"])
        categories: list[dict[str, Any]] = sorted(tree["categories"], key=lambda category: category["id"])
        objects = _objects(tree["annotations"], numbers={c["id"]: n for n, c in enumerate(categories)})
        unknown = objects.keys() - {picture["id"] for picture in pictures}
        if unknown:
            raise UserError(f"annotations of image {min(unknown)}, which is not listed")
        if not pictures:
            raise UserError("no images")
        annotations = [_member(picture, objects=objects.get(picture["id"], [])) for picture in pictures]
        sizes = [(int(picture["height"]), int(picture["width"])) for picture in pictures]
        names = [str(picture["file_name"]) for picture in pictures]
        classes = tuple(str(category["name"]) for category in categories)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} is no COCO instances file: {type(error).__name__}: {error}") from error
    folder = images or _image_folder(path, first=names[0])
    return AnnotatedImages(
        paths=tuple(str(folder / name) for name in names),
        sizes=tuple(sizes),
        annotations=tuple(annotations),
        classes=classes,
        preparation=preparation,
    )


def _objects(annotations: list[dict[str, Any]], *, numbers: dict[int, int]) -> dict[int, list[dict[str, Any]]]:
    """Return each picture's objects, in the order of the file."""
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        if annotation["category_id"] not in numbers:
            raise UserError(f"annotation {annotation.get('id')} has category {annotation['category_id']}, not listed")
        if len(annotation["bbox"]) != 4:
            raise UserError(f"annotation {annotation.get('id')} has the box {annotation['bbox']}")
        rest = {name: value for name, value in annotation.items() if name != "image_id"}
        objects[annotation["image_id"]].append({"category": numbers[annotation["category_id"]], **rest})
    return objects


def _member(picture: dict[str, Any], *, objects: list[dict[str, Any]]) -> bytes:
    names = {"image_id": picture["id"], **{name: picture[name] for name in ("file_name", "height", "width")}}
    licence = {"license": picture["license"]} if "license" in picture else {}
    return json.dumps({**names, **licence, "objects": objects}, separators=(",", ":")).encode()


def _image_folder(path: Path, *, first: str) -> Path:
    """Return the folder in which the first picture lies."""
    split, root = path.stem.removeprefix(PREFIX), path.parent.parent
    places = [root / split, root / "images" / split, root / "images", path.parent, path.parent / "images", root]
    found = next((place for place in places if (place / first).is_file()), None)
    if found is None:
        raise UserError(
            f"{first} of {path.name} is in none of {', '.join(map(str, places[:3]))}; say where the pictures lie with "
            f"--source {path} --images FOLDER"
        )
    return found
