"""Images named by a table: a column of paths, perhaps one of labels and one of splits."""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.shards.class_names import read_class_names
from data.sources.config import Write
from data.sources.formats import SourceFormat
from data.sources.image_folder import ImageFiles
from data.sources.tables.labels import NO_COLUMN, number_labels
from data.sources.tables.places import Places, find_places
from data.sources.tables.reading import TABLE_SUFFIXES, Table, read_table
from data.sources.tables.splits import rows_by_split, split_column
from engine.errors import UserError

logger = logging.getLogger(__name__)

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_id")
PATH_COLUMNS += ("image_name", "image_file", "imagename", "imageid", "img", "img_path", "img_name", "filenames")
LABEL_COLUMNS = ("label", "class", "target", "category", "class_name", "label_id", "class_id", "class_index", "wnid")
BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax", "x_min", "y_min", "x_max", "y_max", "bbox", "boxes", "bboxes")


def find_listed_images(options: Write, _index_folder: Path) -> dict[str, ImageFiles]:
    """List the table's images; relative paths start at ``options.images``, by default in the table's own folder.

    Raises:
        UserError: no such table or column, an empty path, an image that is missing (the first is looked for), or labels
            that are no classes.
    """
    table, preparation = Path(options.source), options.preparation
    columns = read_table(table)
    root = options.images or table.parent
    path_column = _path_column(columns, name=options.path_column, root=root, table=table)
    paths = find_places(
        _names(columns, column=path_column), root=root, table=table, is_given=options.images is not None
    )
    images = ImageFiles(paths=tuple(paths), preparation=preparation)
    label_column = _label_column(columns, name=options.label_column, table=table)
    if label_column is not None:
        logger.info("labels are the column %r of %s", label_column, table.name)
        names = None if options.classes is None else read_class_names(options.classes)
        labels, classes = number_labels(
            [_text(value) for value in columns[label_column]],
            names=names,
            column=label_column,
            no_label=options.no_label,
        )
        images = replace(images, labels=tuple(labels), classes=classes)
    _refuse_twice(images, table=table)
    column = split_column(list(columns), name=options.split_column, others=(path_column, label_column), table=table)
    texts = [] if column is None else [_text(value) for value in columns[column]]
    rows = None if column is None else rows_by_split(texts, column=column, table=table)
    return _by_split(images, rows=rows, table=table)


def _path_column(columns: Table, *, name: str | None, root: Path, table: Path) -> str:
    """Choose the column of paths by its name, or else the only one that names an image there is."""
    try:
        return _column(columns, name=name, usual=PATH_COLUMNS, what="path", table=table)
    except UserError:
        places = Places(root)
        found = [column for column, values in columns.items() if name is None and places.find(_text(values[0]))]
        if len(found) != 1:
            raise
        logger.info("paths are the column %r of %s", found[0], table.name)
        return found[0]


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
    boxes = [column for column in columns if column.lower() in BOX_COLUMNS]
    if name is None and boxes:
        raise UserError(
            f"{table} has boxes ({', '.join(boxes)}), which are not read from tables: convert them to COCO or YOLO, or "
            f"take one class of each image with --label-column ({NO_COLUMN} for images without labels)"
        )
    try:
        return _column(columns, name=name, usual=LABEL_COLUMNS, what="label", table=table)
    except UserError as error:
        raise UserError(f"{error}; {NO_COLUMN} for images without labels") from None


def _names(columns: Table, *, column: str) -> list[str]:
    paths = [_text(value) for value in columns[column]]
    empty = next((place for place, path in enumerate(paths) if not path), None)
    if empty is not None:
        raise UserError(f"row {empty + 1} has no path in column {column!r}")
    remote = next((path for path in paths if "://" in path), None)
    if remote is not None:
        raise UserError(f"{remote} is remote; only local images are packed: download them first")
    return paths


def _refuse_twice(images: ImageFiles, *, table: Path) -> None:
    """Refuse an image with two labels; say how often images are named again with the same."""
    labels = images.labels or (0,) * len(images)
    seen: dict[str, int] = {}
    for path, label in zip(images.paths, labels, strict=True):
        if seen.setdefault(os.path.normpath(path), label) != label:
            raise UserError(f"{table} names {path} twice, with different labels: only one label of an image is read")
    if len(seen) < len(images):
        logger.warning("%s: %d rows name an image that another one names, too", table, len(images) - len(seen))


def _by_split(images: ImageFiles, *, rows: dict[str, list[int]] | None, table: Path) -> dict[str, ImageFiles]:
    """Divide the images; say which classes can be validated and not learnt."""
    if rows is None:
        return {"train": images}
    found = {name: _rows(images, numbers=numbers) for name, numbers in rows.items()}
    held_out = found["val"].labels if "val" in found else None
    if images.classes is not None and held_out is not None:
        unseen = sorted({images.classes[label] for label in set(held_out) - set(found["train"].labels or ()) - {-1}})
        if unseen:
            logger.warning(
                "%s: %d classes of val have no row to train on: %s", table, len(unseen), ", ".join(unseen[:5])
            )
    return found


def _rows(images: ImageFiles, *, numbers: Sequence[int]) -> ImageFiles:
    labels = images.labels
    return replace(
        images,
        paths=tuple(images.paths[number] for number in numbers),
        labels=None if labels is None else tuple(labels[number] for number in numbers),
    )


def _text(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else str(value).strip()


FORMAT = SourceFormat(
    open=find_listed_images,
    says="a table of paths",
    narrows=(),
    recognise=lambda source: source.suffix.lower() in TABLE_SUFFIXES,
    options=("images", "path_column", "label_column", "split_column", "no_label", "classes"),
)
