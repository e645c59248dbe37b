"""What is annotated in shards, as a COCO dataset; and what of it is unusable, by name.

Annotations are read once, without the images. What is wrong with one object concerns that object alone: it is named in
``annotation_faults.jsonl``, not learnt, and not expected in evaluations.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from data.images.annotations import fault_of_object
from data.shards.shard_set import ShardSet
from engine.documents import DocumentError, member, parse_json, whole_number
from engine.errors import UserError
from engine.terms import Size

FAULTS_NAME = "annotation_faults.jsonl"
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One object, or the whole of a sample's annotations, that cannot be used."""

    shards: str
    """Folder of the shards."""
    sample: int
    """Number of the sample."""
    file_name: str
    """Name of its image in the annotations."""
    object: int | None
    """Id of the annotation; None: all of the sample's."""
    reason: str
    """What is wrong."""


@dataclass(kw_only=True)
class Truth:
    """The objects of a data set."""

    dataset: dict[str, Any]
    """images, annotations and categories, as COCO has them; images in the samples' order."""
    image_ids: list[int]
    """COCO's image id of each sample."""
    faults: list[Fault] = field(default_factory=list)
    """What was left out."""
    without_mask: int = 0
    """Of what was left out, objects that lack nothing but a mask."""

    @property
    def category_ids(self) -> list[int]:
        """COCO's category id of each class, by class number."""
        return [category["id"] for category in self.dataset["categories"]]


def read_truth(shards: ShardSet, *, option: str, like: Sequence[int] = (), masks: bool = False) -> Truth:
    """Read what is annotated in ``shards``.

    Args:
        shards: written from COCO's layout, or with such a `.json` beside each image.
        option: what the shards were given as, for messages.
        like: category ids of another set of the same classes, kept for classes that have no object here.
        masks: whether masks are learnt: objects without a usable one are then left out.

    Raises:
        UserError: there are no annotations or classes, a class is beyond the last, or two classes have one category id.
    """
    if not shards.classes:
        raise UserError(
            f"{option} {shards.folder} names no classes; write the shards from COCO's layout with "
            "`python data/main.py write`"
        )
    reader = _Reader(shards, option=option, masks=masks)
    for sample, content in enumerate(_contents(shards)):
        reader.add(sample, content)
    if reader.beyond:  # classes and manifest do not belong together, so that no single object is at fault
        raise UserError(reader.beyond)
    if twice := _shared_id(reader.category_ids):
        first, second, number = twice
        raise UserError(
            f"{option} {shards.folder}: the classes {shards.classes[first]} and {shards.classes[second]} have the same "
            f"category_id {number}; give each class its own, and write the shards again"
        )
    # ids of classes that occur nowhere here are made up, the same ones as for `like`: results of both sets compare
    numbers = complete_ids(reader.category_ids, num_classes=len(shards.classes), like=like)
    for annotation in reader.annotations:
        annotation["category_id"] = numbers[annotation.pop("category")]
    categories = [{"id": number, "name": name} for number, name in zip(numbers, shards.classes, strict=True)]
    return Truth(
        dataset={"images": reader.images, "annotations": reader.annotations, "categories": categories},
        image_ids=[image["id"] for image in reader.images],
        faults=reader.faults,
        without_mask=reader.without_mask,
    )


def write_faults(folder: Path, faults: list[Fault]) -> str:
    """Write the faults into the run folder, one line each, and return them in a few words."""
    (folder / FAULTS_NAME).write_text("".join(json.dumps(asdict(fault)) + "\n" for fault in faults))
    shown = "; ".join(f"{fault.file_name}: {fault.reason}" for fault in faults[:SHOWN])
    more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return f"{len(faults)} annotations cannot be used and are left out ({folder / FAULTS_NAME}): {shown}{more}"


class _Reader:
    """Collects samples' annotations, checked."""

    def __init__(self, shards: ShardSet, *, option: str, masks: bool) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.faults: list[Fault] = []
        self.category_ids: dict[int, int] = {}
        self.without_mask = 0
        self.beyond = ""
        self._shards, self._option, self._masks, self._seen = shards, option, masks, set[int]()
        self._num_classes = len(shards.classes or ())

    def add(self, sample: int, content: bytes | None) -> None:
        """Take a sample's `.json`."""
        if content is None:
            raise UserError(
                f"{self._option} {self._shards.folder}: sample {sample} has no .json with objects; write the shards "
                "from COCO's layout with `python data/main.py write`"
            )
        try:
            tree: Any = parse_json(content)
            size = whole_number(tree, "height"), whole_number(tree, "width")
            objects: list[Any] = member(tree, "objects", list)
        except DocumentError as error:
            self._fault(sample, str(sample), None, f"its annotations are not as expected: {error}")
            tree, size, objects = {}, (1, 1), []
        name = str(tree.get("file_name", sample))
        number = self._image_id(tree.get("image_id"), sample)
        self.images.append({"id": number, "height": size[0], "width": size[1], "file_name": name})
        for item in objects:
            self._add_object(item, sample=sample, image=number, name=name, size=size)

    def _add_object(self, item: Any, *, sample: int, image: int, name: str, size: Size) -> None:
        reason = fault_of_object(item, size=size, masks=False)
        if self._masks and not reason:
            reason = fault_of_object(item, size=size, masks=True) or (
                "" if item.get("segmentation") else "it has no mask"
            )
            self.without_mask += bool(reason)
        if reason:
            self._fault(sample, name, item.get("id") if isinstance(item, dict) else None, reason)
            return
        category, box = int(item["category"]), [float(value) for value in item["bbox"]]
        if not 0 <= category < self._num_classes:
            self.beyond = self.beyond or (
                f"{self._option} {self._shards.folder}: {name} (sample {sample}) has an object of class {category}, "
                f"there are {self._num_classes} classes, from 0; write the shards again, or mend their manifest"
            )
            return
        if "category_id" in item:
            self.category_ids[category] = int(item["category_id"])
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image,
                "category": category,
                "bbox": box,
                "area": float(item.get("area", box[2] * box[3])),
                "iscrowd": int(item.get("iscrowd", 0)),
                "segmentation": (self._masks and item.get("segmentation")) or [],
            }
        )

    def _image_id(self, own_id: Any, sample: int) -> int:
        """Take the annotations' own id where it is a number that no other image has."""
        number = own_id if isinstance(own_id, int) and own_id not in self._seen else sample
        while number in self._seen:
            number += len(self._shards.manifest.shards) + self._shards.num_samples
        self._seen.add(number)
        return number

    def _fault(self, sample: int, name: str, own_id: Any, reason: str) -> None:
        number = own_id if isinstance(own_id, int) else None
        where = str(self._shards.folder)
        self.faults.append(Fault(shards=where, sample=sample, file_name=name, object=number, reason=reason))


def _contents(shards: ShardSet) -> Iterator[bytes | None]:
    for shard, size in enumerate(shards.sizes):
        for position in range(size):
            yield shards.read_member(shard, position, extension="json")


def complete_ids(annotated: Mapping[int, int], *, num_classes: int, like: Sequence[int] = ()) -> list[int]:
    """Give each class an id, all different.

    It is as annotated (``annotated``, by class), else as in ``like`` where no other class has that id, else the next
    one above all of them.
    """
    owners = {number: category for category, number in annotated.items()}
    for category, number in enumerate(like):
        if category not in annotated:
            owners.setdefault(number, category)
    numbers = {category: number for number, category in owners.items()}
    free = count(max((0, *like, *owners)) + 1)
    return [numbers[category] if category in numbers else next(free) for category in range(num_classes)]


def _shared_id(annotated: Mapping[int, int]) -> tuple[int, int, int] | None:
    """Find two classes with the same id; also return that id."""
    owners: dict[int, int] = {}
    for category, number in annotated.items():
        if (first := owners.setdefault(number, category)) != category:
            return first, category, number
    return None
