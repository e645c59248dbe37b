"""What training will leave out of the objects of shards."""

from typing import Any

from data.commands.class_counts import MOST_READ
from data.images.annotations import ObjectFaults
from data.shards.shard_set import ShardSet
from engine.documents import DocumentError, member, parse_json, whole_number


def object_faults(shards: ShardSet) -> ObjectFaults:
    """Judge the objects of all samples as training does, unless they are too many to be read again."""
    faults = ObjectFaults()
    for shard, size in enumerate(shards.sizes if shards.num_samples <= MOST_READ else ()):
        for position in range(size):
            content = shards.read_member(shard, position, extension="json")
            try:
                tree: Any = {} if content is None else parse_json(content)
                objects, name = member(tree, "objects", list), str(member(tree, "file_name", object))
                image_size = whole_number(tree, "height"), whole_number(tree, "width")
            except DocumentError:  # not of this form: `verify` names it
                continue
            faults.add(objects, size=image_size, name=name)
    return faults
