"""Samples of shards that exist already: other sizes, another order, a held-out share; members and labels stay as they are."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.images.decode import BadImage
from data.images.preparation import MAX_FILE_BYTES, Preparation, prepare_image
from data.loading.loader import open_shards
from data.shards.index import UNLABELLED, SampleEntry
from data.shards.manifest import MANIFEST_NAME
from data.shards.scan import index_shards
from data.shards.shard_set import ShardSet
from data.writing.new_sample import NewSample, Rejected
from engine.errors import UserError

logger = logging.getLogger(__name__)

MAX_KEY_BYTES = 80  # with its extension a name must fit into a USTAR header
MAPS = ("seg.png", "depth.png", "boxes.json")
PLACES = (b'"bbox"', b'"boxes"', b'"segmentation"', b'"keypoints"')  # in a .json: what has its place in pixels


@dataclass(frozen=True, kw_only=True)
class StoredSamples:
    """The samples of a data set's shards."""

    shards: ShardSet
    """Where they lie."""
    starts: npt.NDArray[np.int64]
    """Global number of each shard's first sample, and of the end."""
    labels: tuple[int, ...] | None
    """Class numbers, -1 for none."""
    keep_keys: bool
    """Keep their keys; otherwise they are numbered."""
    keep_names: bool
    """Keep the images' extensions; otherwise they are named for what they hold."""
    preparation: Preparation
    """What is done to each image."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by number."""
        return self.shards.classes

    def __len__(self) -> int:
        """Return how many there are."""
        return int(self.starts[-1])

    def prepare(self, number: int) -> NewSample | Rejected:
        """Return one sample with all its members."""
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        position = number - int(self.starts[shard])
        entry = self.shards.entries(shard)[position]
        source = f"{self.shards.manifest.shards[shard].name}!{entry.key}"
        try:
            members = self._members(shard, position=position, entry=entry)
        except BadImage as error:
            return Rejected(source=source, reason=str(error))
        return NewSample(source=source, members=members, label=entry.label, key=entry.key if self.keep_keys else None)

    def listing(self) -> Iterator[str]:
        """Yield a line for each shard."""
        for info in self.shards.manifest.shards:
            yield f"{info.name} {info.num_samples} {info.size_bytes} {info.index_sha256}"

    def _members(self, shard: int, *, position: int, entry: SampleEntry) -> dict[str, bytes]:
        if max(member.size for member in (entry.image, *entry.members)) > MAX_FILE_BYTES:
            raise BadImage(f"it holds more than the {MAX_FILE_BYTES} bytes that are read")
        image = prepare_image(self.shards.read(shard, position).image, preparation=self.preparation)
        extension = entry.image.extension if self.keep_names and image.is_as_it_was else image.extension
        read = {m.extension: self.shards.read_member(shard, position, extension=m.extension) for m in entry.members}
        others = {name: content for name, content in read.items() if content is not None}
        if self.preparation.resize is not None:
            _refuse_places(others, key=entry.key)
        return {extension: image.content} | others


def find_shards(
    folder: Path,
    *,
    pattern: str,
    names: Sequence[str] | None,
    preparation: Preparation,
    index_folder: Path,
    processes: int = 1,
) -> StoredSamples:
    """Return the samples of a folder with a manifest, or with tars, which are then indexed in ``index_folder``.

    Raises:
        UserError: no tars, or broken ones.
    """
    if (folder / MANIFEST_NAME).is_file():
        return stored_samples(open_shards(folder), preparation=preparation)
    _, ignored = index_shards(
        folder, out=index_folder, pattern=pattern, classes=names, digests=False, processes=processes
    )
    for reason, count in ignored.most_common(10):
        logger.warning("left behind: %d x %s", count, reason)
    return stored_samples(open_shards(index_folder), preparation=preparation)


def stored_samples(shards: ShardSet, *, preparation: Preparation, keep_names: bool = True) -> StoredSamples:
    """Return all samples of ``shards``; with ``keep_names`` they keep their keys, if these are plain and each used once."""
    if not shards.num_samples:
        raise UserError(f"no sample in the shards of {shards.folder}")
    labels = shards.labels()
    keep_keys = keep_names and _keys_can_stay(shards)
    if keep_names and not keep_keys:
        logger.info("samples are numbered anew: some keys are used twice, or cannot stand in every tar")
    found = StoredSamples(
        shards=shards,
        starts=np.concatenate([[0], np.cumsum(shards.sizes)]).astype(np.int64),
        labels=tuple(labels.tolist()) if (labels != UNLABELLED).any() else None,
        keep_keys=keep_keys,
        keep_names=keep_names,
        preparation=preparation,
    )
    if preparation.resize is not None:
        found.prepare(0)  # where resizing is refused, it is at once
    return found


def _refuse_places(members: dict[str, bytes], *, key: str) -> None:
    placed = [name for name in members if name in MAPS]
    if any(word in members.get("json", b"") for word in PLACES):
        placed.append("json")
    if placed:
        raise UserError(
            f"--size cannot be used here: sample {key} has a .{placed[0]} with places in pixels, which would no longer fit; "
            "leave --size out and resize when training"
        )


def _keys_can_stay(shards: ShardSet) -> bool:
    seen: set[int] = set()
    for number in range(len(shards.sizes)):
        index = shards.entries(number)
        for position in range(len(index)):
            key = index[position].key
            if hash(key) in seen or not is_plain_key(key):
                return False
            seen.add(hash(key))
    return True


def is_plain_key(key: str) -> bool:
    """Whether a key can be written as it is: short, printable ASCII, no step out of a folder, no dot in the name."""
    parts = key.split("/")
    plain = key.isascii() and key.isprintable() and "\\" not in key and len(key) <= MAX_KEY_BYTES
    return plain and all(part not in ("", ".", "..") for part in parts) and "." not in parts[-1]
