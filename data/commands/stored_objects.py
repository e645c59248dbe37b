"""The objects that shards hold: how many of each class, and which of them training will leave out."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from data.commands.class_counts import told_apart
from data.images.annotations import ObjectFaults
from data.shards.shard_set import ShardSet
from engine.documents import DocumentError, member, parse_json, whole_number

MOST_READ = 200_000
"""Of more samples the annotations are not read again."""


@dataclass(kw_only=True)
class StoredObjects:
    """What is known of the objects of all samples; nothing where there are none, or too many samples to be read."""

    counts: dict[str, int] = field(default_factory=dict[str, int])
    """Objects of each class by name."""
    faults: ObjectFaults = field(default_factory=ObjectFaults)
    """Those that cannot be learnt from, judged as training does."""


def read_objects(shards: ShardSet) -> StoredObjects:
    """Read the annotations of all samples, each once."""
    stored, labels = StoredObjects(), Counter[int]()
    for shard, size in enumerate(shards.sizes if shards.num_samples <= MOST_READ else ()):
        for position in range(size):
            try:
                tree: Any = parse_json(shards.read_member(shard, position, extension="json") or b"")
            except DocumentError:  # no annotations, or none of this form, which `verify` names
                continue
            labels.update(_categories(tree))
            _judge(tree, faults=stored.faults)
    if shards.classes is not None and any(0 <= label < len(shards.classes) for label in labels):
        stored.counts = {name: labels[label] for label, name in enumerate(told_apart(shards.classes))}
    return stored


def _categories(tree: Any) -> list[int]:
    try:
        return [entry["category"] for entry in tree["objects"] if isinstance(entry["category"], int)]
    except (TypeError, KeyError):
        return []


def _judge(tree: Any, *, faults: ObjectFaults) -> None:
    try:
        objects, name = member(tree, "objects", list), str(member(tree, "file_name", object))
        image_size = whole_number(tree, "height"), whole_number(tree, "width")
    except DocumentError:
        return
    faults.add(objects, size=image_size, name=name)
