"""The index of one shard: where each sample's members lie in the tar, in fixed-size records that are memory-mapped.

    shard-000000.idx
      header    64 bytes: magic, numbers of records, members and key bytes
      records   48 bytes a sample: image offset, size and extension, label, its key, its other members
      members   24 bytes each: extension, offset and size of what a sample holds beside the image (.json, .seg.png, ...)
      keys      the samples' keys, UTF-8, one after another

All numbers are little-endian. A record is found by multiplication, so opening an index costs nothing and reading a
sample touches one page of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.shards.class_names import MAX_CLASSES
from engine.errors import UserError

# Codes are positions in this tuple: append only.
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "cls", "json", "seg.png", "txt", "depth.png", "boxes.json")
IMAGE_EXTENSIONS = EXTENSIONS[:5]
UNLABELLED = -1
MAX_KEY_BYTES = 1024

_MAGIC = b"GPSHARD1"
_HEADER = np.dtype([("magic", "S8"), ("records", "<u8"), ("members", "<u8"), ("key_bytes", "<u8"), ("reserved", "V32")])
_RECORD = np.dtype(
    [
        ("image_offset", "<u8"),
        ("image_size", "<u8"),
        ("label", "<i8"),
        ("key_offset", "<u8"),
        ("first_member", "<u8"),
        ("num_members", "<u4"),
        ("key_size", "<u2"),
        ("extension", "<u2"),
    ]
)
_MEMBER = np.dtype([("offset", "<u8"), ("size", "<u8"), ("extension", "<u4"), ("reserved", "<u4")])


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file inside a tar."""

    extension: str
    """What follows the key, without the first dot: `jpg`, `seg.png`."""
    offset: int
    """Where its bytes start in the tar."""
    size: int
    """How many there are."""


@dataclass(frozen=True, kw_only=True)
class SampleEntry:
    """Where one sample lies."""

    key: str
    """The members' common name."""
    image: Member
    """The image."""
    label: int | None = None
    """Class number, if there is one."""
    members: tuple[Member, ...] = ()
    """What else the sample holds."""


class ShardIndex:
    """A memory-mapped index file."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            UserError: it is no index, or shorter or longer than its header says.
        """
        self._path = path
        self._bytes: npt.NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        header: Any = self._bytes[: _HEADER.itemsize]
        if len(header) < _HEADER.itemsize or header[:8].tobytes() != _MAGIC:
            raise UserError(f"{path} is no shard index; make it again with `python data/main.py index`")
        header = header.view(_HEADER)[0]
        num_records, num_members, key_bytes = int(header["records"]), int(header["members"]), int(header["key_bytes"])
        records_end = _HEADER.itemsize + num_records * _RECORD.itemsize
        members_end = records_end + num_members * _MEMBER.itemsize
        if members_end + key_bytes != len(self._bytes):
            raise UserError(
                f"{path} has {len(self._bytes)} bytes, its header says {members_end + key_bytes}; "
                "make it again with `python data/main.py index`"
            )
        self._records: npt.NDArray[np.void] = self._bytes[_HEADER.itemsize : records_end].view(_RECORD)
        self._members: npt.NDArray[np.void] = self._bytes[records_end:members_end].view(_MEMBER)
        self._keys: npt.NDArray[np.uint8] = self._bytes[members_end:]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, position: int) -> SampleEntry:
        """Look up the sample at ``position``.

        Raises:
            UserError: its record makes no sense.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"sample {position} of a shard with {len(self)}")
        image_offset, image_size, label, key_offset, first, num_members, key_size, extension = self._records[
            position
        ].item()
        if num_members > len(EXTENSIONS):
            raise self._damage(f"{num_members} members of one sample")
        members = [member.item() for member in self._members[first : first + num_members]]
        return SampleEntry(
            key=self._key(key_offset, size=key_size),
            image=Member(extension=self._extension(extension), offset=image_offset, size=image_size),
            label=self._label(label),
            members=tuple(Member(extension=self._extension(m[2]), offset=m[0], size=m[1]) for m in members),
        )

    def _label(self, label: int) -> int | None:
        if not UNLABELLED <= label < MAX_CLASSES:
            raise self._damage(f"class number {label}")
        return None if label == UNLABELLED else label

    def _key(self, offset: int, *, size: int) -> str:
        try:
            return self._keys[offset : offset + size].tobytes().decode()
        except UnicodeDecodeError:
            raise self._damage("a key that is no text") from None

    def _extension(self, code: int) -> str:
        if code >= len(EXTENSIONS):
            raise self._damage(f"extension {code}")
        return EXTENSIONS[code]

    def _damage(self, what: str) -> UserError:
        return UserError(f"{self._path} is damaged ({what}); make it again with `python data/main.py index`")

    @property
    def claimed_bytes(self) -> float:
        """Bytes of all images and members together: in a tar they cannot overlap, so they are less than its own."""
        return float(self._records["image_size"].sum(dtype=np.float64) + self._members["size"].sum(dtype=np.float64))

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class number of every sample, -1 where there is none."""
        labels = self._records["label"].astype(np.int64)
        for label in (labels.min(initial=0), labels.max(initial=0)):
            self._label(int(label))
        return labels


def index_bytes(entries: Sequence[SampleEntry]) -> bytes:
    """Make the content of the index file for ``entries``."""
    header = np.zeros(1, _HEADER)
    records = np.zeros(len(entries), _RECORD)
    members: list[tuple[int, int, int, int]] = []
    keys: list[bytes] = []
    key_offset = 0
    for row, entry in enumerate(entries):
        key = entry.key.encode()
        records[row] = (
            entry.image.offset,
            entry.image.size,
            UNLABELLED if entry.label is None else entry.label,
            key_offset,
            len(members),
            len(entry.members),
            len(key),
            EXTENSIONS.index(entry.image.extension),
        )
        members += [(m.offset, m.size, EXTENSIONS.index(m.extension), 0) for m in entry.members]
        keys.append(key)
        key_offset += len(key)
    header[0] = (_MAGIC, len(records), len(members), key_offset, b"")
    return b"".join([header.tobytes(), records.tobytes(), np.array(members, _MEMBER).tobytes(), *keys])
