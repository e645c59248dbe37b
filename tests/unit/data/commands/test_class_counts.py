"""Classes with their samples, or with their objects where samples have no class."""

import json

from rich.console import Console

from data.commands.class_counts import MAX_ROWS, split_table
from data.commands.stored_objects import read_objects
from data.shards.shard_set import open_shards
from data.writing.writer import NewSample, ShardLimits, write_shards


def rows(table):
    console = Console(width=200)
    with console.capture() as shown:
        console.print(table)
    return [line.replace("│", " ").split() for line in shown.get().splitlines()]


def test_objects_are_counted_by_class(encoded, tmp_path):
    contents = [json.dumps({"objects": [{"category": n} for n in each]}).encode() for each in ((0, 2, 2), (), (2, 9))]
    members = [{"jpg": encoded(0), "json": content} for content in [*contents, b"[", b'{"objects": 3}']]
    samples = [NewSample(source="x", members=each) for each in members]
    write_shards(samples, out=tmp_path, classes=("a", "b", "c"), limits=ShardLimits(samples=2))
    assert read_objects(open_shards(tmp_path)).counts == {"a": 1, "b": 0, "c": 3}


def test_classes_of_one_name_are_counted_apart(encoded, tmp_path):
    content = json.dumps({"objects": [{"category": 0}, {"category": 0}, {"category": 1}]}).encode()
    samples = [NewSample(source="x", members={"jpg": encoded(0), "json": content})]
    write_shards(samples, out=tmp_path, classes=("a", "b", "a"), limits=ShardLimits())
    counts = read_objects(open_shards(tmp_path)).counts
    assert counts == {"a (class 0)": 2, "b": 1, "a (class 2)": 0}
    shown = rows(split_table(("a", "b", "a"), splits={"train": counts}))
    assert ["2", "a", "(class", "2)", "0"] in shown


def test_without_objects_there_is_nothing_to_count(write):
    assert read_objects(write(3, classes=None)).counts == {}
    assert read_objects(write(3, name="other")).counts == {}


def test_splits_are_columns_and_many_classes_are_shortened():
    shown = rows(split_table(("a", "b"), splits={"train": {"a": 3, "b": 0}, "val": {"b": 1}}))
    assert ["0", "a", "3", "0"] in shown
    assert ["1", "b", "0", "1"] in shown
    names = tuple(f"c{number}" for number in range(100))
    shown = rows(split_table(names, splits={"train": {name: number for number, name in enumerate(names)}}))
    assert ["99", "c99", "99"] in shown
    assert ["0", "c0", "0"] in shown
    assert ["...", f"{100 - MAX_ROWS // 2}", "more", "..."] in shown
    assert not any(row[:1] == ["50"] for row in shown)
