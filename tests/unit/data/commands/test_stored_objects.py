"""Objects that training leaves out are found in the shards, whatever they were made of."""

import json

from data.commands.stored_objects import read_objects
from data.shards.shard_set import open_shards
from data.writing.writer import NewSample, ShardLimits, write_shards


def test_objects_that_cannot_be_learnt_from_are_counted_and_named(encoded, tmp_path):
    boxes = ([1, 1, 5, 5], [1, 1, 0, 5], [90, 1, 5, 5])
    tree = {"file_name": "a.jpg", "height": 40, "width": 56}
    objects = [{"category": 0, "bbox": box, "area": 25, "iscrowd": 0} for box in boxes]
    contents = [json.dumps({**tree, "objects": objects}).encode(), b"[", b"{}"]
    samples = [NewSample(source="x", members={"jpg": encoded(0), "json": content}) for content in contents]
    write_shards(samples, out=tmp_path, classes=("cat",), limits=ShardLimits())
    text = str(read_objects(open_shards(tmp_path)).faults)
    assert "2 objects cannot be learnt from" in text
    assert "a.jpg, object 1" in text


def test_shards_without_objects_have_no_faults(write):
    assert str(read_objects(write(3)).faults) == ""
