"""The usual names of folders: splits (`Training`, `val2017`, `seg_test`), images (`JPEGImages`), labels (`gtFine`)."""

import re
from dataclasses import dataclass
from typing import Literal

from data.split_names import SPLIT_WORDS, Split

Role = Literal["images", "labels"]

ROLE_WORDS: dict[str, Role] = {
    **dict.fromkeys(("images", "image", "imgs", "img", "jpegimages", "leftimg", "photos", "pictures"), "images"),
    **dict.fromkeys(("masks", "mask", "labels", "label", "annotations", "annotation", "annots", "annot"), "labels"),
    **dict.fromkeys(("segmentation", "segmentations", "segmentationclass", "labelmaps", "labelmap"), "labels"),
    **dict.fromkeys(("gtfine", "gt", "groundtruth", "segmentationclassraw", "segmentationclassaug"), "labels"),
}
HINT_WORDS: dict[str, Role] = {
    **dict.fromkeys(("input", "inputs", "rgb", "color", "colour"), "images"),
    **dict.fromkeys(("semantic", "semantics", "instance", "instances", "panoptic", "depth", "disparity"), "labels"),
}
"""What may stand for images or for what is beside them, and may not: worth a question, no more."""
PART_WORDS = {"unlabeled", "unlabelled", "unsupervised", "unannotated", "extra"}
PART_WORDS |= {"pred", "predict", "prediction", "predictions"}
"""Parts of a data set that are neither to train nor to validate on."""
FILLER_WORDS = {"set", "data", "dataset", "split", "seg", "bit", "final", "obj"}
GLUED = re.compile(rf"({'|'.join(sorted(SPLIT_WORDS, key=len, reverse=True))})(set|data|annot|masks?|labels?|images?)")
MAP_NAME = re.compile(r"(.+?)[ _.-](?:masks?|labels?|seg|segmentation|gt|annotations?|gtfine_\w+)", re.IGNORECASE)
JUNK = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
"""Folders that systems leave behind."""


@dataclass(frozen=True, kw_only=True)
class NameParts:
    """What a folder's name says."""

    split: Split | None = None
    """Which split it holds."""
    role: Role | None = None
    """Whether it holds images or what is beside them."""


def parse_name(name: str) -> NameParts:
    """Take a name apart; one with a word that is none of the usual ones says nothing."""
    words = [word for word in re.split(r"[^a-z]+", name.lower().replace("ground_truth", "groundtruth")) if word]
    words = [part for word in words for part in _unglued(word)]
    splits: set[Split] = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    roles = {ROLE_WORDS[word] for word in words if word in ROLE_WORDS}
    known = all(word in SPLIT_WORDS or word in ROLE_WORDS or word in FILLER_WORDS for word in words)
    if not known or len(splits) > 1:
        return NameParts()
    # What is called after both, as `label_images`, holds labels.
    role: Role | None = "labels" if "labels" in roles else "images" if roles else None
    return NameParts(split=next(iter(splits), None), role=role)


def hints_of(name: str) -> set[str]:
    """Which splits and roles any word of a name speaks of, whatever the others are (`PedMasks`, `ISIC_Test_Input`)."""
    divided = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).lower().replace("ground_truth", "gt")
    words = {part for word in re.split(r"[^a-z]+", divided) for part in _unglued(word)}
    words |= {"gt"} if {"ground", "truth"} <= words else set()
    known: dict[str, str] = {**HINT_WORDS, **ROLE_WORDS, **SPLIT_WORDS}
    return {known[word] for word in words if word in known}


def is_other_part(name: str) -> bool:
    """Whether a folder of this name is a part of a data set that is no split (`unlabeled2017`, `seg_pred`)."""
    words = {word for word in re.split(r"[^a-z]+", name.lower()) if word}
    return bool(words & PART_WORDS) and words <= PART_WORDS | FILLER_WORDS | ROLE_WORDS.keys()


def split_of(name: str) -> Split | None:
    """Which split a folder or file of this name holds."""
    return parse_name(name).split


def named_after(stem: str) -> str | None:
    """Tell which image a map is named after (`x_mask`, `x-gtFine_labelIds`): its stem, None if it is no such name."""
    match = MAP_NAME.fullmatch(stem)
    return match[1] if match else None


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: names that begin with a dot, and what systems leave behind."""
    return name.startswith(".") or name in JUNK


def _unglued(word: str) -> tuple[str, ...]:
    """Divide words as `trainannot` and `testset`."""
    match = GLUED.fullmatch(word)
    return match.groups() if match else (word,)
