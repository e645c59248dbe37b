"""Samples by number: a data set's shards, read at positions from files that each process opens for itself."""

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from data.remote.cache import CachedFile, ShardCache
from data.remote.config import CacheConfig
from data.remote.download import GaveUpError
from data.remote.locations import is_remote, join
from data.shards.index import Member, SampleEntry, ShardIndex
from data.shards.manifest import Manifest, merge_manifests, read_manifest
from data.shards.open_shard import OpenShard, cached_files
from data.shards.reading import ReadingCounters
from engine.errors import UserError

logger = logging.getLogger(__name__)

MAX_OPEN_SHARDS = 128  # each holds two descriptors: the tar's and the mapped index's
SHARDS_AT_ONCE = 64  # whose reads are announced before the first of them is read; less than MAX_OPEN_SHARDS
INDEXES_AT_ONCE = 8
GIVING_UP_S = 30.0
"""What saying that a read has given up may take beyond the limit."""
MAX_READ_BYTES = 2**31
"""Most encoded bytes that are read for one micro-batch."""
READ_ATTEMPTS = 3
RETRY_DELAY_S = 0.5

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One encoded image as it came from its shard."""

    id: int
    """Global number of the sample in the whole data set."""
    key: str
    """Its name in the shard."""
    image: bytes
    """The encoded image."""
    label: int | None
    """Class number, if there is one."""
    repeat: int = 0
    """Which of the epoch's visits to this sample; see `repeats` in data/loading/order.py."""
    members: Mapping[str, bytes] = field(default_factory=dict)
    """What else was asked for, by extension (`json`, `seg.png`), where the sample has it."""


class ShardSet:
    """All samples of a data set. Pickles without its open files, and reopens them in each process."""

    def __init__(
        self,
        folder: Path | str,
        *,
        manifest: Manifest,
        parts: tuple[range, ...] | None = None,
        selection: npt.NDArray[np.int64] | None = None,
        cache: CacheConfig | None = None,
        root: Path | str | None = None,
    ) -> None:
        """Read the shards of ``manifest``; `open_shards` makes all this.

        Messages call them ``folder``; their names start from ``root``, which by default is the same.
        """
        self._open: OrderedDict[int, OpenShard] = OrderedDict()  # first: it is closed however making this ends
        self.cache = ShardCache(cache or CacheConfig())
        self._counters = ReadingCounters()
        self._process = os.getpid()
        self._confirmed: set[int] = set()
        self.folder = folder
        self.root = folder if root is None else root
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
        """Keep only the samples of these global numbers; ids stay those of the whole set."""
        selection = np.unique(np.asarray(ids, np.int64))
        if len(selection) and not (selection[0] >= 0 and selection[-1] < self._starts[-1]):
            raise UserError(f"sample ids must lie in [0, {self._starts[-1]}), got {selection[0]} to {selection[-1]}")
        return ShardSet(
            self.folder,
            manifest=self.manifest,
            parts=self.parts,
            selection=selection,
            cache=self.cache.config,
            root=self.root,
        )

    def read(self, shard: int, position: int, *, repeat: int = 0) -> Sample:
        """Read one sample; raises like `read_many`."""
        return self.read_many([(shard, position, repeat)])[0]

    def read_many(self, rows: Sequence[Sequence[int]], *, extensions: Collection[str] = ()) -> list[Sample]:
        """Read the samples of ``rows`` (shard, position, repeat), in their order, but each file from front to back.

        ``extensions`` names what to read beside the image.

        Raises:
            UserError: a shard or its index is not what the manifest says, or cannot be fetched.
            OSError: the file system or the network failed, several times.
        """
        entries = [self._entry(shard, position) for shard, position, _ in rows]
        members = [[entry.image, *(m for m in entry.members if m.extension in extensions)] for _, entry in entries]
        _check_sizes(entries, members)
        # A shuffled micro-batch jumps between shards: sorted by shard, each is opened once and read in one sweep.
        places: dict[int, list[int]] = {}
        for place, (shard, _, _) in enumerate(rows):
            places.setdefault(shard, []).append(place)
        contents: dict[int, list[bytes]] = {}
        # A group is small enough that none of its shards is closed, as the oldest of too many, before it is read.
        shards = sorted(places)
        for first in range(0, len(shards), SHARDS_AT_ONCE):
            group = shards[first : first + SHARDS_AT_ONCE]
            by_shard = {shard: [member for place in places[shard] for member in members[place]] for shard in group}
            # All reads are announced before the first one waits, so that the disk or server works on them together.
            for shard, shard_members in by_shard.items():
                self._shard(shard).advise(shard_members)
            for shard, shard_members in by_shard.items():
                pieces = iter(self._read_members(shard, shard_members))
                contents.update((place, [next(pieces) for _ in members[place]]) for place in places[shard])
        # Samples come back at the places of their rows: what is computed must not depend on how files lie.
        return [
            Sample(
                id=sample_id,
                key=entry.key,
                image=contents[place][0],
                label=entry.label,
                repeat=rows[place][2],
                members={m.extension: c for m, c in zip(members[place][1:], contents[place][1:], strict=True)},
            )
            for place, (sample_id, entry) in enumerate(entries)
        ]

    def read_member(self, shard: int, position: int, *, extension: str) -> bytes | None:
        """Read what a sample holds under another extension (`json`, `seg.png`), if anything."""
        _, entry = self._entry(shard, position)
        for member in entry.members:
            if member.extension == extension:
                return self._read_members(shard, [member])[0]
        return None

    @property
    def counters(self) -> ReadingCounters:
        """What reading has cost in this process so far."""
        waited, fetched = self.cache.wait_s, self.cache.fetched_bytes
        return replace(self._counters, wait_s=waited, fetched_bytes=fetched)

    @property
    def cached(self) -> bool:
        """Whether any shard goes through the cache."""
        remote = is_remote(self.root) or any(is_remote(shard.name) for shard in self.manifest.shards)
        return remote or self.cache.config.local

    @property
    def patience_s(self) -> float:
        """Seconds after which a read has given up by itself, with a message; 0 where nothing goes through the cache."""
        return self.cache.config.give_up_s + GIVING_UP_S if self.cached else 0.0

    def cached_tar(self, shard: int) -> CachedFile | None:
        """Describe a shard's tar as a file for the cache; None where it is read in place."""
        return cached_files(self.root, info=self.manifest.shards[shard], local=self.cache.config.local)[0]

    def labels(self) -> npt.NDArray[np.int64]:
        """Read every sample's class number, -1 where there is none, in the order of their global numbers."""
        self._fetch_indexes()
        parts = [self._shard(number).index.labels for number in range(len(self.manifest.shards))]
        labels = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return labels if self._selection is None else labels[self._selection]

    def shard_of(self, sample_id: int) -> str:
        """Tell where the shard of a sample, by its global number, lies."""
        return join(self.root, self.manifest.shards[self._number_of(sample_id)].name)

    def confirm(self, sample_ids: Iterable[int]) -> None:
        """Compare the shards of samples that do not decode with the manifest, each once in a process.

        A sample whose bytes are the manifest's will never decode, and another takes its place for good; one that was
        damaged since may be whole again when the run resumes, and the replacement would not happen again.

        Raises:
            UserError: a shard has changed.
        """
        for number in {self._number_of(sample_id) for sample_id in sample_ids} - self._confirmed:
            self._retried(number, lambda n=number: self._shard(n).confirm())
            self._confirmed.add(number)

    def _number_of(self, sample_id: int) -> int:
        return int(np.searchsorted(self._starts, sample_id, side="right")) - 1

    def place_of(self, number: int) -> tuple[int, int]:
        """Find shard and position of the sample that is at place ``number`` of all (of those selected, in a subset)."""
        bounds = self._starts if self._selected is None else self._selected
        shard = int(np.searchsorted(bounds, number, side="right")) - 1
        return shard, number - int(bounds[shard])

    def entries(self, shard: int) -> ShardIndex:
        """Open the index of one shard."""
        return self._shard(shard).index

    def close(self) -> None:
        """Close the files; reading opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_process": -1}

    def __del__(self) -> None:
        self.close()

    def _fetch_indexes(self) -> None:
        """Fetch the indexes of remote shards, several at a time."""
        files = [cached_files(self.root, info=info)[1] for info in self.manifest.shards]
        with ThreadPoolExecutor(INDEXES_AT_ONCE) as pool:
            list(pool.map(self.cache.prefetch, [file for file in files if file is not None]))

    def _entry(self, shard: int, position: int) -> tuple[int, SampleEntry]:
        if self._selection is not None and self._selected is not None:
            sample_id = int(self._selection[self._selected[shard] + position])
        else:
            sample_id = int(self._starts[shard]) + position
        return sample_id, self._shard(shard).index[sample_id - int(self._starts[shard])]

    def _shard(self, number: int) -> OpenShard:
        if self._process != os.getpid():  # after a fork: leave the parent's descriptors to the parent
            self._process = os.getpid()
            self.close()
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= MAX_OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        info = self.manifest.shards[number]
        opened = self._retried(number, lambda: OpenShard(self.root, info=info, cache=self.cache))
        self._open[number] = opened
        return opened

    def _read_members(self, shard: int, members: Sequence[Member]) -> list[bytes]:
        return self._retried(shard, lambda: self._shard(shard).read(members, counters=self._counters))

    def _retried(self, shard: int, read: Callable[[], T]) -> T:
        """Open or read a shard, again after a while where the file system fails."""
        for attempt in range(1, READ_ATTEMPTS + 1):
            try:
                return read()
            except OSError as error:
                if attempt == READ_ATTEMPTS or isinstance(error, GaveUpError):
                    raise
                logger.warning("%s: %s; trying again", self.manifest.shards[shard].name, error)
                if shard in self._open:
                    self._open.pop(shard).close()
                time.sleep(RETRY_DELAY_S * attempt)
        raise AssertionError("unreachable")


def _check_sizes(entries: Sequence[tuple[int, SampleEntry]], members: Sequence[Sequence[Member]]) -> None:
    """Refuse to read at once what does not fit into memory, whatever an index says of a file with holes."""
    sizes = [sum(member.size for member in each) for each in members]
    if sum(sizes) > MAX_READ_BYTES:
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        raise UserError(
            f"{len(sizes)} samples of a micro-batch take {sum(sizes) / 2**20:.0f} MiB before they are decoded, at most "
            f"{MAX_READ_BYTES // 2**20} are read at once; the largest is {entries[largest][1].key}: use a smaller "
            "data.micro-batch-size, or shrink the images with `python data/main.py write --size`"
        )


def open_shards(
    *folders: Path | str | Sequence[Path | str], cache: CacheConfig | None = None, labelled: bool = True
) -> ShardSet:
    """Open the data set whose manifest lies in a folder, or of several, as one: their shards one after another.

    A folder is a local path or a URL (data/remote/locations.py); remote shards are read through ``cache``. Sample
    numbers count through all of them; `ShardSet.parts` says which shards came from which folder. Folders of different
    classes are one set only for who reads no labels (``labelled`` is false).

    Raises:
        UserError: a folder has no sound manifest, or their classes differ.
    """
    names = [name for names in folders for name in ([names] if isinstance(names, Path | str) else names)]
    if not names:
        raise UserError("expected at least one folder of shards, got none")
    manifests = [read_manifest(name, cache=cache) for name in names]
    if len(names) == 1:
        return ShardSet(names[0], manifest=manifests[0], cache=cache)
    ends = np.cumsum([len(manifest.shards) for manifest in manifests]).tolist()
    return ShardSet(
        ", ".join(map(str, names)),
        manifest=merge_manifests(names, manifests, labelled=labelled),
        cache=cache,
        root="/",
        parts=tuple(range(end - len(manifest.shards), end) for end, manifest in zip(ends, manifests, strict=True)),
    )
