"""Folders of images beside folders of what is drawn into them, however they are called and divided into splits.

    SOURCE/images/train/x.jpg      SOURCE/train/images/x.jpg      SOURCE/train/x.jpg           SOURCE/JPEGImages/x.jpg
    SOURCE/labels/train/x.txt      SOURCE/train/labels/x.txt      SOURCE/train_labels/x.txt    SOURCE/Annotations/x.xml

What lies in the second folder tells the kind: maps (pictures), boxes in text (YOLO) or in XML (Pascal VOC).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.sources.preparation import IMAGE_SUFFIXES
from data.sources.trees.listing import OTHER_IMAGE_SUFFIXES, files_in, holds, images_of, subfolders, walk
from data.sources.trees.names import Split, parse_name, split_of
from data.sources.trees.splits import choose, find_splits
from engine.documents import read_text
from engine.errors import UserError

MAP_SUFFIXES = (*IMAGE_SUFFIXES, *(suffix for suffix in OTHER_IMAGE_SUFFIXES if suffix in (".tif", ".tiff", ".gif")))
SPLIT_LISTS = "ImageSets"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The images of a split and what is beside them."""

    images: Path
    """Folder of the images."""
    labels: Path
    """Folder of what is beside them, under the same names."""
    stems: frozenset[str] | None = None
    """Names without suffix of the images that belong to the split; None: all that are in the folder."""

    def paths(self) -> list[str]:
        """List the images of the split."""
        paths = images_of(self.images, deep=True)
        return paths if self.stems is None else [path for path in paths if Path(path).stem in self.stems]

    def beside(self, image: str, *, suffix: str) -> Path:
        """Name the file beside an image."""
        return (self.labels / Path(image).relative_to(self.images)).with_suffix(suffix)

    def fits(self, suffix: str) -> bool:
        """Whether some image has its file, which a list of names or a page of explanations is not."""
        if not holds(self.labels, suffixes=(suffix,)):
            return False
        names = {path.stem for files in walk(self.labels, suffixes=(suffix,)) for path in map(Path, files.images)}
        return any(Path(path).stem in names for path in self.paths())


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of a set that is divided outside."""

    name: str
    """Name of its folder, or of that of its images."""
    split: Split | None
    """The split that the name says."""
    pair: Pair
    """Its images and what is beside them."""


def find_pairs(
    folder: Path, *, suffixes: Sequence[str], lists: str = "Main", splits: str | None = None
) -> dict[str, Pair] | None:
    """Find images beside files with these suffixes, by split; None where there are none.

    ``lists`` is the folder in VOC's `ImageSets` that says which image belongs to which split; ``splits`` is what
    `--splits` says.

    Raises:
        UserError: there are several such folders, or splits that can be read in two ways.
    """
    undivided = _undivided(folder, suffixes=suffixes, lists=lists, splits=splits)
    return undivided or _divided(folder, suffixes=suffixes, splits=splits)


def find_boxes(folder: Path, *, suffix: str, splits: str | None = None) -> dict[str, Pair] | None:
    """Find images with a file of boxes each: in a folder of their own, or beside the images.

    Raises:
        UserError: as `find_pairs`.
    """
    if not folder.is_dir():
        return None
    pairs = find_pairs(folder, suffixes=(suffix,), splits=splits)
    if pairs is None:
        if not any(holds(path, suffixes=(suffix,), deep=False) for path in (folder, *subfolders(folder))):
            return None
        divided = find_splits(folder, choice=splits) or {"train": folder}
        pairs = {name: Pair(images=path, labels=path) for name, path in divided.items() if holds(path, deep=False)}
    return pairs if any(pair.fits(suffix) for pair in pairs.values()) else None


def _undivided(folder: Path, *, suffixes: Sequence[str], lists: str, splits: str | None) -> dict[str, Pair] | None:
    """Find one folder of images and one of labels, each perhaps divided inside."""
    pair = _pair_in(folder, suffixes=suffixes)
    if pair is None:
        return None
    listed = _listed_splits(folder / SPLIT_LISTS / lists, choice=splits)
    if listed:
        return {name: Pair(images=pair.images, labels=pair.labels, stems=stems) for name, stems in listed.items()}
    inside = find_splits(pair.images, choice=splits)
    if inside is None:
        return {"train": pair}
    pairs = {name: Pair(images=path, labels=_counterpart(pair.labels, path.name)) for name, path in inside.items()}
    _refuse_shared([each for each in pairs.values() if each.labels == pair.labels])
    return pairs


def _refuse_shared(pairs: Sequence[Pair]) -> None:
    """Refuse splits whose labels lie in one folder, where two images would have the same."""
    seen: dict[Path, str] = {}
    for pair in pairs:
        for path in pair.paths():
            label = pair.beside(path, suffix="")
            other = seen.setdefault(label, path)
            if Path(other).parent != Path(path).parent:
                raise UserError(
                    f"{other} and {path} would both have the labels {label}.*: divide {pair.labels} into folders as "
                    "the images are, or give the images names of their own"
                )


def _divided(folder: Path, *, suffixes: Sequence[str], splits: str | None) -> dict[str, Pair] | None:
    """Find images and labels of each split, in its folder or beside it."""
    parts = _parts(folder, suffixes=suffixes)
    if not any(part.split for part in parts):
        return None
    if splits is not None:
        chosen = choose(
            splits,
            find=lambda name: _part_of(parts, name=name),
            there=[part.name for part in parts],
            place=folder,
        )
        if chosen is None:
            raise UserError(
                f"--splits {splits} does not say which of {', '.join(part.name for part in parts)} in {folder} are to "
                "train and to validate on, each with images beside labels: name them"
            )
        return {name: part.pair for name, part in chosen.items()}
    pairs: dict[Split, Pair] = {}
    for part in parts:
        if part.split is None:
            continue
        if part.split in pairs:
            raise UserError(
                f"{folder} has images of {part.split} in {pairs[part.split].images} and {part.pair.images}: keep one, "
                "or choose with --splits"
            )
        pairs[part.split] = part.pair
    stranger = next((part.name for part in parts if part.split is None), None)
    if stranger is not None:
        raise UserError(
            f"{folder} has images beside labels for {', '.join(pairs)}, and in {stranger}, which has no split's name "
            "(train, val, test): rename it, move it elsewhere, or choose with --splits"
        )
    if "train" not in pairs:
        raise UserError(
            f"{folder} has images beside labels for {' and '.join(pairs)}, but none to train on: choose with --splits"
        )
    held_out = pairs.get("val") or pairs.get("test")
    return {"train": pairs["train"]} | ({"val": held_out} if held_out else {})


def _parts(folder: Path, *, suffixes: Sequence[str]) -> list[_Part]:
    """List what holds images beside labels in a folder, by split, those with no split's name last."""
    names = {path: parse_name(path.name) for path in subfolders(folder)}
    parts: list[_Part] = []
    for split in ("train", "val", "test"):
        whole = [path for path, words in names.items() if words.split == split and words.role is None]
        images = [path for path, words in names.items() if words.split == split and words.role == "images"] or whole
        labels = [path for path, words in names.items() if words.split == split and words.role == "labels"]
        parts += [
            _Part(name=path.name, split=split, pair=pair)
            for path in whole
            if (pair := _pair_in(path, suffixes=suffixes))
        ]
        parts += [
            _Part(name=image.name, split=split, pair=Pair(images=image, labels=inner))
            for image in images
            for label in labels
            if holds(image) and (inner := _labels_in(label, suffixes=suffixes))
        ]
    strangers = [path for path, words in names.items() if words.split is None]
    return parts + [
        _Part(name=path.name, split=None, pair=pair)
        for path in strangers
        if (pair := _pair_in(path, suffixes=suffixes))
    ]


def _part_of(parts: Sequence[_Part], *, name: str) -> _Part | None:
    """Find the part of this name, or the only one of the split of this name."""
    named = [part for part in parts if part.name == name] or [part for part in parts if part.split == name]
    return named[0] if len(named) == 1 else None


def _pair_in(folder: Path, *, suffixes: Sequence[str]) -> Pair | None:
    names = {path: parse_name(path.name) for path in subfolders(folder)}
    images = [path for path, parts in names.items() if parts.role == "images" and parts.split is None and holds(path)]
    labels = [
        inner
        for path, parts in names.items()
        if parts.role == "labels" and parts.split is None and (inner := _labels_in(path, suffixes=suffixes))
    ]
    if not images or not labels:
        return None
    for paths, what in ((images, "images"), (labels, "labels")):
        if len(paths) > 1:
            raise UserError(
                f"{folder} has several folders of {what}, {' and '.join(path.name for path in paths)}: move those that "
                "are not meant elsewhere"
            )
    return Pair(images=images[0], labels=labels[0])


def _labels_in(folder: Path, *, suffixes: Sequence[str]) -> Path | None:
    """Find the folder in or below one of labels that holds files of the kind; beside COCO's there are other things."""
    if holds(folder, suffixes=suffixes, deep=False):
        return folder
    if holds(folder, suffixes=(".json",), deep=False):
        return None
    below = [path for path in subfolders(folder) if holds(path, suffixes=suffixes)]
    if len(below) == 1 and split_of(below[0].name) is None:
        return _labels_in(below[0], suffixes=suffixes)
    return folder if below else None


def _counterpart(labels: Path, name: str) -> Path:
    """Find the labels of a split, also where the folder is spelled differently there, or all lie in one."""
    if (labels / name).is_dir():
        return labels / name
    same = [path for path in subfolders(labels) if split_of(path.name) == split_of(name)]
    return same[0] if len(same) == 1 else labels


def _listed_splits(folder: Path, *, choice: str | None) -> dict[str, frozenset[str]]:
    """Read VOC's lists of images; train.txt and val.txt where they are there, else trainval.txt."""
    lists = {path.stem.lower(): path for path in files_in(folder, suffixes=(".txt",))}
    if choice is not None and lists:
        chosen = choose(choice, find=lambda name: lists.get(name.lower()), there=list(lists), place=folder) or {}
        return {name: _stems(path) for name, path in chosen.items()}
    train = lists.get("train") or lists.get("trainval")
    if train is None:
        return {}
    held_out = lists.get("val") or lists.get("test") if "train" in lists else lists.get("test")
    stems = {"train": _stems(train)} | ({"val": _stems(held_out)} if held_out else {})
    return {name: listed for name, listed in stems.items() if listed}


def _stems(path: Path) -> frozenset[str]:
    return frozenset(Path(line.split()[0]).name for line in read_text(path).splitlines() if line.strip())
