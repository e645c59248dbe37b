"""Where samples come from before they are shards: folders of images and generated scenes.

A source is a value that knows how many samples it has and prepares each by its number, in any process. Adding one (COCO,
ADE20K, ...) means writing such a class; writing, splitting and the parallel work are the same for all.
"""

import logging
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import simplejpeg

from data.decode import MAX_PIXELS, BadImage, decode_rgb, read_header
from data.scenes import CLASSES, scene_members
from data.transforms import resize
from data.writer import NewSample, Rejected
from engine.randomness import stream

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp")
MEMBER_NAMES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test")
MAX_FILE_BYTES = 2**30
JPEG_QUALITY = 95
SAMPLES_PER_TASK = 16


class Source(Protocol):
    """Samples by number; picklable."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by label, or None."""
        ...

    @property
    def labels(self) -> Sequence[int] | None:
        """Class number of each sample as far as it is known beforehand, to split each class alike."""
        ...

    def __len__(self) -> int:
        """Return how many samples there are."""
        ...

    def prepare(self, number: int) -> NewSample | Rejected:
        """Return one sample."""
        ...


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to image files on their way into shards."""

    check: Literal["decode", "header"] = "decode"
    """Decode every image, or read its header only: faster, but a truncated file is found only in training."""
    resize: int | None = None
    """Shrink the shorter side to this many pixels and write JPEG; otherwise the file's own bytes are kept."""
    max_pixels: int = MAX_PIXELS
    """Images that claim more pixels than this are refused."""


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Image files, with a class number each or with none."""

    paths: tuple[str, ...]
    """The files."""
    labels: tuple[int, ...] | None
    """Their class numbers."""
    classes: tuple[str, ...] | None
    """Class names by number."""
    preparation: Preparation
    """What is done to each."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.paths)

    def prepare(self, number: int) -> NewSample | Rejected:
        """Return one file's sample, checked and resized as asked."""
        path = self.paths[number]
        label = None if self.labels is None else self.labels[number]
        try:
            return NewSample(source=path, members=_image_member(Path(path), preparation=self.preparation), label=label)
        except (BadImage, OSError) as error:
            return Rejected(source=path, reason=str(error))


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Generated pictures with labels, boxes and masks: see data/scenes.py."""

    seed: int
    """Seed of all scenes."""
    first: int
    """Number of the first scene."""
    count: int
    """How many scenes."""
    size: int
    """Side in pixels."""
    classes: tuple[str, ...] = CLASSES
    """Names of the kinds of objects."""
    labels: None = None
    """Known once a scene is drawn."""

    def __len__(self) -> int:
        """Return how many there are."""
        return self.count

    def prepare(self, number: int) -> NewSample | Rejected:
        """Draw one scene."""
        label, members = scene_members(self.seed, number=self.first + number, size=self.size)
        return NewSample(source=f"scene {self.first + number}", members=members, label=label)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Some samples of a source, in an order."""

    source: Source
    """Where they come from."""
    numbers: npt.NDArray[np.int64]
    """Which."""


def find_images(folder: Path, *, preparation: Preparation) -> dict[str, ImageFiles]:
    """Return the images of a folder by split: {"train": ...}, and "val" where the folder is divided so itself.

    Raises:
        ValueError: no folder, no image in it, or images both beside and inside class folders.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a folder of images, but {folder} is {'a file' if folder.exists() else 'missing'}")
    names = {entry.name.lower(): entry for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name[0] != "."}
    if not set(names) <= {*TRAIN_NAMES, *VAL_NAMES} or not names.keys() & {
        *TRAIN_NAMES
    }:  # a class may be called train, too
        return {"train": _find_split(folder, preparation=preparation)}
    train = next(names[name] for name in TRAIN_NAMES if name in names)
    val = next((names[name] for name in VAL_NAMES if name in names), None)
    found = {"train": _find_split(train, preparation=preparation)}
    if val is not None:
        found["val"] = _same_classes(_find_split(val, preparation=preparation), train=found["train"], folder=folder)
    return found


def split_off(source: Source, *, fraction: float, seed: int) -> tuple[Selection, Selection]:
    """Return all samples shuffled, without and with the held-out ``fraction``, which is the same of every class."""
    labels = np.zeros(len(source), np.int64) if source.labels is None else np.asarray(source.labels)
    order = stream(seed, "write").permutation(len(source)).astype(np.int64)
    held: list[npt.NDArray[np.int64]] = []
    for label in np.unique(labels).tolist():
        members = order[labels[order] == label]
        count = round(len(members) * fraction)
        held.append(members[: min(max(count, 1 if fraction and len(members) > 1 else 0), len(members) - 1)])
    is_held = np.zeros(len(source), bool)
    is_held[np.concatenate(held)] = True
    return (
        Selection(source=source, numbers=order[~is_held[order]]),
        Selection(source=source, numbers=order[is_held[order]]),
    )


def shuffled(source: Source, *, seed: int) -> Selection:
    """Return all samples of a source in a random order."""
    return Selection(source=source, numbers=stream(seed, "write").permutation(len(source)).astype(np.int64))


def prepared(selection: Selection, *, processes: int) -> Iterator[NewSample | Rejected]:
    """Yield the samples in the selection's order, prepared by ``processes`` of them at a time; a few wait ready."""
    numbers: list[int] = selection.numbers.tolist()
    if processes <= 1:
        for number in numbers:
            yield selection.source.prepare(number)
        return
    tasks = [numbers[start : start + SAMPLES_PER_TASK] for start in range(0, len(numbers), SAMPLES_PER_TASK)]
    running: deque[Future[list[NewSample | Rejected]]] = deque()
    pool = ProcessPoolExecutor(processes, initializer=_hold_source, initargs=(selection.source,))
    try:
        for task in tasks:
            running.append(pool.submit(_prepare_task, task))
            if len(running) > 2 * processes:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
    except BrokenProcessPool:
        raise ValueError("a writing process was killed (out of memory?); use fewer --processes") from None
    finally:
        pool.shutdown(cancel_futures=True)


class _Held:
    """The source of a writing process, sent once and not with every task."""

    source: Source


def _hold_source(source: Source) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the writer's to handle
    _Held.source = source


def _prepare_task(numbers: list[int]) -> list[NewSample | Rejected]:
    return [_Held.source.prepare(number) for number in numbers]


def _image_member(path: Path, *, preparation: Preparation) -> dict[str, bytes]:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadImage(f"{path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read")
    data = path.read_bytes()
    header = read_header(data, max_pixels=preparation.max_pixels)
    shorter = min(header.height, header.width)
    if preparation.resize is not None and preparation.resize < shorter:
        size = tuple(max(1, round(side * preparation.resize / shorter)) for side in (header.height, header.width))
        pixels = resize(decode_rgb(data, header=header), size=(size[0], size[1]))
        pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        return {"jpg": simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorspace="RGB")}
    if preparation.check == "decode":  # at an eighth of the size all of the file is still read
        decode_rgb(data, min_size=(header.height // 8, header.width // 8), header=header)
    return {MEMBER_NAMES[header.format]: data}


def _find_split(folder: Path, *, preparation: Preparation) -> ImageFiles:
    flat = _images_of(folder, deep=False)
    by_class = {entry.name: _images_of(entry, deep=True) for entry in sorted(folder.iterdir()) if entry.is_dir()}
    by_class = {name: paths for name, paths in by_class.items() if paths and not name.startswith(".")}
    if flat and by_class:
        raise ValueError(
            f"{folder} has images of its own ({Path(flat[0]).name}, ...) beside folders with images "
            f"({', '.join(list(by_class)[:3])}); expected class folders only, or one flat folder"
        )
    if not flat and not by_class:
        raise ValueError(
            f"no image in {folder}: expected files ending in {', '.join(IMAGE_SUFFIXES)}, or class folders of them"
        )
    if len(by_class) < 2:
        paths = flat or next(iter(by_class.values()))
        return ImageFiles(paths=tuple(paths), labels=None, classes=None, preparation=preparation)
    pairs = [(path, label) for label, paths in enumerate(by_class.values()) for path in paths]
    paths, labels = zip(*pairs, strict=True)
    return ImageFiles(paths=paths, labels=labels, classes=tuple(by_class), preparation=preparation)


def _images_of(folder: Path, *, deep: bool) -> list[str]:
    found: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if deep else []
        images = sorted(n for n in names if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith("."))
        found += [os.path.join(parent, name) for name in images]  # noqa: PTH118 - a path object for each of millions is slow
    return found


def _same_classes(val: ImageFiles, *, train: ImageFiles, folder: Path) -> ImageFiles:
    """Give the held-out images the class numbers of the training images."""
    if train.classes is None or val.classes is None or val.labels is None:
        return replace(val, classes=None, labels=None)
    unknown = sorted(set(val.classes) - set(train.classes))
    if unknown:
        raise ValueError(f"{folder} has classes to validate on that are not to train on: {', '.join(unknown[:3])}")
    classes = val.classes
    return replace(val, classes=train.classes, labels=tuple(train.classes.index(classes[n]) for n in val.labels))
