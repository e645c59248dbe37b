"""Images named by a table: CSV, TSV or Parquet with a column of paths and perhaps one of labels.

Labels that are all whole numbers are class numbers; others are class names, numbered in sorted order. An empty one is
none.
"""

import csv
import importlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.shards.class_names import MAX_CLASSES, read_class_names
from data.shards.index import UNLABELLED
from data.sources.config import Write
from data.sources.formats import SourceFormat
from data.sources.image_folder import ImageFiles
from engine.documents import read_text
from engine.errors import UserError

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path")
LABEL_COLUMNS = ("label", "class", "target", "category", "class_name", "label_id", "class_id", "class_index", "wnid")
NO_COLUMN = "none"

Table = dict[str, Sequence[Any]]


def find_listed_images(options: Write, _index_folder: Path) -> dict[str, ImageFiles]:
    """List the table's images; relative paths start at ``options.images``, by default in the table's own folder.

    Raises:
        UserError: no such table or column, an empty path, an image that is missing (the first is looked for), or labels
            that are no classes.
    """
    table, preparation = Path(options.source), options.preparation
    columns = _read(table)
    paths = _paths(
        columns, column=_column(columns, name=options.path_column, usual=PATH_COLUMNS, what="path", table=table)
    )
    root = options.images or table.parent
    paths = [str(root / path) for path in paths]
    if not Path(paths[0]).is_file():
        raise UserError(
            f"{paths[0]}, the first image of {table}, is missing; say where paths start with --images FOLDER"
        )
    column = _label_column(columns, name=options.label_column, table=table)
    if column is None:
        return {"train": ImageFiles(paths=tuple(paths), preparation=preparation)}
    logger.info("labels are the column %r of %s", column, table.name)
    names = None if options.classes is None else read_class_names(options.classes)
    labels, classes = _labels([_text(value) for value in columns[column]], names=names, column=column)
    return {"train": ImageFiles(paths=tuple(paths), labels=tuple(labels), classes=classes, preparation=preparation)}


def _read(table: Path) -> Table:
    if not table.is_file():
        raise UserError(f"expected a table ({', '.join(TABLE_SUFFIXES)}), but {table} is no file")
    try:
        columns = _read_parquet(table) if table.suffix.lower() == ".parquet" else _read_csv(table)
    except csv.Error as error:
        raise UserError(f"{table} cannot be read as a table: {error}") from None
    if not columns or not len(next(iter(columns.values()))):
        raise UserError(f"{table} has no rows; the first line must name the columns")
    return columns


def _read_csv(table: Path) -> Table:
    text = read_text(table).removeprefix("\ufeff")
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = next(rows, [])
    lines = [row for row in rows if row]
    uneven = next((place for place, row in enumerate(lines) if len(row) != len(header)), None)
    if uneven is not None:
        raise UserError(
            f"row {uneven + 1} of {table} has {len(lines[uneven])} fields, the first line names {len(header)}"
        )
    return {name.strip(): [row[place] for row in lines] for place, name in enumerate(header)}


def _read_parquet(table: Path) -> Table:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(
            f"reading {table} needs pyarrow: run `pip install pyarrow` (or `pip install -e .[parquet]`), "
            "or save it as CSV"
        ) from None
    try:
        return parquet.read_table(table).to_pydict()
    except Exception as error:  # pyarrow's errors share no class
        raise UserError(f"{table} cannot be read as Parquet: {error}") from error


def _column(columns: Table, *, name: str | None, usual: Sequence[str], what: str, table: Path) -> str:
    """Choose the column of this name, or without one that with a usual name."""
    if name in columns:
        return name
    by_lower_case = {column.lower(): column for column in columns}
    choices = [by_lower_case[each] for each in usual if each in by_lower_case]
    if name is None and choices:
        return choices[0]
    lack = f"no column {name!r}" if name else f"no column that is called like a {what}"
    raise UserError(f"{table} has {lack}: choose one with --{what}-column (it has {', '.join(columns)})")


def _label_column(columns: Table, *, name: str | None, table: Path) -> str | None:
    if name == NO_COLUMN or (name is None and len(columns) == 1):
        return None
    try:
        return _column(columns, name=name, usual=LABEL_COLUMNS, what="label", table=table)
    except UserError as error:
        raise UserError(f"{error}; {NO_COLUMN} for images without labels") from None


def _paths(columns: Table, *, column: str) -> list[str]:
    paths = [_text(value) for value in columns[column]]
    empty = next((place for place, path in enumerate(paths) if not path), None)
    if empty is not None:
        raise UserError(f"row {empty + 1} has no path in column {column!r}")
    remote = next((path for path in paths if "://" in path), None)
    if remote is not None:
        raise UserError(f"{remote} is remote; only local images are packed: download them first")
    return paths


def _labels(values: list[str], *, names: Sequence[str] | None, column: str) -> tuple[list[int], tuple[str, ...]]:
    """Turn a column into class numbers, with the names of the classes."""
    labels = {value for value in values if value}
    if not labels:
        raise UserError(f"column {column!r} holds no label; choose another with --label-column, or {NO_COLUMN}")
    if all(label.isascii() and label.isdigit() for label in labels):
        highest = max(map(int, labels))
        limit = len(names) if names else MAX_CLASSES
        if highest >= limit:
            raise UserError(f"column {column!r} holds class number {highest}, expected at most {limit - 1}")
        classes = tuple(names) if names else tuple(str(number) for number in range(highest + 1))
        return [int(value) if value else UNLABELLED for value in values], classes
    classes = tuple(names) if names else tuple(sorted(labels))
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = sorted(labels - numbers.keys())
    if unknown:
        raise UserError(
            f"column {column!r} holds {unknown[0]!r}, which is not among the {len(classes)} class names given"
        )
    return [numbers[value] if value else UNLABELLED for value in values], classes


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


FORMAT = SourceFormat(
    open=find_listed_images,
    says="a table of paths",
    narrows=(),
    recognise=lambda source: source.suffix.lower() in TABLE_SUFFIXES,
    options=("images", "path_column", "label_column", "classes"),
)
