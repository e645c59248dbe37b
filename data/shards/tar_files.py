"""Which tars a command means: a folder of them, one tar, or a pattern; and which of them are for training.

A folder may hold several splits: tars called `x-train-0000.tar` and `x-validation-0000.tar`, as `_info.json` beside
them says where there is one, or `train/` and `val/` with tars in them. They are never read together.
"""

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from data.split_names import SPLIT_WORDS
from engine.documents import DocumentError, parse_json
from engine.errors import UserError

ALL_TARS = "*.tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
INFO_NAME = "_info.json"
MAX_INFO_BYTES = 2**24
MAX_TARS = 1_000_000
MAX_DIGITS = 18
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")


@dataclass(frozen=True, kw_only=True)
class TarGroup:
    """Tars that are read together."""

    tars: tuple[Path, ...]
    """In the order of their names."""
    choice: str
    """The options that choose them and no others."""


def find_tars(source: Path | str, *, pattern: str = ALL_TARS) -> list[Path]:
    """List the tars that are one data set.

    Raises:
        UserError: there are none, or those of several splits; says what to give.
    """
    groups = find_tars_by_split(source, pattern=pattern)
    if len(groups) > 1:
        choices = ", ".join(f"{group.choice} ({len(group.tars)} tars)" for group in groups.values())
        raise UserError(f"{source} holds the tars of {' and '.join(groups)}: choose one with {choices}")
    return list(next(iter(groups.values())).tars)


def find_tars_by_split(source: Path | str, *, pattern: str = ALL_TARS) -> dict[str, TarGroup]:
    """List the tars by split; a single group where nothing tells them apart, or a pattern chooses.

    Raises:
        UserError: there are none, or it cannot be told which belong together.
    """
    folder = Path(source)
    if folder.is_dir():
        tars = _matching(folder, pattern=pattern)
        if not tars:
            return _below(folder, pattern=pattern)
        return _by_name(folder, tars) if pattern == ALL_TARS else _single(tars)
    if folder.is_file():
        return _single([folder])
    if is_pattern(str(source)):
        return _single(_expanded(str(source), root="", what=f"{source}"))
    raise UserError(f"expected a folder with tar shards, a tar or a pattern of tars, but {source} is missing")


def is_pattern(text: str) -> bool:
    """Whether a path stands for several, as `shard-{000000..000999}.tar` does."""
    return "{" in text or glob.has_magic(text)


def folders_in(folder: Path) -> list[Path]:
    """List the folders in one, which may hold millions of files: nothing is asked of each of them."""
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if is_folder(entry))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is none, and said where it is to be read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def split_in_name(name: str) -> str | None:
    """Tell from any word in a tar's or its folder's name of which split it is, whatever the others are."""
    for word in re.findall("[a-z]+", name.lower()):
        split = SPLIT_WORDS.get(re.sub("(set|data|shards?|images?)$", "", word))
        if split is not None:
            return split
    return None


def _single(tars: Iterable[Path]) -> dict[str, TarGroup]:
    return {"train": TarGroup(tars=tuple(tars), choice="")}


def _matching(folder: Path, *, pattern: str) -> list[Path]:
    """List the files of a folder whose names match."""
    example = f"--pattern is of names in {folder}, such as 'train-*.tar' or 'shard-{{000000..000999}}.tar'"
    if Path(pattern).is_absolute():
        raise UserError(f"{example}, got {pattern!r}")
    try:
        return _expanded(pattern, root=f"{glob.escape(str(folder))}{os.sep}", what=str(folder))
    except ValueError as error:
        raise UserError(str(error) if isinstance(error, UserError) else f"{example}: {error}") from None


def _expanded(pattern: str, *, root: str, what: str) -> list[Path]:
    """List the files that a pattern with braces, asterisks or both stands for, each once.

    Raises:
        UserError: a file that is named in full is missing.
    """
    ranges = [(int(first[:MAX_DIGITS]), int(last[:MAX_DIGITS])) for first, last in _RANGE.findall(pattern)]
    if any(abs(last - first) >= MAX_TARS for first, last in ranges):
        raise UserError(f"{pattern!r} stands for more than {MAX_TARS} tars")
    try:
        names = list(itertools.islice(braceexpand(pattern, escape=False), MAX_TARS + 1))
    except ValueError:
        raise UserError(f"{pattern!r} has a brace without its other one") from None
    if len(names) > MAX_TARS:
        raise UserError(f"{pattern!r} stands for more than {MAX_TARS} tars")
    found = [_files(root + name) for name in names]
    missing = [name for name, paths in zip(names, found, strict=True) if not paths]
    if missing and len(names) > 1:
        raise UserError(f"{len(missing)} of the {len(names)} names of {pattern!r} match no file, such as {missing[0]}")
    if missing and not root:
        raise UserError(f"no file matches {what}")
    return [Path(path) for path in dict.fromkeys(itertools.chain.from_iterable(found))]


def _files(pattern: str) -> list[str]:
    paths = glob.glob(pattern, recursive=True)  # noqa: PTH207 - a whole path with asterisks anywhere in it
    return sorted(path for path in paths if Path(path).is_file())


def _below(folder: Path, *, pattern: str) -> dict[str, TarGroup]:
    """Look for tars in the folders of a folder that holds none itself.

    Raises:
        UserError: there are none, or the folders' names do not tell what they are.
    """
    folders = folders_in(folder) if pattern == ALL_TARS else []
    holding = {each: tars for each in folders if (tars := _matching(each, pattern=pattern))}
    if not holding:
        names = sorted(path.name for path in folder.iterdir())
        packed = [name for name in names if name.endswith(COMPRESSED)]
        if packed:
            raise UserError(
                f"{folder} holds compressed tars ({packed[0]}, ...): samples are read by position, which needs plain "
                "ones; unpack them, `gunzip` makes x.tar of x.tar.gz"
            )
        raise UserError(f"no file in {folder} matches {pattern!r}; it holds {', '.join(names[:5]) or 'nothing'}")
    groups = {
        str(split_in_name(each.name)): TarGroup(tars=tuple(tars), choice=f"--source {each}")
        for each, tars in holding.items()
    }
    if len(groups) < len(holding) or "None" in groups:
        choices = ", ".join(f"--source {each}" for each in list(holding)[:5])
        raise UserError(f"{folder} holds no tars itself, its folders do: choose one with {choices}")
    return groups


def _by_name(folder: Path, tars: list[Path]) -> dict[str, TarGroup]:
    """Divide a folder's tars by what `_info.json` or their names say of their split."""
    listed = _splits_in_info(folder / INFO_NAME)
    splits: dict[str | None, list[Path]] = {}
    for tar in tars:
        splits.setdefault(listed.get(tar.name) or split_in_name(tar.stem), []).append(tar)
    if len(splits) == 1:
        return _single(tars)
    groups = {split: TarGroup(tars=tuple(each), choice=_choice(each, tars)) for split, each in splits.items()}
    if None in groups:
        choices = ", ".join(f"{group.choice} ({split or 'no split'})" for split, group in groups.items())
        raise UserError(f"{folder} holds tars of a split beside others: choose one with {choices}")
    return {split: group for split, group in groups.items() if split is not None}


def _splits_in_info(path: Path) -> Mapping[str, str]:
    """Read the split of each tar from timm's `_info.json`, if that is what it is."""
    if not path.is_file() or path.stat().st_size > MAX_INFO_BYTES:
        return {}
    try:
        tree: Any = parse_json(path.read_bytes())
    except DocumentError:
        return {}
    return dict(_pairs(tree))


def _pairs(tree: Any) -> Iterator[tuple[str, str]]:
    splits = tree.get("splits") if isinstance(tree, dict) else None
    for name, entry in splits.items() if isinstance(splits, dict) else ():
        names = entry.get("filenames") if isinstance(entry, dict) else None
        for each in names if isinstance(names, list) else ():
            if isinstance(each, str) and (split := split_in_name(name)) is not None:
                yield Path(each).name, split


def _choice(chosen: list[Path], tars: list[Path]) -> str:
    """Find the pattern that fits these tars and none of the others."""
    start = chosen[0].stem.rstrip("0123456789")
    fitting = [tar for tar in tars if tar.name.startswith(start)]
    return f"--pattern '{start}*.tar'" if fitting == chosen else f"--source {chosen[0]} and the like"
