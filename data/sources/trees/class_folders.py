"""Images by class folder: which folders are classes, and what speaks against it.

    SOURCE/dog/1.jpg    SOURCE/dog/indoor/2.jpg    SOURCE/cat/...        classes by default: the folders at the top
    SOURCE/Fruit/Apple/1.jpg    SOURCE/Fruit/Pear/2.jpg                  --class-depth 1: Fruit; 2: Fruit/Apple, ...

An empty class folder keeps its number, as one does whose pictures are of kinds that are not read. Folders that hold
other things (text, tables) are no classes.
"""

import logging
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from data.sources.trees.listing import OTHER_IMAGE_SUFFIXES, FolderFiles, paths_in, walk
from data.sources.trees.names import hints_of, named_after, parse_name
from data.sources.trees.pairs import MAP_SUFFIXES, find_pairs
from engine.errors import UserError

logger = logging.getLogger(__name__)

LABEL_SUFFIXES = (*MAP_SUFFIXES, ".txt", ".xml")
MOST_LOOKED_INTO = 20

Parts = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Inner:
    """The folders with images in a class folder."""

    names: list[str]
    """Their names."""
    depth: int
    """How deep they lie, 2 where nothing wraps them."""


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """The images of a split, in the folders that they lie in."""

    folder: Path
    """The split's folder."""
    files: tuple[FolderFiles, ...]
    """What lies in it and below it, each folder before those in it."""

    @property
    def flat(self) -> list[str]:
        """Names of the images that lie in no folder of their own."""
        return self.files[0].images

    def counts(self, depth: int) -> Counter[str]:
        """Count the images below each folder at a depth."""
        counts: Counter[str] = Counter()
        for files in self.files:
            if files.images and len(files.parts) >= depth:
                counts["/".join(files.parts[:depth])] += len(files.images)
        return counts

    def classes(self, depth: int) -> list[str]:
        """Name the classes: folders with images, those with pictures that are not read, and empty ones; sorted."""
        states: dict[Parts, set[str]] = {}
        for files in self.files:
            if len(files.parts) >= depth:
                states.setdefault(files.parts[:depth], set()).update(_kinds(files))
        named = {parts for parts, kinds in states.items() if "image" in kinds or "picture" in kinds}
        # An empty folder is a class that waits for its images only where it stands among classes.
        empty = {parts for parts, kinds in states.items() if not kinds} if len(named) > 1 else set[Parts]()
        return ["/".join(parts) for parts in sorted(named | empty)]

    def paths(self, depth: int) -> list[tuple[str, str]]:
        """List the images below the classes' folders, each with its class, in the order of the classes."""
        listed = [files for files in self.files if files.images and len(files.parts) >= depth]
        listed.sort(key=lambda files: files.parts[:depth])  # stable: below a class the order of the walk stays
        return [(path, "/".join(files.parts[:depth])) for files in listed for path in paths_in(self.folder, files)]

    def all_paths(self) -> list[str]:
        """List all images."""
        return [path for files in self.files for path in paths_in(self.folder, files)]


def read_class_folders(folder: Path) -> ClassFolders:
    """Walk through a split's folder."""
    return ClassFolders(folder=folder, files=tuple(walk(folder)))


def check_depth(tree: ClassFolders, *, depth: int | None, is_split: bool = False) -> int:
    """Choose the depth of the class folders, 1 unless it is given.

    In a tree that ``is_split``, beside others, folders that are called as splits are classes.

    Raises:
        UserError: images lie beside the class folders, or what is below them looks like classes, too.
    """
    if depth is not None:
        if depth and not tree.counts(depth):
            raise UserError(f"{tree.folder} has no image as deep as --class-depth {depth} says")
        return depth
    _refuse_images_beside(tree)
    _refuse_maps(tree)
    _refuse_roles(tree, is_split=is_split)
    below = _folders_inside(tree)
    _refuse_pairs(tree, names=list(below))
    inside = {name: inner for name, inner in below.items() if len(inner.names) > 1}
    if not inside:
        return 1
    name, inner = next(iter(inside.items()))
    folders = inner.names
    kinds = {kind for parts in map(parse_name, folders) for kind in (parts.split, parts.role) if kind}
    if len(kinds) > 1:
        raise UserError(
            f"{tree.folder} has {len(tree.counts(1))} folders with images, of which {name} has {_listed(folders)} "
            f"inside: if that is what is meant give it as --source {tree.folder / name}; if they are splits of a class "
            "put the splits outside (train/, val/, the classes in them); or take the folders as classes with "
            "--class-depth 1"
        )
    tops, leaves = list(tree.counts(1)), list(tree.counts(inner.depth))
    if 2 * len(below) <= len(tops):  # most have images of their own, which a greater depth would leave out
        logger.info("%s: the folders in %s are taken for parts of one class", tree.folder, name)
        return 1
    raise UserError(
        f"{tree.folder} has folders in its folders: classes can be {len(tops)} ({_listed(tops)}; --class-depth 1) or "
        f"{len(leaves)} ({_listed(leaves)}; --class-depth {inner.depth}), or there are none (--class-depth 0): say "
        "which, with --format folder"
    )


def _refuse_images_beside(tree: ClassFolders) -> None:
    if tree.flat and len(tree.files) > 1 and any(files.images for files in tree.files[1:]):
        names = list(tree.counts(1))
        raise UserError(
            f"{tree.folder} has images of its own ({tree.flat[0]}, ...) beside folders with images "
            f"({', '.join(names[:3])}); expected class folders only, or one flat folder: leave them out with "
            "--class-depth 1, take all images without classes with --class-depth 0, or give a folder inside as --source"
        )


def _refuse_maps(tree: ClassFolders) -> None:
    """Refuse label maps among the images."""
    for files in tree.files:
        stems = {os.path.splitext(name)[0] for name in files.images}  # noqa: PTH122
        maps = sorted(stem for stem in stems if named_after(stem) in stems)
        if maps and 3 * len(maps) >= len(stems):
            raise UserError(
                f"{tree.folder.joinpath(*files.parts)} has images and what is drawn into them side by side "
                f"({named_after(maps[0])}, {maps[0]}): sort them into images/ and masks/, under the same names, or "
                "take all for images with --class-depth 0 (1: with classes)"
            )


def _refuse_roles(tree: ClassFolders, *, is_split: bool) -> None:
    """Refuse folders whose names speak of splits, or of images and labels; of many classes some do so by chance."""
    names = list(tree.counts(1))
    hints = [words for name in names if (words := hints_of(name))] if len(names) > 1 else []
    together = set[str]().union(*hints) if 2 * len(hints) > len(names) else set[str]()
    are_splits = len(together & {"train", "val", "test"}) > 1 and not is_split
    if {"images", "labels"} <= together or are_splits:
        raise UserError(
            f"{tree.folder} has folders whose names do not sound like classes ({_listed(names)}): say with --splits "
            "which are to train and to validate on, rename images/, masks/, train/, val/ so, or take them as classes "
            "with --class-depth 1"
        )


def _refuse_pairs(tree: ClassFolders, *, names: list[str]) -> None:
    """Refuse folders of which each is a data set of its own, as VOC2007 and VOC2012."""
    for name in names[:MOST_LOOKED_INTO]:
        if find_pairs(tree.folder / name, suffixes=LABEL_SUFFIXES) is not None:
            raise UserError(
                f"{tree.folder} has {len(names)} folders with images ({_listed(names)}), of which {name} has images "
                f"beside labels: give it as --source {tree.folder / name}, or take the folders as classes with "
                "--class-depth 1"
            )


def _folders_inside(tree: ClassFolders) -> dict[str, _Inner]:
    """List the folders with images in those class folders that have no images of their own."""
    by_top: dict[str, list[Parts]] = {}
    for files in tree.files:
        if files.images and files.parts:
            by_top.setdefault(files.parts[0], []).append(files.parts)
    inside: dict[str, _Inner] = {}
    for name, folders in by_top.items():
        # Folders that only wrap others are looked through.
        shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))
        if shared < min(map(len, folders)):
            inside[name] = _Inner(names=list(dict.fromkeys(parts[shared] for parts in folders)), depth=shared + 1)
        elif len(folders[0]) > 1:
            inside[name] = _Inner(names=[folders[0][1]], depth=2)
    return inside


def plain_names(names: list[str]) -> tuple[str, ...]:
    """Write class names as all systems do.

    Raises:
        UserError: one is no text, or two are the same.
    """
    plain: dict[str, str] = {}
    for name in names:
        try:
            known = plain.setdefault(unicodedata.normalize("NFC", name.encode().decode()), name)
        except UnicodeEncodeError:
            raw = name.encode(errors="surrogateescape")
            raise UserError(f"the class folder {raw!r} has a name that is not UTF-8: rename it") from None
        if known != name:
            raise UserError(f"two class folders are called {name!r}, in other bytes: make one of them")
    return tuple(plain)


def _kinds(files: FolderFiles) -> set[str]:
    """Say whether a folder holds images, pictures of other kinds, or something else."""
    suffixes = files.others.keys()
    kinds = {"image"} if files.images else set[str]()
    kinds |= {"picture"} if any(suffix in OTHER_IMAGE_SUFFIXES for suffix in suffixes) else set()
    return kinds | ({"other"} if suffixes and not kinds else set())


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
