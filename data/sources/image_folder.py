"""Image files with class numbers, and how they are found: class folders, train and val of them, or one flat folder."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from data.images.decode import BadImage
from data.shards.index import UNLABELLED
from data.shards.manifest import MANIFEST_NAME
from data.sources.config import Preparation, Write
from data.sources.formats import SourceFormat
from data.sources.preparation import IMAGE_SUFFIXES, Prepared, prepare_image, read_limited
from data.sources.trees.class_folders import ClassFolders, check_depth, plain_names, read_class_folders
from data.sources.trees.listing import files_in, holds, num_others, subfolders
from data.sources.trees.splits import Splits, find_splits, levels_of, warn_of_others, without_wrappers
from data.writing.journal import Rejected
from data.writing.writer import NewSample
from engine.errors import UserError

logger = logging.getLogger(__name__)

LABEL_TABLES = (".csv", ".tsv", ".parquet")


class Beside(Protocol):
    """What a sample holds beside its image; picklable, and a line of text that tells it from others."""

    def members(self, image: Prepared, *, preparation: Preparation) -> dict[str, bytes]:
        """Read it, by extension.

        Raises:
            BadImage: it does not fit the image.
            OSError: it cannot be read.
        """
        ...


@dataclass(frozen=True)
class BesideFile:
    """A file that is beside an image."""

    path: str
    """Where it lies."""

    def __str__(self) -> str:
        return self.path


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
    read_from: tuple[str, ...] = ()
    """Other files that were read to know all this."""
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

    def files(self) -> Iterator[str]:
        """Yield every file that is read, so that it can be said which are not."""
        yield from self.paths
        yield from (item.path for item in self.beside or () if isinstance(item, BesideFile))
        yield from self.read_from

    def listing(self) -> Iterator[str]:
        """Yield a line for each sample."""
        others = self.beside or self.labels or (UNLABELLED,) * len(self.paths)
        return (f"{path} {other}" for path, other in zip(self.paths, others, strict=True))


def find_images(options: Write, _index_folder: Path) -> dict[str, ImageFiles]:
    """List the images of a folder by split: {"train": ...}, and "val" where the folder is divided so itself.

    Raises:
        UserError: no folder, no image in it, or folders that can be understood in several ways.
    """
    folder, preparation = Path(options.source), options.preparation
    if not folder.is_dir():
        raise UserError(f"expected a folder of images, but {folder} is {'a file' if folder.exists() else 'missing'}")
    folder, splits = _divided(folder, options=options)
    depth = options.class_depth
    if splits is None:
        if options.splits is not None and depth is None and len(subfolders(folder)) > 1:
            depth = 1  # that they are classes was the answer
        found = {"train": find_split(folder, preparation=preparation, depth=depth)}
        _name_tables(Path(options.source), folder, train=found["train"])
        return found
    if depth is None:
        splits = {name: without_wrappers(path) for name, path in splits.items()}
    trees = {name: read_class_folders(path) for name, path in splits.items()}
    labelled = any(len(tree.counts(1)) > 1 for tree in trees.values())
    found = {
        name: _images_in(tree, preparation=preparation, labelled=labelled, depth=depth, is_split=len(trees) > 1)
        for name, tree in trees.items()
    }
    _name_tables(Path(options.source), folder, *splits.values(), train=found["train"])
    if "val" in found:
        found["val"] = same_classes(found["val"], train=found["train"], folder=folder)
    return found


def _name_tables(*folders: Path, train: ImageFiles) -> None:
    """Name tables that lie beside images without classes, since they may hold them."""
    tables = [path for folder in dict.fromkeys(folders) for path in files_in(folder, suffixes=LABEL_TABLES)]
    if tables and train.classes is None:
        logger.warning("no class is read from %s, which lies beside the images: for that, --source %s", *tables[:1] * 2)


def _divided(folder: Path, *, options: Write) -> tuple[Path, Splits | None]:
    """Look through folders that only wrap others until one is divided into splits, or holds classes or images."""
    levels = levels_of(folder)
    for level in levels:
        splits = None
        with contextlib.suppress(UserError) if level != levels[-1] else contextlib.nullcontext():
            splits = find_splits(level, choice=options.splits)
        if splits is not None:
            warn_of_others(level, splits=splits)
            logger.info("%s: train is %s", level, ", val is ".join(str(path.name) for path in splits.values()))
            return level, splits
    if options.class_depth is not None:
        return folder, None
    if levels[-1] != folder:
        logger.info("%s is all that holds images in %s: it is looked into", levels[-1], folder)
    return levels[-1], None


def find_split(
    folder: Path, *, preparation: Preparation, labelled: bool = False, depth: int | None = None
) -> ImageFiles:
    """List the images of one split: labelled by class folder, or unlabelled where there is none.

    A single folder is a class only where the images are known to be ``labelled``, or ``depth`` says so.

    Raises:
        UserError: no image, or folders that can be understood in several ways.
    """
    return _images_in(read_class_folders(folder), preparation=preparation, labelled=labelled, depth=depth)


def _images_in(
    tree: ClassFolders, *, preparation: Preparation, labelled: bool, depth: int | None, is_split: bool = False
) -> ImageFiles:
    if not any(files.images for files in tree.files):
        others = num_others(tree.files)
        raise UserError(
            f"no image in {tree.folder}: expected files ending in {', '.join(IMAGE_SUFFIXES)}, or class folders of them"
            + (f"; it holds {others}" if others else "")
        )
    asked, depth = depth is not None, check_depth(tree, depth=depth, is_split=is_split)
    folders = tree.classes(depth) if depth and tree.counts(depth) else []
    if len(folders) < (1 if labelled or asked else 2):
        if folders:
            logger.info("%s: %s is taken for no class; --class-depth 1 makes it one", tree.folder, folders[0])
        return ImageFiles(paths=tuple(tree.all_paths()), preparation=preparation)
    _warn_of_empty(tree, folders=folders, depth=depth)
    paths = tree.paths(depth)
    if above := sum(len(files.images) for files in tree.files) - len(paths):
        logger.warning("%s: %d images lie above the class folders, and are left out", tree.folder, above)
    numbers = {name: number for number, name in enumerate(folders)}
    return ImageFiles(
        paths=tuple(path for path, _ in paths),
        labels=tuple(numbers[name] for _, name in paths),
        classes=plain_names(folders),
        preparation=preparation,
    )


def _warn_of_empty(tree: ClassFolders, *, folders: list[str], depth: int) -> None:
    counts = tree.counts(depth)
    empty = [name for name in folders if not counts[name]]
    if empty:
        logger.warning(
            "%s: %d of the %d classes have no image that is read, and keep their numbers: %s%s",
            tree.folder,
            len(empty),
            len(folders),
            ", ".join(empty[:5]),
            ", ..." if len(empty) > 5 else "",
        )


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
    unknown = sorted({val.classes[label] for label in val.labels} - set(train.classes))
    if unknown:
        raise UserError(
            f"{folder} has classes to validate on that are not to train on: {', '.join(unknown[:3])}; move them "
            "elsewhere, name the folder to train on with --splits and leave the other out, or take all images without "
            "classes with --class-depth 0"
        )
    numbers = {name: number for number, name in enumerate(train.classes)}
    renamed = [numbers.get(name, UNLABELLED) for name in val.classes]  # others have no image
    return replace(val, classes=train.classes, labels=tuple(renamed[label] for label in val.labels))


def _is_folder(source: Path) -> bool:
    return source.is_dir() and not (source / MANIFEST_NAME).is_file() and holds(source)


FORMAT = SourceFormat(
    open=find_images,
    says="a folder of images",
    recognise=_is_folder,
    options=("splits", "class_depth"),
    narrows=(),
)
