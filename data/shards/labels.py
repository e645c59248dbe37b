"""The label of a sample in a tar that anyone may have written: a class number or name, in `.cls` or `.json`."""

import re
from collections import Counter
from typing import Any

from data.shards.class_names import MAX_CLASSES
from engine.documents import DocumentError, parse_json

MAX_LABEL_BYTES = 256
"""Longer `.cls` members are no class."""
MAX_JSON_BYTES = 2**16
"""Longer `.json` members are not searched for a label."""
JSON_KEYS = ("label", "cls", "class", "class_id", "label_id", "class_index", "class_name", "target")
"""Where a sample's `.json` says its class, the first of them that it has."""
NO_CLASS_NUMBER = "labels that are no class number"
MINUS_ONE = "labels of -1, read as no label"

_WHOLE = re.compile(r"\+?(\d+)(\.0*)?")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf)", re.ASCII | re.IGNORECASE)


def text_label(content: bytes, *, first: int, ignored: Counter[str]) -> int | str | None:
    """Read a label that is text; ``first`` is the number of the first class. Counts in ``ignored`` what is none."""
    try:
        text = content.decode("utf-8-sig").strip(" \t\r\n\0")
    except UnicodeDecodeError:
        text = ""
    if (whole := _WHOLE.fullmatch(text)) and whole[1].isascii():
        return _number(int(whole[1][:MAX_LABEL_BYTES]), first=first, ignored=ignored)
    if text in ("-1", "-1.0"):
        ignored[MINUS_ONE] += 1
        return None
    if not text or not text.isprintable() or _NUMBER.fullmatch(text):
        ignored[NO_CLASS_NUMBER] += 1
        return None
    return text


def json_label(content: bytes, *, first: int, ignored: Counter[str]) -> int | str | None:
    """Find the label in a sample's `.json`, if it names one."""
    try:
        tree: Any = parse_json(content)
    except DocumentError:
        return None
    key = next((key for key in JSON_KEYS if key in tree), None) if isinstance(tree, dict) else None
    value = None if key is None else tree[key]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = str(value).encode(errors="replace")
    return text_label(text, first=first, ignored=ignored) if len(text) <= MAX_LABEL_BYTES else None


def _number(number: int, *, first: int, ignored: Counter[str]) -> int | None:
    if 0 <= number - first < MAX_CLASSES:
        return number - first
    ignored[NO_CLASS_NUMBER] += 1
    return None
