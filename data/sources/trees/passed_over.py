"""Which files of a source were not read: counted by suffix, with the folders that they lie in."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from data.images.phone_formats import HEIC_HINT, HEIC_SUFFIXES
from data.sources.trees.listing import suffix_of, walk

MOST_SUFFIXES, MOST_FOLDERS = 12, 3


def passed_over(root: Path, *, read: Iterable[str]) -> str:
    """Say how many files below ``root`` are none of those that were ``read``, the suffixes in their order.

    Files are counted, not compared: lists of millions of names stay where they are.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for files in walk(root):
        top = files.parts[0] if files.parts else ""
        counts.update((suffix_of(name), top) for name in files.images)
        for suffix, count in files.others.items():
            counts[suffix, top] += count
    here = f".{os.sep}"
    start = "" if str(root) == os.curdir else f"{root}{os.sep}"  # below `.` paths are written with and without ./
    for path in read:
        path = path.removeprefix(here)
        if path.startswith(start) and not (os.path.isabs(path) and not start):  # noqa: PTH117
            top, separator, _ = path[len(start) :].partition(os.sep)
            counts[suffix_of(path), top if separator else ""] -= 1
    places: dict[str, dict[str, int]] = defaultdict(dict)
    for (suffix, top), count in sorted(counts.items()):
        if count > 0:
            places[suffix][top] = count
    kinds = [_said(suffix, folders=folders) for suffix, folders in places.items()]
    more = f" and {len(kinds) - MOST_SUFFIXES} more kinds" if len(kinds) > MOST_SUFFIXES else ""
    return ", ".join(kinds[:MOST_SUFFIXES]) + more


def _said(suffix: str, *, folders: dict[str, int]) -> str:
    count = f"{sum(folders.values())} {suffix or 'without suffix'}"
    count += f" ({HEIC_HINT})" if suffix in HEIC_SUFFIXES else ""
    names = [f"{name}/" for name in folders if name]
    if not names:
        return count
    more = f", ... {len(names) - MOST_FOLDERS} more" if len(names) > MOST_FOLDERS else ""
    return f"{count} ({', '.join(names[:MOST_FOLDERS])}{more})"
