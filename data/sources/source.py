"""Samples before they are in shards: what a source is, its order and split, and how processes prepare it together.

A source is a value that knows how many samples it has and prepares each by its number, in any process. Those there are:

    data/sources/image_folder.py   image files, by class folder or flat
    data/sources/imagenet.py       ImageNet-1k and 21k
    data/sources/coco.py           images with boxes and masks
    data/sources/boxes/            images with boxes as YOLO and Pascal VOC write them
    data/sources/label_maps.py     images with label maps (ADE20K)
    data/sources/tables/           CSV, lists or Parquet of paths and labels
    data/sources/reshard.py        shards that exist already
    data/sources/scenes.py         generated scenes

A new one is a file with such a class and a ``FORMAT`` (data/sources/formats.py), and a line in
data/sources/registry.py.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data.parallel import in_order
from data.writing.journal import Rejected
from data.writing.writer import NewSample
from engine.randomness import stream

SAMPLES_PER_TASK = 16


class Source(Protocol):
    """Samples by number; picklable."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by label, or None."""
        ...

    @property
    def labels(self) -> Sequence[int] | None:
        """Class number of each sample as far as it is known beforehand, to split each class alike; -1 is none."""
        ...

    def __len__(self) -> int:
        """Count the samples."""
        ...

    def prepare(self, number: int) -> NewSample | Rejected:
        """Read one sample, or say why there is none."""
        ...

    def listing(self) -> Iterator[str]:
        """Yield lines that name what there is to read, so that a restart notices other samples."""
        ...


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Some samples of a source, in an order."""

    source: Source
    """Where they come from."""
    numbers: npt.NDArray[np.int64]
    """Which."""

    def digest(self) -> str:
        """Sum up what tells this selection from any other one."""
        digest = hashlib.sha256(repr(self.source.classes).encode())
        for line in self.source.listing():
            digest.update(line.encode(errors="surrogateescape") + b"\n")
        digest.update(self.numbers.astype("<i8").tobytes())
        return digest.hexdigest()


def split_off(source: Source, *, fraction: float, seed: int, shuffle: bool = True) -> tuple[Selection, Selection]:
    """Divide all samples, in their order, into those to train on and a held-out ``fraction``, the same of every class.

    Which are held out is drawn from the seed, whether the order is shuffled or not.
    """
    labels = np.zeros(len(source), np.int64) if source.labels is None else np.asarray(source.labels)
    order = stream(seed, "write").permutation(len(source)).astype(np.int64)
    is_held = np.zeros(len(source), bool)
    if fraction:
        by_class = order[np.argsort(labels[order], kind="stable")]
        for members in np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1):
            count = max(round(len(members) * fraction), 1 if len(members) > 1 else 0)
            is_held[members[: min(count, len(members) - 1)]] = True
    if not shuffle:
        order = np.sort(order)
    return (
        Selection(source=source, numbers=order[~is_held[order]]),
        Selection(source=source, numbers=order[is_held[order]]),
    )


def prepared(selection: Selection, *, processes: int, start: int = 0) -> Iterator[NewSample | Rejected]:
    """Yield the selection's samples in its order from ``start`` on, prepared in ``processes``; a few wait ready."""
    numbers: list[int] = selection.numbers[start:].tolist()
    tasks = (numbers[first : first + SAMPLES_PER_TASK] for first in range(0, len(numbers), SAMPLES_PER_TASK))
    for samples in in_order(_prepare, tasks, state=selection.source, processes=processes):
        yield from samples


def _prepare(source: Source, numbers: list[int]) -> list[NewSample | Rejected]:
    return [source.prepare(number) for number in numbers]
