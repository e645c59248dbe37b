"""Samples by number: a data set's shards, read at positions with file descriptors that each process opens for itself."""

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.locations import join
from data.manifest import Manifest, ShardInfo, merge_manifests, read_manifest
from data.shard_index import Member, SampleEntry, ShardIndex

logger = logging.getLogger(__name__)

MAX_OPEN_SHARDS = 128  # each holds two descriptors: the tar's and the mapped index's
READ_ATTEMPTS = 3
RETRY_DELAY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One encoded image as it came from its shard."""

    id: int
    """Global number of the sample in the whole data set."""
    key: str
    """Its name in the shard."""
    image: bytes
    """The encoded picture."""
    label: int | None
    """Class number, if there is one."""
    repeat: int = 0
    """Which of the epoch's visits to this sample; see `repeats` in data/order.py."""


class ShardSet:
    """All samples of a data set. Pickles without its open files, and reopens them in each process."""

    def __init__(
        self,
        folder: Path | str,
        *,
        manifest: Manifest,
        parts: tuple[range, ...] | None = None,
        selection: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Read the shards of ``manifest``, whose names are relative to ``folder``; `open_shards` makes all this."""
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._process = os.getpid()
        self.folder = folder
        self.manifest = manifest
        self.parts = parts or (range(len(manifest.shards)),)
        self._starts = np.concatenate(
            [[0], np.cumsum([shard.num_samples for shard in manifest.shards], dtype=np.int64)]
        )
        self._selection = selection
        self._selected = None if selection is None else np.searchsorted(selection, self._starts)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples in each shard (those selected, in a subset)."""
        bounds = self._starts if self._selected is None else self._selected
        return tuple(np.diff(bounds).tolist())

    @property
    def num_samples(self) -> int:
        """Samples in all shards (those selected, in a subset)."""
        return int(self._starts[-1]) if self._selection is None else len(self._selection)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by label."""
        return self.manifest.classes

    def subset(self, ids: npt.ArrayLike) -> "ShardSet":
        """Return the same shards with only the samples of these global numbers; ids stay those of the whole set."""
        selection = np.unique(np.asarray(ids, np.int64))
        if len(selection) and not (selection[0] >= 0 and selection[-1] < self._starts[-1]):
            raise ValueError(f"sample ids must lie in [0, {self._starts[-1]}), got {selection[0]} to {selection[-1]}")
        return ShardSet(self.folder, manifest=self.manifest, parts=self.parts, selection=selection)

    def read(self, shard: int, position: int, *, repeat: int = 0) -> Sample:
        """Return one sample, reading only its bytes.

        Raises:
            ValueError: the shard or its index is not what the manifest says.
            OSError: the file system failed, several times.
        """
        sample_id, entry = self._entry(shard, position)
        image = self._read_bytes(shard, entry.image)
        return Sample(id=sample_id, key=entry.key, image=image, label=entry.label, repeat=repeat)

    def read_member(self, shard: int, position: int, *, extension: str) -> bytes | None:
        """Return what a sample holds under another extension (`json`, `seg.png`), or None."""
        _, entry = self._entry(shard, position)
        for member in entry.members:
            if member.extension == extension:
                return self._read_bytes(shard, member)
        return None

    def labels(self) -> npt.NDArray[np.int64]:
        """Return every sample's class number, -1 where there is none, in the order of their global numbers."""
        parts = [self._shard(number).index.labels for number in range(len(self.manifest.shards))]
        labels = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return labels if self._selection is None else labels[self._selection]

    def shard_of(self, sample_id: int) -> str:
        """Return where the shard of a sample, by its global number, lies."""
        number = int(np.searchsorted(self._starts, sample_id, side="right")) - 1
        return join(self.folder, self.manifest.shards[number].name)

    def entries(self, shard: int) -> ShardIndex:
        """Return the index of one shard."""
        return self._shard(shard).index

    def close(self) -> None:
        """Close the files; reading opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_process": -1}

    def __del__(self) -> None:
        self.close()

    def _entry(self, shard: int, position: int) -> tuple[int, SampleEntry]:
        if self._selection is not None and self._selected is not None:
            sample_id = int(self._selection[self._selected[shard] + position])
        else:
            sample_id = int(self._starts[shard]) + position
        return sample_id, self._shard(shard).index[sample_id - int(self._starts[shard])]

    def _shard(self, number: int) -> "_OpenShard":
        if self._process != os.getpid():  # after a fork: leave the parent's descriptors to the parent
            self._process = os.getpid()
            self.close()
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= MAX_OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        self._open[number] = _OpenShard(self.folder, info=self.manifest.shards[number])
        return self._open[number]

    def _read_bytes(self, shard: int, member: Member) -> bytes:
        for attempt in range(1, READ_ATTEMPTS + 1):
            try:
                return self._shard(shard).read(member)
            except OSError as error:
                if attempt == READ_ATTEMPTS:
                    raise
                logger.warning("%s: %s; trying again", self.manifest.shards[shard].name, error)
                if shard in self._open:
                    self._open.pop(shard).close()
                time.sleep(RETRY_DELAY_S * attempt)
        raise AssertionError("unreachable")


def open_shards(*folders: Path | str | Sequence[Path | str]) -> ShardSet:
    """Return the data set whose manifest lies in a folder, or of several, as one: their shards one after another.

    Sample numbers count through all of them; `ShardSet.parts` says which shards came from which folder.

    Raises:
        ValueError: a folder has no sound manifest, or their classes differ.
    """
    names = [name for names in folders for name in ([names] if isinstance(names, Path | str) else names)]
    if not names:
        raise ValueError("expected at least one folder of shards, got none")
    manifests = [read_manifest(name) for name in names]
    if len(names) == 1:
        return ShardSet(names[0], manifest=manifests[0])
    ends = np.cumsum([len(manifest.shards) for manifest in manifests]).tolist()
    return ShardSet(
        ", ".join(map(str, names)),
        manifest=merge_manifests(names, manifests),
        parts=tuple(range(end - len(manifest.shards), end) for end, manifest in zip(ends, manifests, strict=True)),
    )


class _OpenShard:
    def __init__(self, folder: Path | str, *, info: ShardInfo) -> None:
        self.path = Path(join(folder, info.name))
        self.index = _open_index(Path(join(folder, info.index)), info=info)
        self._descriptor = _open_tar(self.path, info=info)

    def read(self, member: Member) -> bytes:
        content = os.pread(self._descriptor, member.size, member.offset)
        while len(content) < member.size:  # pread may return less than asked for
            more = os.pread(self._descriptor, member.size - len(content), member.offset + len(content))
            if not more:
                raise ValueError(f"{self.path} ends inside a member; run `python data/main.py verify`")
            content += more
        return content

    def close(self) -> None:
        os.close(self._descriptor)


def _open_index(path: Path, *, info: ShardInfo) -> ShardIndex:
    if not path.is_file():
        raise ValueError(
            f"the index {path} of shard {info.name} is missing; make it again with `python data/main.py index`"
        )
    index = ShardIndex(path)
    if len(index) != info.num_samples:
        raise ValueError(f"{path} holds {len(index)} samples, the manifest says {info.num_samples}; run `index` again")
    return index


def _open_tar(path: Path, *, info: ShardInfo) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ValueError(f"the shard {path} is missing; bring it back or make the manifest again") from None
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes != info.size_bytes:
        os.close(descriptor)
        raise ValueError(
            f"{path} has {size_bytes} bytes, the manifest says {info.size_bytes}: truncated or replaced; copy it again, or "
            "run `python data/main.py index` if it was changed on purpose"
        )
    return descriptor
