"""Which folders of a tree are its splits, and which single folder only wraps what is meant."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from data.sources.trees.listing import PICTURE_SUFFIXES, holds, subfolders
from data.sources.trees.names import Split, is_other_part, split_of
from engine.errors import UserError

logger = logging.getLogger(__name__)

NO_SPLITS = "none"
MOST_WRAPPERS = 4

Splits = dict[str, Path]
T = TypeVar("T")


def levels_of(folder: Path) -> list[Path]:
    """List a folder and those in it that it only wraps: one after the other, each the only one with images."""
    levels = [folder]
    while len(levels) <= MOST_WRAPPERS and (inner := only_folder(levels[-1])) is not None:
        levels.append(inner)
    return levels


def without_wrappers(split: Path) -> Path:
    """Look through a folder that only wraps the class folders of a split; one that wraps images is a class."""
    innermost = levels_of(split)[-1]
    return split if holds(innermost, deep=False) else innermost


def only_folder(folder: Path) -> Path | None:
    """Find the only folder with images in one that has none of its own."""
    if not folder.is_dir() or holds(folder, deep=False):
        return None
    below: list[Path] = []
    for path in subfolders(folder):
        below += [path] if holds(path, suffixes=PICTURE_SUFFIXES) else []
        if len(below) > 1:
            return None
    return below[0] if below and holds(below[0]) else None


def find_splits(folder: Path, *, choice: str | None = None) -> Splits | None:
    """Find the folders to train and to validate on; None where the folder is not divided.

    A class may be called train, too, so the folder has to be divided by all that holds images in it, or what is left
    has to be of another kind. Images to test on are for validation where nothing else is. ``choice`` is what
    `--splits` says: the names of the two folders, or `none`.

    Raises:
        UserError: it could be meant either way, or has two folders for one split.
    """
    if choice is not None:
        return _chosen_folders(folder, choice=choice)
    by_split: dict[Split | None, list[Path]] = {}
    for path in subfolders(folder):
        by_split.setdefault(split_of(path.name), []).append(path)
    named = [path for split in ("train", "val", "test") for path in by_split.get(split, []) if holds(path)]
    if not named:
        return None
    others = [path for path in by_split.get(None, []) if holds(path)]
    trains, vals, tests = (
        [path for path in by_split.get(split, []) if path in named] for split in ("train", "val", "test")
    )
    if not trains:
        return _without_train(folder, named=named, others=others)
    if max(map(len, (trains, vals, tests))) > 1 or not _are_splits(folder, train=trains[0], named=named, others=others):
        if len(named) == 1 and not _class_names(named[0]) and not any(is_other_part(path.name) for path in others):
            return None  # one class of several is called train
        raise _two_readings(folder, named=named, others=others)
    held_out = vals or tests
    return {"train": trains[0]} | ({"val": held_out[0]} if held_out else {})


def warn_of_others(folder: Path, *, splits: Splits) -> None:
    """Name the folders with images that are no part of the splits."""
    for path in subfolders(folder):
        if path not in splits.values() and holds(path):
            logger.warning("%s is left alone: it is no part of train and val", path)


def choose(choice: str, *, find: Callable[[str], T | None], there: Sequence[str], place: Path) -> dict[str, T] | None:
    """Take the parts of a set that `--splits` names, the one to train on first; None where it says `none`.

    ``find`` looks for a part by its name; ``there`` are the names of those in ``place``, for the message.

    Raises:
        UserError: there is no part of a name, or more than two are named.
    """
    if choice == NO_SPLITS:
        return None
    names = [name.strip() for name in choice.split(",")]
    parts = [part for name in names if name and (part := find(name)) is not None]
    if len(parts) < len(names) or len(names) > 2:
        raise UserError(
            f"--splits {choice} must be the name of the folder to train on and, after a comma, that of the one to "
            f"validate on, or {NO_SPLITS}; {place} has {_listed(there) or 'no folders'}"
        )
    return dict(zip(("train", "val"), parts, strict=False))


def _chosen_folders(folder: Path, *, choice: str) -> Splits | None:
    def find(name: str) -> Path | None:
        return folder / name if (folder / name).is_dir() else None

    return choose(choice, find=find, there=_names(subfolders(folder)), place=folder)


def _without_train(folder: Path, *, named: list[Path], others: list[Path]) -> Splits | None:
    """Leave classes alone that are called `test` or `valid`; refuse what has only parts to validate on."""
    if others or len(named) == 1:
        return None
    raise UserError(
        f"{folder} has {_listed(_names(named))}, but no folder to train on: choose them with --splits "
        f"{named[0].name},{named[1].name}, or say --splits {NO_SPLITS} if these are classes"
    )


def _are_splits(folder: Path, *, train: Path, named: list[Path], others: list[Path]) -> bool:
    """Whether folders beside the splits cannot be meant: the splits have the same folders in them, these have not."""
    if not others:
        return True
    classes = _class_names(train)
    common = [classes & _class_names(path) for path in named if path != train]
    return any(common) and not any(_class_names(path) & classes for path in others)


def _class_names(folder: Path) -> set[str]:
    return {path.name for path in subfolders(without_wrappers(folder)) if holds(path)}


def _two_readings(folder: Path, *, named: list[Path], others: list[Path]) -> UserError:
    both = ",".join(path.name for path in named[:2])
    return UserError(
        f"{folder} holds {_listed(_names(named))}"
        + (f" beside {_listed(_names(others))}" if others else "")
        + ", which can be "
        f"{len(named) + len(others)} classes (--format folder --splits {NO_SPLITS}) or splits (--format folder "
        f"--splits {both}, the one to train on first): say which, or move what is not meant elsewhere"
    )


def _names(paths: Sequence[Path]) -> list[str]:
    return [f"{path.name}/" for path in paths]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
