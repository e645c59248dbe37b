"""Columns of a table: CSV with any usual separator, with or without a line of names, `path label` lists, Parquet.

path,label            photos/1.jpg 0            photos\1.jpg;dog
photos/1.jpg,dog      photos/2.jpg 1            photos\2.jpg;cat
"""

import csv
import importlib
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.sources.preparation import IMAGE_SUFFIXES
from engine.documents import read_text
from engine.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".lst", ".parquet")
SEPARATORS = (",", ";", "\t", "|")
ROWS_LOOKED_AT = 50
ENDING = "|".join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES, key=len, reverse=True))
LIST_LINE = re.compile(rf"(.*(?:{ENDING}))(?:[ \t]+(\S.*))?", re.IGNORECASE)
EXCEL_LINE = re.compile(r"\Asep=.\r?\n")

Table = dict[str, Sequence[Any]]
Rows = list[list[str]]


def read_table(path: Path) -> Table:
    """Read a table's columns by name; without names they are `path` and `label`, or `column 1` and so on.

    Raises:
        UserError: no table, rows of different lengths, two columns of the same name, or nothing in it.
    """
    if not path.is_file():
        raise UserError(f"expected a table ({', '.join(TABLE_SUFFIXES)}), but {path} is no file")
    try:
        columns = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text_table(path)
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as a table: {error}") from None
    if not columns or not len(next(iter(columns.values()))):
        raise UserError(f"{path} has no rows; the first line must name the columns")
    return columns


def _read_text_table(path: Path) -> Table:
    text = EXCEL_LINE.sub("", read_text(path).removeprefix("\ufeff"), count=1)
    separator = _separator(text, usual="\t" if path.suffix.lower() == ".tsv" else ",")
    rows = _listed(text) if separator is None else list(_parsed(text, separator=separator))
    if not rows:
        return {}
    if is_header := not any(_is_image(field) for field in rows[0]):
        names, rows = [name.strip() for name in rows[0]], rows[1:]
    else:
        names = _names(rows[0])
    uneven = next((place for place, row in enumerate(rows) if len(row) != len(names)), None)
    if uneven is not None:
        raise UserError(
            f"row {uneven + 1} of {path} has {len(rows[uneven])} fields, "
            f"{'the first line names' if is_header else 'the first has'} {len(names)}"
        )
    return _by_name(names, [[row[place] for row in rows] for place in range(len(names))], path=path)


def _separator(text: str, *, usual: str) -> str | None:
    """Choose what divides the rows alike, and by it names or images; None: a list of `path label`."""
    lines = [line for line in text.splitlines()[:ROWS_LOOKED_AT] if line.strip()]
    if lines and all(LIST_LINE.fullmatch(line.strip()) for line in lines[-1:] + lines[1:]):
        divided = any(separator in line for line in lines for separator in SEPARATORS if separator != "\t")
        if not divided and not ("\t" in lines[0] and "\t" in lines[-1]):
            return None
    for separator in (usual, *SEPARATORS):
        try:
            rows = list(itertools.islice(_parsed(text, separator=separator), ROWS_LOOKED_AT))
        except csv.Error:
            continue
        if len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            return separator
    return usual


def _parsed(text: str, *, separator: str) -> Any:
    return (row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if row)


def _listed(text: str) -> Rows:
    """Read lines of a path and perhaps a label; a first line without an image names the two."""
    rows: Rows = []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = LIST_LINE.fullmatch(line)
        rows.append([field or "" for field in match.groups()] if match else line.split())
    has_labels = any(len(row) > 1 and row[1] for row in rows)
    return rows if has_labels else [row[:1] for row in rows]


def _names(row: list[str]) -> list[str]:
    """Name the columns of a table whose first line is an image already."""
    place = next(place for place, field in enumerate(row) if _is_image(field))
    others = "label" if len(row) == 2 else "column {}"
    return ["path" if number == place else others.format(number + 1) for number in range(len(row))]


def _is_image(field: str) -> bool:
    return field.strip().lower().endswith(IMAGE_SUFFIXES)


def _by_name(names: Sequence[str], columns: Sequence[Sequence[Any]], *, path: Path) -> Table:
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise UserError(f"{path} has two columns called {twice!r}: rename one")
    return dict(zip(names, columns, strict=True))


def _read_parquet(path: Path) -> Table:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(
            f"reading {path} needs pyarrow: run `pip install pyarrow` (or `pip install -e .[parquet]`), "
            "or save it as CSV"
        ) from None
    try:
        table = parquet.read_table(path)
        columns = [column.to_pylist() for column in table.columns]
    except Exception as error:  # pyarrow's errors share no class
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error
    return _by_name(table.column_names, columns, path=path)
