"""From the values of a label map to class numbers from 0, with one value for what belongs to no class.

Legend: h w height and width in pixels.
"""

import logging
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from data.images.annotations import read_label_map
from data.images.decode import MAX_PIXELS, BadImage, read_header
from data.shards.shard_set import Sample, ShardSet
from engine.errors import UserError
from finetune.segmentation.config import LabelConfig

logger = logging.getLogger(__name__)

CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label ids of Cityscapes' 19 classes, in their order; all others are void."""
IGNORE_INDEX = -1
"""The value, in label maps as this package hands them on, of pixels that belong to no class."""
NO_CLASS = -2
NUM_VALUES = 2**16
CHECKED = 64
"""Label maps that are read before training starts."""
MUCH_VOID = 0.5
"""Share of pixels in no class that is asked about."""
MAX_CLASSES = 2**15 - 1
"""What the type of `LabelMap` counts."""

LabelMap = npt.NDArray[np.int16]


class ClassError(BadImage):
    """A label map with a value that is neither a class nor void."""


def class_table(config: LabelConfig, *, num_classes: int) -> LabelMap:
    """Tabulate the class of each value that a label map of up to 16 bits can hold, `IGNORE_INDEX`, or `NO_CLASS`."""
    if not 1 <= num_classes <= MAX_CLASSES:
        raise UserError(f"label maps of 1 to {MAX_CLASSES} classes are learnt, got {num_classes}")
    table = np.full(NUM_VALUES, NO_CLASS, np.int16)
    if config.values == "cityscapes":
        table[:256] = IGNORE_INDEX
        table[list(CITYSCAPES_IDS)] = np.arange(len(CITYSCAPES_IDS))
        return table
    first = 1 if config.values == "zero_is_void" else 0
    table[:first] = IGNORE_INDEX
    table[first : first + num_classes] = np.arange(num_classes)
    table[[value for value in config.void if 0 <= value < NUM_VALUES]] = IGNORE_INDEX
    return table


def class_map(values: npt.NDArray[np.integer], table: LabelMap) -> LabelMap:
    """Look up the class of every pixel [h, w].

    Raises:
        ClassError: a value is neither a class nor void; names it.
    """
    inside = values if values.dtype == np.uint8 else values.clip(0, NUM_VALUES - 1)
    classes = table[inside]
    wrong = (classes == NO_CLASS) | (inside != values)
    if wrong.any():
        numbers = np.flatnonzero(table >= 0)
        void = ", ".join(map(str, np.flatnonzero(table == IGNORE_INDEX)[:3])) or "no value"
        raise ClassError(
            f"its label map has the value {int(values[wrong][0])}, which is neither a class ({numbers[0]} to "
            f"{numbers[-1]}) nor void ({void}); see labels.num-classes, labels.values and labels.void"
        )
    return classes


def read_classes(sample: Sample, table: LabelMap, *, max_pixels: int = MAX_PIXELS) -> LabelMap:
    """Read a sample's classes [h, w].

    Raises:
        BadImage: it has no label map, or one that does not decode or has another size; `ClassError`, see `class_map`.
    """
    return class_map(read_values(sample, max_pixels=max_pixels), table)


def read_values(sample: Sample, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.integer]:
    """Read the values of a sample's label map [h, w].

    Raises:
        BadImage: as `read_classes`.
    """
    if "seg.png" not in sample.members:
        raise ClassError("it has no label map (.seg.png)")
    header = read_header(sample.image, max_pixels=max_pixels)
    return read_label_map(sample.members["seg.png"], size=(header.height, header.width))


def check_label_maps(shards: ShardSet, *, labels: LabelConfig, num_classes: int, option: str) -> None:
    """Read some label maps, spread over all shards, before a run starts with values that mean something else.

    Warns where most of what they show is void, and of classes that they do not show.

    Raises:
        UserError: there are no samples, or one has no label map or a value that is no class; broken files are left to
            the ledger of bad samples.
    """
    if not shards.num_samples:
        raise UserError(f"{option} {shards.folder} holds no samples; write some with `python data/main.py write`")
    table = class_table(labels, num_classes=num_classes)
    pixels = np.zeros(num_classes + 1, np.int64)
    values = set[int]()
    for sample in _spread(shards):
        try:
            content = read_values(sample)
            pixels += np.bincount(class_map(content, table).ravel() + 1, minlength=num_classes + 1)
        except ClassError as error:
            raise UserError(f"{option} {shards.folder}, sample {sample.key}: {error}") from None
        except BadImage:
            continue
        values.update(np.unique(content).tolist())
    _warn(pixels, values=values, where=f"{option} {shards.folder}", complete=shards.num_samples <= CHECKED)


def _warn(pixels: npt.NDArray[np.int64], *, values: set[int], where: str, complete: bool) -> None:
    """Warn of pixels by class, those in no class first, that no sensible data set has."""
    looked_at = "all label maps" if complete else f"the {CHECKED} label maps looked at"
    shown = ", ".join(map(str, sorted(values)[:8])) + (", ..." if len(values) > 8 else "")
    remedy = f"they hold the values {shown}; see labels.values, labels.void and `data/main.py write --map-classes`"
    if pixels[0] > MUCH_VOID * pixels.sum():
        share = pixels[0] / pixels.sum()
        logger.warning(
            "%s: %.0f %% of the pixels of %s are void, nothing is learnt from them: %s",
            where,
            100 * share,
            looked_at,
            remedy,
        )
    missing = np.flatnonzero(pixels[1:] == 0).tolist()
    # Rare classes are missing in a few maps of many: only all maps, or most classes, tell.
    if missing and pixels.any() and (complete or 2 * len(missing) > len(pixels)):
        some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        logger.warning("%s: class %s has no pixel in %s: %s", where, some, looked_at, remedy)


def _spread(shards: ShardSet) -> Iterator[Sample]:
    sizes = np.array(shards.sizes)
    ends = np.cumsum(sizes)
    for place in np.unique(np.linspace(0, ends[-1] - 1, CHECKED).round().astype(np.int64)):
        shard = int(np.searchsorted(ends, place, side="right"))
        position = int(place - (ends[shard] - sizes[shard]))
        yield shards.read_many([(shard, position, 0)], extensions=("seg.png",))[0]
