"""Documents that users can damage: every fault is said with its place, and what was written is read back."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from engine.documents import (
    DocumentError,
    dump_yaml,
    from_tree,
    member,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
    read_yaml,
    real_number,
    whole_number,
)
from engine.errors import UserError

BINARY = bytes(range(256))


@dataclass(frozen=True, kw_only=True)
class Part:
    size: float
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str
    count: int
    folder: Path
    parts: tuple[Part, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None

    def __post_init__(self):
        if self.count < 0:
            raise UserError("count must not be negative")


WHOLE = Whole(name="x", count=3, folder=Path("a/b"), parts=(Part(size=1.5), Part(size=2, kind="b")), more={"k": [1]})
TREE = json.loads(json.dumps(dataclasses.asdict(WHOLE), default=str))


def test_a_dataclass_comes_back_from_its_json():
    assert from_tree(Whole, TREE) == WHOLE
    assert from_tree(Whole, {**TREE, "limit": 4}).limit == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": "three"}, "expected a whole number for count, got text, 'three'"),
        ({"count": True}, "expected a whole number for count, got true or false, True"),
        ({"count": 1.5}, "expected a whole number for count, got a number, 1.5"),
        ({"count": -1}, "count must not be negative"),
        ({"name": None}, "expected text for name, got null, None"),
        ({"parts": {"size": 1}}, "expected a list for parts, got an object"),
        ({"parts": [{"size": 1}, 3]}, r"expected an object for parts\[1\], got a whole number, 3"),
        ({"parts": [{"kind": "a"}]}, r"parts\[0\].size is missing"),
        ({"parts": [{"size": 1, "kind": "c"}]}, r"expected 'a' or 'b' for parts\[0\].kind, got text, 'c'"),
        ({"limit": "no"}, "expected a whole number or null for limit, got text"),
        ({"colour": 1}, "colour is unknown here"),
    ],
)
def test_a_field_that_does_not_fit_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        from_tree(Whole, {**TREE, **changes})


def test_a_missing_field_and_what_is_no_object_are_named():
    with pytest.raises(DocumentError, match="name is missing"):
        from_tree(Whole, {"count": 1, "folder": "x"})
    with pytest.raises(DocumentError, match="expected an object, got a list"):
        from_tree(Whole, [1])


def test_members_are_checked_by_their_kind():
    tree = {"list": [1], "number": 3, "text": "4", "nothing": None}
    assert member(tree, "list", list) == [1]
    assert member(tree, "number", float) == 3.0
    assert (whole_number(tree, "text"), whole_number(tree, "absent", default=2)) == (4, 2)
    assert real_number({"x": "1e-3"}, "x") == 1e-3
    for name, kind, message in (
        ("list", dict, "expected an object for 'list', got a list"),
        ("absent", list, "'absent' is missing"),
    ):
        with pytest.raises(DocumentError, match=message):
            member(tree, name, kind)
    with pytest.raises(DocumentError, match="expected an object with 'x', got a list"):
        member([], "x", int)
    for name in ("list", "nothing"):
        with pytest.raises(DocumentError, match=f"expected a number for '{name}'"):
            whole_number(tree, name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{oops", "expected JSON, but Expecting property name"),
        (b"", "expected JSON, but Expecting value: line 1"),
        (b"[" * 200_000, "expected JSON, but it is nested too deeply"),
        (b"1" * 5000, "expected JSON, but Exceeds the limit"),
        (b'"caf\xe9"', "expected text in UTF-8, but line 1 holds the byte 0xe9; save it as UTF-8"),
        (BINARY, "expected text in UTF-8, but line 2 holds the byte 0x80"),
    ],
)
def test_what_is_no_json_is_said_with_its_file(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}: {message}"):
        read_json(path)
    with pytest.raises(DocumentError, match=message):
        parse_json(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a:\n\tb: 1", "line 2: expected YAML, but while scanning for the next token, found character '.t'"),
        (b"a: 1\nb: [1", "line 2: expected YAML, but while parsing a flow sequence"),
        (b"a: 1\na: 2", "line 2: key 'a' appears twice"),
        (b"- 1\n- 2", "expected a mapping at the top, got a list"),
        (b"hello", "expected a mapping at the top, got text, 'hello'"),
        (b"? [1]\n: 2", "line 1: expected a name before the colon, got a list or a mapping"),
        (b"a: 2026-13-45", "a value cannot be read: ValueError: month must be in 1..12"),
        (b"a: !!int x", "a value cannot be read: ValueError: invalid literal for int"),
        (b"a: !!bool x", "a value cannot be read: KeyError"),
        (b"a: !!timestamp x", "a value cannot be read: AttributeError"),
        (b"a: !!python/object:os.system {}", "line 1: expected YAML, but could not determine a constructor"),
        (b"a: *x", "line 1: expected YAML, but found undefined alias 'x'"),
        (b"a: 1\n---\nb: 2", "line 2: expected YAML, but expected a single document"),
        (b"a: 1\0", "expected YAML, but unacceptable character"),
        (b"[" * 5000, "expected YAML, but it is nested too deeply"),
        (BINARY, "expected text in UTF-8"),
        ("a: b".encode("utf-16"), "expected text in UTF-8, but line 1 holds the byte 0xff"),
    ],
)
def test_what_is_no_yaml_is_said_with_its_file_and_line(tmp_path, content, message):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        read_yaml(path)


def test_yaml_comes_back_as_it_was_written():
    tree = {"a": 1e-4, "b": "1e-4", "c": [None, True], "d": {"e": ""}}
    assert parse_yaml(dump_yaml(tree)) == tree
    assert parse_yaml("a: 1e-4") == {"a": 1e-4}
    assert parse_yaml("") == {}


def test_text_is_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("één", encoding="utf-8")
    assert read_text(path) == "één"
    path.write_bytes("één".encode("latin-1"))
    with pytest.raises(UserError, match=f"{path}: expected text in UTF-8, but line 1 holds the byte 0xe9"):
        read_text(path)
