"""Tells what kind of source a folder or file is, and opens it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data.images.preparation import Preparation
from data.shards.class_names import find_class_names, read_class_names
from data.shards.manifest import MANIFEST_NAME
from data.sources.coco import annotation_files, find_coco
from data.sources.image_folder import find_images
from data.sources.imagenet import find_imagenet, is_imagenet
from data.sources.label_maps import find_label_maps, has_label_maps
from data.sources.reshard import find_shards
from data.sources.source import Source
from data.sources.table import TABLE_SUFFIXES, find_listed_images
from data.writing.config import Format
from engine.errors import UserError

logger = logging.getLogger(__name__)

SCENES = "scenes"


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Where the samples are and what is to be known about them; see `Write` in data/commands/write.py."""

    source: Path
    """Folder or file."""
    images: Path | None
    """Where relative paths of a table or a COCO file start."""
    val_labels: Path | None
    """Labels of ImageNet's flat val folder."""
    path_column: str | None
    """A table's column of paths."""
    label_column: str | None
    """A table's column of labels."""
    pattern: str
    """Which tars of a folder."""
    classes: Path | None
    """List of class names."""
    preparation: Preparation
    """What is done to each image."""
    index_folder: Path
    """Empty folder for the index of foreign tars, as long as they are read."""
    processes: int
    """Processes that index them."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names in the list that was given, or that lies in the source."""
        path = self.classes or find_class_names(self.source)
        return None if path is None else tuple(read_class_names(path))


def detect_format(source: Path) -> Format:
    """Return the format that a folder or file shows by what lies in it.

    Raises:
        UserError: a file that is no table and no JSON, or nothing there.
    """
    if source.suffix.lower() in TABLE_SUFFIXES:
        return "table"
    if source.is_file() and source.suffix.lower() == ".json":
        return "coco"
    if not source.is_dir():
        state = "a file" if source.is_file() else "missing"
        raise UserError(
            f"expected a folder of images, of shards or of a data set, a table ({', '.join(TABLE_SUFFIXES)}) or a COCO .json, "
            f"but {source} is {state}"
        )
    if annotation_files(source):
        return "coco"
    if is_imagenet(source):
        return "imagenet"
    if (source / MANIFEST_NAME).is_file() or next(source.glob("*.tar"), None) is not None:
        return "webdataset"
    return "labels" if has_label_maps(source) else "folder"


def open_source(options: SourceOptions, *, format: Format) -> Mapping[str, Source]:  # noqa: A002
    """Return the samples by split; `train` alone where the source is not divided.

    Raises:
        UserError: it is not what the format says.
    """
    return OPENERS[format](options)


def _open_folder(options: SourceOptions) -> Mapping[str, Source]:
    return find_images(options.source, preparation=options.preparation)


def _open_imagenet(options: SourceOptions) -> Mapping[str, Source]:
    return find_imagenet(
        options.source,
        val_labels=options.val_labels,
        names=options.classes,
        preparation=options.preparation,
        index_folder=options.index_folder,
        processes=options.processes,
    )


def _open_coco(options: SourceOptions) -> Mapping[str, Source]:
    return find_coco(options.source, images=options.images, preparation=options.preparation)


def _open_labels(options: SourceOptions) -> Mapping[str, Source]:
    return find_label_maps(options.source, classes=options.class_names, preparation=options.preparation)


def _open_table(options: SourceOptions) -> Mapping[str, Source]:
    found = find_listed_images(
        options.source,
        images=options.images,
        path_column=options.path_column,
        label_column=options.label_column,
        names=None if options.classes is None else read_class_names(options.classes),
        preparation=options.preparation,
    )
    return {"train": found}


def _open_shards(options: SourceOptions) -> Mapping[str, Source]:
    found = find_shards(
        options.source,
        pattern=options.pattern,
        names=options.class_names,
        preparation=options.preparation,
        index_folder=options.index_folder,
        processes=options.processes,
    )
    return {"train": found}


OPENERS: dict[str, Callable[[SourceOptions], Mapping[str, Source]]] = {
    "folder": _open_folder,
    "imagenet": _open_imagenet,
    "coco": _open_coco,
    "labels": _open_labels,
    "table": _open_table,
    "webdataset": _open_shards,
}
