"""JSON and YAML that users can damage, read so that every fault is said with its place. Imports no torch.

``DocumentError`` says what is wrong with a document's content. Readers of a file name the file as well; readers of one
kind of file (a manifest, a backbone's config) add what the file should be and what to do.
"""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from engine.errors import UserError, is_refusal

T = TypeVar("T")


class DocumentError(UserError):
    """Content that is not what was expected; the message names the place in the document, but not the file."""


def read_text(path: Path) -> str:
    """Read a text file in UTF-8.

    Raises:
        OSError: the system refuses it.
        UserError: it holds other bytes.
    """
    try:
        return _decoded(path.read_bytes())
    except DocumentError as error:
        raise UserError(f"{path}: {error}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: the system refuses it.
        UserError: it is no JSON.
    """
    try:
        return parse_json(path.read_bytes())
    except DocumentError as error:
        raise UserError(f"{path}: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file with a mapping at its top; an empty one is an empty mapping.

    Raises:
        OSError: the system refuses it.
        UserError: it is no YAML, or something else at its top.
    """
    try:
        return parse_yaml(path.read_bytes())
    except DocumentError as error:
        raise UserError(f"{path}: {error}") from None


def parse_json(content: bytes | str) -> Any:
    """Parse a JSON document.

    Raises:
        DocumentError: it is none.
    """
    text = _decoded(content) if isinstance(content, bytes) else content
    try:
        return json.loads(text)
    except RecursionError:
        raise DocumentError("expected JSON, but it is nested too deeply") from None
    except ValueError as error:
        raise DocumentError(f"expected JSON, but {error}") from None


def parse_object(content: bytes | str) -> dict[str, Any]:
    """Parse a JSON document with an object at its top.

    Raises:
        DocumentError: it is none.
    """
    tree = parse_json(content)
    if not isinstance(tree, dict):
        raise DocumentError(f"expected an object at the top, got {_named(tree)}")
    return tree  # pyright: ignore[reportUnknownVariableType]


def json_lines(content: bytes) -> list[dict[str, Any]]:
    """Parse the objects of a file with one a line; what is none, such as a line that a kill cut short, is left out."""
    lines: list[dict[str, Any]] = []
    for text in content.splitlines():
        with contextlib.suppress(DocumentError):
            line = parse_json(text)
            if isinstance(line, dict):
                lines.append(line)
    return lines


def parse_yaml(content: bytes | str) -> dict[str, Any]:
    """Parse a YAML document with a mapping at its top.

    Raises:
        DocumentError: it is none; the message names the line where that can be told.
    """
    text = _decoded(content) if isinstance(content, bytes) else content
    try:
        tree: Any = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise DocumentError(f"{line}expected YAML, but {problem}") from None
    except yaml.YAMLError as error:
        raise DocumentError(f"expected YAML, but {' '.join(str(error).split())}") from None
    except RecursionError:
        raise DocumentError("expected YAML, but it is nested too deeply") from None
    except Exception as error:  # PyYAML hands on what int(), datetime() and others raise of values like 2026-13-45
        if not is_refusal(error):
            raise
        raise DocumentError(f"expected YAML, but a value cannot be read: {type(error).__name__}: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise DocumentError(f"expected a mapping at the top, got {_named(tree)}")
    return tree  # pyright: ignore[reportUnknownVariableType]


def line_numbers(content: bytes) -> dict[str, int]:
    """Find the line of each value of a YAML document with a mapping at its top, by its keys joined with dots.

    Raises:
        DocumentError: it is none.
    """
    parse_yaml(content)
    return dict(_lines_below(yaml.compose(_decoded(content), _Loader), prefix=""))


def _lines_below(node: yaml.Node | None, *, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{prefix}{key.value}", key.start_mark.line + 1
            yield from _lines_below(value, prefix=f"{prefix}{key.value}.")


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """Write a tree as YAML that `parse_yaml` reads back to an equal one."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def member(tree: Any, name: str, kind: type[T]) -> T:
    """Read the value called ``name`` of a JSON object, of a kind (dict, list, str, int, float or object).

    Raises:
        DocumentError: there is none, or it is of another kind.
    """
    if not isinstance(tree, dict):
        raise DocumentError(f"expected an object with {name!r}, got {_named(tree)}")
    if name not in tree:
        raise DocumentError(f"{name!r} is missing")
    value: Any = tree[name]
    if kind is object or type(value) is kind:  # nearly always, and there may be millions
        return cast("T", value)
    return _converted(value, kind, at=repr(name))


def whole_number(tree: Any, name: str, *, default: int | None = None) -> int:
    """Read the number called ``name`` of a JSON object without its decimals; other programs write some as text.

    Raises:
        DocumentError: there is none and no ``default``, or it is no number.
    """
    return _number(tree, name, int, default)


def real_number(tree: Any, name: str, *, default: float | None = None) -> float:
    """Read the number called ``name`` of a JSON object, decimals and all, like `whole_number`."""
    return _number(tree, name, float, default)


def _number(tree: Any, name: str, kind: Callable[[Any], T], default: T | None) -> T:
    if default is not None and isinstance(tree, dict) and name not in tree:
        return default
    value = member(tree, name, object)
    try:
        return kind(value)
    except (ValueError, TypeError, OverflowError):
        raise _misfit(value, "a number", at=repr(name)) from None


def from_tree(cls: type[T], tree: Any) -> T:
    """Make a dataclass of a JSON object that `dataclasses.asdict` was the source of.

    Raises:
        DocumentError: a field is missing, unknown or of another kind.
        UserError: the class itself refuses the values.
    """
    return _converted(tree, cls, at="")


def _converted(value: Any, kind: Any, *, at: str) -> Any:
    """Turn a JSON value into the kind that a type annotation says; ``at`` is its place in the document."""
    origin, options = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(value, kind, at=at)
    if origin in (Union, UnionType):
        fitting = next((option for option in options if _is_of(value, option)), None)
        if fitting is None:
            raise _misfit(value, " or ".join(map(_kind_name, options)), at=at)
        return _converted(value, fitting, at=at)
    if origin is Literal:
        if value not in options:
            raise _misfit(value, " or ".join(map(repr, options)), at=at)
        return value
    if not _is_of(value, kind):
        raise _misfit(value, _kind_name(kind), at=at)
    if origin is tuple and Ellipsis not in options and len(value) != len(options):
        raise _misfit(value, f"{len(options)} values", at=at)
    if origin is tuple or origin is list:
        return origin(_converted(item, options[0], at=f"{at}[{number}]") for number, item in enumerate(value))
    return Path(value) if kind is Path else float(value) if kind is float else value


def _dataclass(tree: Any, cls: type[T], *, at: str) -> T:
    if not isinstance(tree, dict):
        raise _misfit(tree, "an object", at=at)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    place = f"{at}." if at else ""
    unknown = sorted(map(str, tree.keys() - fields))
    if unknown:
        raise DocumentError(f"{place}{unknown[0]} is unknown here")
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in tree:
            values[name] = _converted(tree[name], hints[name], at=f"{place}{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DocumentError(f"{place}{name} is missing")
    return cls(**values)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a kind as far as its outermost part tells."""
    if dataclasses.is_dataclass(kind):
        return isinstance(value, dict)
    kind = get_origin(kind) or kind
    if kind is Any:
        return True
    kind = _JSON_KINDS.get(kind, kind)
    if kind in (int, float):  # a bool is an int to Python, and a whole float is written as an int
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


_JSON_KINDS: dict[Any, type] = {tuple: list, Path: str, None: NoneType}
_NAMES = {
    dict: "an object",
    list: "a list",
    tuple: "a list",
    str: "text",
    Path: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
}


def _kind_name(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return "an object"
    kind = get_origin(kind) or kind
    return _NAMES.get(kind, str(kind))


def _misfit(value: Any, expected: str, *, at: str) -> DocumentError:
    return DocumentError(f"expected {expected}{f' for {at}' if at else ''}, got {_named(value)}")


def _named(value: Any, *, longest: int = 40) -> str:
    """Name a value for a message, large ones by their kind alone."""
    text = repr(value)
    kind = _NAMES.get(type(value), type(value).__name__)
    return kind if len(text) > longest or isinstance(value, dict | list) else f"{kind}, {text}"


def _decoded(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DocumentError(
            f"expected text in UTF-8, but line {line} holds the byte 0x{content[error.start]:02x}; "
            "save it as UTF-8, or name another file"
        ) from None


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-4`` is a number and a key may appear once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise DocumentError(f"line {line}: expected a name before the colon, got a list or a mapping")
            if key.value in seen:
                raise DocumentError(f"line {line}: key {key.value!r} appears twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that ``_Loader`` would read as numbers."""


for _dialect in (_Loader, _Dumper):
    # PyYAML follows YAML 1.1, where a float needs a dot: 1e-4 would be the string "1e-4".
    _dialect.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
