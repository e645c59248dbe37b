"""Where COCO's annotation files lie, which split each is of, and where its images are.

SOURCE/annotations/instances_train2017.json     SOURCE/train2017/*.jpg or SOURCE/images/train2017/*.jpg
SOURCE/annotations/train.json                   SOURCE/images/*.jpg, SOURCE/train/*.jpg, ...
SOURCE/train/_annotations.coco.json             SOURCE/train/*.jpg (Roboflow)
SOURCE/labels.json, result.json, ...            SOURCE/data/*.jpg, SOURCE/images/*.jpg, ... (FiftyOne, Label Studio)
"""

import re
from pathlib import Path

from data.sources.trees.listing import files_in, subfolders
from data.sources.trees.names import parse_name, split_of

PREFIX = "instances_"
OTHER_KINDS = ("captions_", "person_keypoints_", "image_info_", "stuff_", "panoptic_")
KEYS = tuple(re.compile(rf'"{key}"\s*:\s*\['.encode()) for key in ("images", "annotations", "categories"))
LOOKED_AT_BYTES = 2**16
MOST_FILES = 200


def annotation_files(folder: Path) -> list[Path]:
    """Find the COCO files of a folder: `instances_*.json` where there are some, else what looks like one inside."""
    if not folder.is_dir():
        return []
    places = [place for place in subfolders(folder) if _is_place(place)]
    own = [path for place in places for path in files_in(place, suffixes=(".json",)) if path.name.startswith(PREFIX)]
    if own:
        return own
    below = [path for split in subfolders(folder) if split_of(split.name) for path in _files(split)]
    return [path for place in places for path in _files(place)] or below or _files(folder)


def split_name(path: Path) -> str:
    """Name the split of an annotation file: train, val, or what its name says; Roboflow's folders name it."""
    stem = path.stem.removeprefix(PREFIX)
    name = path.parent.name if split_of(path.parent.name) and not split_of(stem) else stem
    split = split_of(name)
    return split if split in ("train", "val") else name


def image_folders(path: Path) -> list[Path]:
    """List the folders in which the images of an annotation file are looked for, the likeliest first."""
    split = path.stem.removeprefix(PREFIX)
    root = path.parent.parent if _is_place(path.parent) else path.parent
    splits = [
        split,
        *(near.name for near in subfolders(root) if split_of(split) and split_of(near.name) == split_of(split)),
    ]
    places = [place for name in splits for place in (root / name, root / "images" / name, root / name / "images")]
    return list(
        dict.fromkeys(
            [*places, root / "images", *_pictures(root), path.parent, path.parent / "images", root, root / "data"]
        )
    )


def _is_place(folder: Path) -> bool:
    """Whether a folder is called like one of annotations."""
    return parse_name(folder.name).role == "labels"


def _pictures(root: Path) -> list[Path]:
    return [path for path in subfolders(root) if parse_name(path.name).role == "images"]


def _files(folder: Path) -> list[Path]:
    """Find the COCO files in a folder; of a folder full of JSON, one for each image, only those of a usual name."""
    files = files_in(folder, suffixes=(".json",))
    if len(files) > MOST_FILES:
        files = [path for path in files if split_of(path.stem.removeprefix(PREFIX)) or "coco" in path.name.lower()]
    return [path for path in files if _is_annotations(path)]


def _is_annotations(path: Path) -> bool:
    """Whether a file looks like COCO's, by the lists that its beginning and its end name."""
    if path.name.startswith(OTHER_KINDS):
        return False
    with path.open("rb") as file:
        content = file.read(LOOKED_AT_BYTES)
        size = file.seek(0, 2)
        file.seek(max(size - LOOKED_AT_BYTES, 0))
        content += file.read(LOOKED_AT_BYTES)
    return sum(key.search(content) is not None for key in KEYS) >= 2
