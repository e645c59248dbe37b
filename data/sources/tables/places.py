"""Where the images lie that a table names: paths without suffix, with backslashes, or seen from a folder nearby."""

import logging
from collections.abc import Sequence
from pathlib import Path

from data.sources.preparation import IMAGE_SUFFIXES
from data.sources.trees.listing import files_in, subfolders
from engine.errors import UserError

logger = logging.getLogger(__name__)


class Places:
    """Finds files by what a table says of them, below one folder; lists each folder once.

    Args:
        root: where paths start.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stems: dict[Path, dict[str, str]] = {}

    def find(self, name: str) -> str | None:
        """Find an image: as it is named, with / for Windows' backslash, or by its name without suffix."""
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
            path = self.root / spelling
            if spelling and path.is_file():
                return str(path)
            if spelling and not spelling.lower().endswith(IMAGE_SUFFIXES):
                stem = self._stems_in(path.parent).get(path.name)
                if stem is not None:
                    return str(path.parent / stem)
        return None

    def name(self, name: str, *, is_literal: bool) -> str:
        """Name the file; one that is missing under the name that it should have."""
        if is_literal:
            return str(self.root / name)
        return self.find(name) or str(self.root / name)

    def _stems_in(self, folder: Path) -> dict[str, str]:
        if folder not in self._stems:
            stems: dict[str, str] = {}
            for path in files_in(folder, suffixes=IMAGE_SUFFIXES):
                if path.stem in stems:
                    raise UserError(
                        f"{folder} has {stems[path.stem]} and {path.name}: the table's names need their suffixes"
                    )
                stems[path.stem] = path.name
            self._stems[folder] = stems
        return self._stems[folder]


def find_places(names: Sequence[str], *, root: Path, table: Path, is_given: bool) -> list[str]:
    """Find the images of a table, whose paths start at ``root`` or, where that is not given, in a folder near it.

    Raises:
        UserError: the first is nowhere, or in several folders.
    """
    first = names[0]
    near = [] if is_given else [*subfolders(root), root.resolve().parent]
    places = [place for place in (root, *near) if Places(place).find(first)]
    if not places:
        raise UserError(
            f"{root / first}, the first image of {table}, is missing; say where paths start with --images FOLDER"
        )
    if places[0] != root and len(places) > 1:
        raise UserError(
            f"{first}, the first image of {table}, is in {' and in '.join(map(str, places[:3]))}: say which with "
            "--images FOLDER"
        )
    if places[0] != root:
        logger.info("the images of %s are in %s", table.name, places[0])
    place = Places(places[0])
    is_literal = place.find(first) == str(place.root / first)
    return [
        place.name(name, is_literal=is_literal and "\\" not in name and name.lower().endswith(IMAGE_SUFFIXES))
        for name in names
    ]
