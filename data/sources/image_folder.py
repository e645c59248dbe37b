"""Image files with class numbers, and how they are found: class folders, train and val of them, or one flat folder."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from data.images.decode import BadImage
from data.shards.index import UNLABELLED
from data.sources.config import Preparation, Write
from data.sources.formats import SourceFormat
from data.sources.preparation import IMAGE_SUFFIXES, Prepared, prepare_image, read_limited
from data.writing.journal import Rejected
from data.writing.writer import NewSample
from engine.errors import UserError

logger = logging.getLogger(__name__)

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test")


class Beside(Protocol):
    """What a sample holds beside its image; picklable, and a line of text that tells it from others."""

    def members(self, image: Prepared, *, preparation: Preparation) -> dict[str, bytes]:
        """Read it, by extension.

        Raises:
            BadImage: it does not fit the image.
            OSError: it cannot be read.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Image files, with a class number each or with none."""

    paths: tuple[str, ...]
    """The files."""
    labels: tuple[int, ...] | None = None
    """Their class numbers, -1 for none."""
    beside: tuple[Beside, ...] | None = None
    """What each sample holds beside its image, instead of a class number."""
    classes: tuple[str, ...] | None = None
    """Class names by number."""
    preparation: Preparation
    """What is done to each."""

    def __len__(self) -> int:
        """Count the files."""
        return len(self.paths)

    def prepare(self, number: int) -> NewSample | Rejected:
        """Read one file, checked and shrunk as ``preparation`` says, with what is beside it."""
        path = self.paths[number]
        label = UNLABELLED if self.labels is None else self.labels[number]
        try:
            image = prepare_image(read_limited(Path(path)), preparation=self.preparation)
            members = {image.extension: image.content}
            if self.beside is not None:
                members |= self.beside[number].members(image, preparation=self.preparation)
        except (BadImage, OSError) as error:
            return Rejected(source=path, reason=str(error))
        return NewSample(source=path, members=members, label=None if label == UNLABELLED else label)

    def listing(self) -> Iterator[str]:
        """Yield a line for each sample."""
        others = self.beside or self.labels or (UNLABELLED,) * len(self.paths)
        return (f"{path} {other}" for path, other in zip(self.paths, others, strict=True))


def find_images(options: Write, _index_folder: Path) -> dict[str, ImageFiles]:
    """List the images of a folder by split: {"train": ...}, and "val" where the folder is divided so itself.

    Raises:
        UserError: no folder, no image in it, or images both beside and inside class folders.
    """
    folder, preparation = Path(options.source), options.preparation
    if not folder.is_dir():
        raise UserError(f"expected a folder of images, but {folder} is {'a file' if folder.exists() else 'missing'}")
    splits = split_folders(folder)
    if splits is None:
        return {"train": find_split(folder, preparation=preparation)}
    train = find_split(splits["train"], preparation=preparation)
    if "val" not in splits:
        return {"train": train}
    val = find_split(splits["val"], preparation=preparation, labelled=train.classes is not None)
    return {"train": train, "val": same_classes(val, train=train, folder=folder)}


def split_folders(folder: Path) -> dict[str, Path] | None:
    """Find the train folder, and the val folder if there is one; None where the folder is not divided so.

    A class may be called train, too: a folder is divided only where all its subfolders have names of splits.
    """
    names = {entry.name.lower(): entry for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name[0] != "."}
    train = [name for name in TRAIN_NAMES if name in names]
    val = [name for name in VAL_NAMES if name in names]
    if not train or not names.keys() <= {*TRAIN_NAMES, *VAL_NAMES}:
        return None
    for name in train[1:] + val[1:]:
        logger.warning("%s is left alone: %s is taken", names[name], (train if name in train else val)[0])
    return {"train": names[train[0]]} | ({"val": names[val[0]]} if val else {})


def find_split(folder: Path, *, preparation: Preparation, labelled: bool = False) -> ImageFiles:
    """List the images of one split: labelled by class folder, or unlabelled where there is none.

    A single folder is a class only where the images are known to be ``labelled``.

    Raises:
        UserError: no image, or images both beside and inside class folders.
    """
    flat = images_of(folder, deep=False)
    by_class = {entry.name: images_of(entry, deep=True) for entry in sorted(folder.iterdir()) if entry.is_dir()}
    by_class = {name: paths for name, paths in by_class.items() if paths and not name.startswith(".")}
    if flat and by_class:
        raise UserError(
            f"{folder} has images of its own ({Path(flat[0]).name}, ...) beside folders with images "
            f"({', '.join(list(by_class)[:3])}); expected class folders only, or one flat folder"
        )
    if not flat and not by_class:
        raise UserError(
            f"no image in {folder}: expected files ending in {', '.join(IMAGE_SUFFIXES)}, or class folders of them"
        )
    if len(by_class) < (1 if labelled else 2):
        paths = flat or next(iter(by_class.values()))
        return ImageFiles(paths=tuple(paths), preparation=preparation)
    return ImageFiles(
        paths=tuple(path for paths in by_class.values() for path in paths),
        labels=tuple(label for label, paths in enumerate(by_class.values()) for _ in paths),
        classes=tuple(by_class),
        preparation=preparation,
    )


def images_of(folder: Path, *, deep: bool) -> list[str]:
    """List the image files of a folder, and with ``deep`` of those below it, in a fixed order."""
    paths: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if deep else []
        images = sorted(n for n in names if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith("."))
        paths += [os.path.join(parent, name) for name in images]  # noqa: PTH118 - path objects of millions are slow
    return paths


def same_classes(val: ImageFiles, *, train: ImageFiles, folder: Path) -> ImageFiles:
    """Give the held-out images the class numbers of the training images.

    Raises:
        UserError: there are classes among them that are not in training.
    """
    if train.classes is None or val.classes is None or val.labels is None:
        if train.classes is not None or val.classes is not None:
            labelled = "val" if train.classes is None else "train"
            logger.warning("%s: only %s has class folders; val is written without labels", folder, labelled)
        return replace(val, classes=None, labels=None)
    unknown = sorted(set(val.classes) - set(train.classes))
    if unknown:
        raise UserError(f"{folder} has classes to validate on that are not to train on: {', '.join(unknown[:3])}")
    numbers = {name: number for number, name in enumerate(train.classes)}
    renamed = [numbers[name] for name in val.classes]
    return replace(val, classes=train.classes, labels=tuple(renamed[label] for label in val.labels))


FORMAT = SourceFormat(open=find_images, recognise=Path.is_dir)
