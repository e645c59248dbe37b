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
from data.sources.trees.splits import find_splits
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


def find_pairs(
    folder: Path, *, suffixes: Sequence[str], lists: str = "Main", splits: str | None = None
) -> dict[str, Pair] | None:
    """Find images beside files with these suffixes, by split; None where there are none.

    ``lists`` is the folder in VOC's `ImageSets` that says which image belongs to which split; ``splits`` is what
    `--splits` says.

    Raises:
        UserError: there are several such folders, or splits that can be read in two ways.
    """
    return _undivided(folder, suffixes=suffixes, lists=lists, splits=splits) or _divided(folder, suffixes=suffixes)


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
    listed = _listed_splits(folder / SPLIT_LISTS / lists)
    if listed:
        return {name: Pair(images=pair.images, labels=pair.labels, stems=stems) for name, stems in listed.items()}
    inside = find_splits(pair.images, choice=splits)
    if inside is None:
        return {"train": pair}
    return {name: Pair(images=path, labels=_counterpart(pair.labels, path.name)) for name, path in inside.items()}


def _divided(folder: Path, *, suffixes: Sequence[str]) -> dict[str, Pair] | None:
    """Find images and labels of each split, in its folder or beside it."""
    pairs: dict[Split, Pair] = {}
    names = {path: parse_name(path.name) for path in subfolders(folder)}
    for split in ("train", "val", "test"):
        whole = [path for path, parts in names.items() if parts.split == split and parts.role is None]
        images = [path for path, parts in names.items() if parts.split == split and parts.role == "images"] or whole
        labels = [path for path, parts in names.items() if parts.split == split and parts.role == "labels"]
        found = [pair for path in whole if (pair := _pair_in(path, suffixes=suffixes))]
        found += [
            Pair(images=image, labels=inner)
            for image in images
            for label in labels
            if holds(image) and (inner := _labels_in(label, suffixes=suffixes))
        ]
        if len(found) > 1:
            raise UserError(f"{folder} has images of {split} in {found[0].images} and {found[1].images}: keep one")
        if found:
            pairs[split] = found[0]
    strangers = [path for path, parts in names.items() if parts.split is None and _pair_in(path, suffixes=suffixes)]
    if pairs and strangers:
        raise UserError(
            f"{folder} has images beside labels for {', '.join(pairs)}, and in "
            f"{strangers[0].name}, which has no split's name (train, val, test): rename it, or move it elsewhere"
        )
    if pairs and "train" not in pairs:
        raise UserError(f"{folder} has images beside labels for {' and '.join(pairs)}, but none to train on")
    return _train_and_val(pairs) if pairs else None


def _train_and_val(pairs: dict[Split, Pair]) -> dict[str, Pair]:
    """Take the images to test on for validation where there are no others."""
    held_out = pairs.get("val") or pairs.get("test")
    return {"train": pairs["train"]} | ({"val": held_out} if held_out else {})


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


def _listed_splits(folder: Path) -> dict[str, frozenset[str]]:
    """Read VOC's lists of images; train.txt and val.txt where they are there, else trainval.txt."""
    lists = {path.stem.lower(): path for path in files_in(folder, suffixes=(".txt",))}
    train = lists.get("train") or lists.get("trainval")
    if train is None:
        return {}
    held_out = lists.get("val") or lists.get("test") if "train" in lists else lists.get("test")
    stems = {"train": _stems(train)} | ({"val": _stems(held_out)} if held_out else {})
    return {name: listed for name, listed in stems.items() if listed}


def _stems(path: Path) -> frozenset[str]:
    return frozenset(Path(line.split()[0]).name for line in read_text(path).splitlines() if line.strip())
