"""Walks through folders: links to folders are followed, but not in circles; hidden files are not looked at.

Only the kind of a folder is asked of millions of files at first, so questions are answered by the first files that do.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.shards.tar_files import folders_in, is_folder
from data.sources.preparation import IMAGE_SUFFIXES, packed_suffixes
from data.sources.trees.names import is_hidden
from engine.errors import UserError

OTHER_IMAGE_SUFFIXES = (
    *(".tif", ".tiff", ".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".jfif"),
    *(".dng", ".cr2", ".nef", ".arw", ".ppm", ".pgm", ".tga", ".dcm", ".exr"),
)
"""Of pictures that are not read: a folder of them is a class like others, whose samples are passed over."""
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, *OTHER_IMAGE_SUFFIXES)
MOST_ENTRIES = 200_000
"""A folder in which so many are none of those that are looked for is taken to hold none."""
MOST_LEVELS = 100


@dataclass(frozen=True, kw_only=True)
class FolderFiles:
    """The files of one folder in a tree."""

    parts: tuple[str, ...]
    """Names of the folders on the way to it."""
    images: list[str] = field(default_factory=list[str])
    """Names of its image files, sorted."""
    others: Counter[str] = field(default_factory=Counter[str])
    """Its other files, by lower-case suffix."""


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder that are not hidden, sorted."""
    if not folder.is_dir():
        return []
    return [path for path in folders_in(folder) if not is_hidden(path.name)]


def files_in(folder: Path, *, suffixes: Sequence[str]) -> list[Path]:
    """List the regular files in a folder, not below it, that have one of the suffixes, sorted."""
    if not folder.is_dir():
        return []
    return [folder / name for name in sorted(_files(folder)) if name.lower().endswith(tuple(suffixes))]


def holds(folder: Path, *, suffixes: Sequence[str] | None = None, deep: bool = True) -> bool:
    """Whether a folder, with ``deep`` one below it, too, has a file with one of the suffixes, by default an image."""
    ending, remaining = tuple(suffixes or packed_suffixes()), MOST_ENTRIES
    levels: list[tuple[str, int]] = [(str(folder), 0)]
    while levels:
        path, level = levels.pop()
        below: list[str] = []
        with os.scandir(path) as entries:
            for entry in entries:
                remaining -= 1
                if is_hidden(entry.name):
                    continue
                if entry.name.lower().endswith(ending) and not is_folder(entry):
                    return True
                if deep and level < MOST_LEVELS and is_folder(entry):
                    below.append(entry.path)
                if remaining <= 0:
                    return False
        levels += [(name, level + 1) for name in sorted(below, reverse=True)]
    return False


def walk(folder: Path, *, deep: bool = True, suffixes: Sequence[str] | None = None) -> Iterator[FolderFiles]:
    """Yield the folder and, with ``deep``, all below it, each before those in it, in a fixed order."""
    yield from _walk(str(folder), (), deep=deep, ending=tuple(suffixes or packed_suffixes()), above=frozenset())


def _walk(
    path: str, parts: tuple[str, ...], *, deep: bool, ending: tuple[str, ...], above: frozenset[tuple[int, int]]
) -> Iterator[FolderFiles]:
    status = os.stat(path)  # noqa: PTH116 - path objects of millions are slow
    place = (status.st_dev, status.st_ino)
    if place in above:  # a link back to a folder that holds it
        return
    if len(parts) > MOST_LEVELS:
        raise UserError(f"{path} lies more than {MOST_LEVELS} folders deep: give one that is nearer as --source")
    files, folders = FolderFiles(parts=parts), list[str]()
    with os.scandir(path) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if is_folder(entry):
                folders.append(entry.name)
            elif entry.name.lower().endswith(ending):
                files.images.append(entry.name)
            else:
                files.others[suffix_of(entry.name)] += 1
    files.images.sort()
    yield files
    for name in sorted(folders) if deep else ():
        yield from _walk(
            os.path.join(path, name),  # noqa: PTH118
            (*parts, name),
            deep=deep,
            ending=ending,
            above=above | {place},
        )


def images_of(folder: Path, *, deep: bool) -> list[str]:
    """List the image files of a folder, and with ``deep`` of those below it, in a fixed order."""
    return [path for files in walk(folder, deep=deep) for path in paths_in(folder, files)]


def paths_in(folder: Path, files: FolderFiles) -> list[str]:
    """Write out the paths of the images of a folder below ``folder``."""
    parent = os.path.join(folder, *files.parts)  # noqa: PTH118
    return [os.path.join(parent, name) for name in files.images]  # noqa: PTH118


def num_others(files: Iterable[FolderFiles]) -> str:
    """Say how many files of other suffixes there are, the most first."""
    total: Counter[str] = Counter()
    for each in files:
        total.update(each.others)
    kinds = sorted(total.items(), key=lambda kind: (-kind[1], kind[0]))
    return ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in kinds[:6])


def _is_regular(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file that ends, which pipes and devices need not."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _files(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if not is_hidden(entry.name) and _is_regular(entry)]


def suffix_of(name: str) -> str:
    """Tell a file's suffix, in lower case."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122
