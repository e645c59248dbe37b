"""YOLO's data.yaml: what the classes are called, and which images are of which split.

    path: ../datasets/pets      folder that the others start from; often that of another machine, so others are tried
    train: images/train         a folder, a text file with a line for each image, or a list of both; so are val and test
    names: [cat, dog]           or numbers from 0 with names; nc says how many

It lies in the set's folder, under any name, or beside it, where others lie that are none of its business.
"""

import contextlib
import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.sources.trees.listing import files_in
from data.sources.trees.names import split_of
from engine.documents import read_text, read_yaml
from engine.errors import UserError

logger = logging.getLogger(__name__)

SUFFIXES = (".yaml", ".yml")
USUAL_STEMS = ("data", "dataset")


@dataclass(frozen=True, kw_only=True)
class SetFile:
    """A data.yaml with names."""

    path: Path
    """Where it lies."""
    tree: dict[str, Any]
    """What it holds."""
    root: Path
    """Folder of the set, without links."""

    @property
    def is_inside(self) -> bool:
        """Whether it lies in the set's folder."""
        return self._home == self.root

    @property
    def is_pose(self) -> bool:
        """Whether key points are annotated, too."""
        return "kpt_shape" in self.tree

    @property
    def names(self) -> tuple[str, ...]:
        """The class names.

        Raises:
            UserError: they are no list, or not as many as it says.
        """
        names, count = self.tree["names"], self.tree.get("nc")
        if isinstance(names, dict) and set(names) == set(range(len(names))):
            names = [names[number] for number in range(len(names))]
        if not isinstance(names, list) or not names:
            raise UserError(f"{self.path}: names must be a list, or numbers from 0 with names, got {str(names)[:80]}")
        if count is not None and count != len(names):
            raise UserError(f"{self.path}: nc is {count}, but there are {len(names)} names: correct one of them")
        return tuple(map(str, names))

    def points_here(self) -> bool:
        """Whether a file beside the set is the set's: it leads into it, or to a folder of its name."""
        path = PurePosixPath(self._text("path"))
        entries = [self._text("path"), *self.entries("train"), *self.entries("val")]
        return path.name == self.root.name or any(entry and self._place(entry) is not None for entry in entries)

    def entries(self, split: str) -> list[str]:
        """List the folders and lists that it gives for a split."""
        value = self.tree.get(split)
        return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str) and each]

    def images(self, split: str, *, among: Collection[str]) -> set[str]:
        """Find which images a split has ``among`` those of the set, named from its folder."""
        return {image for entry in self.entries(split) for image in self._images(entry, among=among)}

    @property
    def _home(self) -> Path:
        return self.path.parent.resolve()

    def _text(self, name: str) -> str:
        return str(self.tree.get(name) or "").replace("\\", "/")

    def _place(self, entry: str) -> str | None:
        """Find what an entry names in the set, as a path from its folder."""
        parts = PurePosixPath(entry.replace("\\", "/"))
        short = str(parts).removeprefix("../")  # as its own program reads it, where the entry leads nowhere
        starts = (self._home / self._text("path"), self._home)
        places = [start / name for start in starts for name in (str(parts), short)]
        if self.is_inside:  # paths of another machine, from whose end the split's name must not be missing
            named = next((number for number, part in enumerate(parts.parts) if split_of(part)), len(parts.parts) - 1)
            places += [self.root.joinpath(*parts.parts[number:]) for number in range(1, named + 1)]
        existing = [place for place in places if os.path.exists(place)]  # noqa: PTH110
        if not existing and not self._text("path") and (self.root / parts).exists():  # beside a folder that wraps it
            existing = [self.root / parts]
        found = (os.path.relpath(place, self.root) for place in existing)
        return next((place for place in found if place.split("/")[0] != ".."), None)

    def _images(self, entry: str, *, among: Collection[str]) -> Iterator[str]:
        place = self._place(entry)
        if place is None:
            return
        if (self.root / place).is_dir():
            yield from (image for image in among if place == "." or image.startswith(f"{place}/"))
            return
        missing: list[str] = []
        for line in filter(None, map(str.strip, read_text(self.root / place).splitlines())):
            parts = PurePosixPath(line.replace("\\", "/")).parts
            names = ["/".join(parts[number:]) for number in range(len(parts))]
            beside = os.path.normpath(f"{os.path.dirname(place)}/{names[0]}").lstrip("/")  # noqa: PTH120
            image = next((name for name in (beside, *names) if name in among), None)
            if image is not None:
                yield image
            else:
                missing.append(line)
        if missing:
            logger.warning(
                "%s: %d of its images are not in the set, such as %s", self.root / place, len(missing), missing[0]
            )


def find_set_file(folder: Path) -> SetFile | None:
    """Find the data.yaml of a set: in its folder, else beside it if it leads here.

    Raises:
        UserError: there are several that differ, or the set's own cannot be read.
    """
    root = folder.resolve()
    own = [SetFile(path=path, tree=tree, root=root) for path, tree in _with_names(folder, is_own=True)]
    if own:
        first = min(own, key=lambda each: each.path.stem.lower() not in USUAL_STEMS)
        other = next((each for each in own if each.tree["names"] != first.tree["names"]), None)
        if other is not None and first.path.stem.lower() not in USUAL_STEMS:
            raise UserError(
                f"{first.path.name} and {other.path.name} in {folder} have different names: move one elsewhere"
            )
        return first
    beside = (SetFile(path=path, tree=tree, root=root) for path, tree in _with_names(root.parent, is_own=False))
    return next((each for each in beside if each.points_here()), None)


def _with_names(folder: Path, *, is_own: bool) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the YAML files that have names; of those that cannot be read only the set's own matter."""
    for path in files_in(folder, suffixes=SUFFIXES):
        matters = is_own and b"names" in path.read_bytes()
        with contextlib.suppress(*(() if matters else (UserError, OSError))):
            tree = read_yaml(path)
            if "names" in tree:
                yield path, tree
