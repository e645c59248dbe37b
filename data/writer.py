"""Writes samples into WebDataset shards with their index and manifest: the same samples give the same bytes.

    out/
      shard-000000.tar      000000.jpg 000000.cls 000001.jpg 000001.cls ... (USTAR, no times, no owners)
      shard-000000.idx      data/shard_index.py
      bad.jsonl             {"source": ..., "reason": ...} of every file left out
      manifest.json         written last: a folder without it is not complete

Every file is written beside its place, synced and renamed, so a killed writer leaves nothing that looks whole.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.manifest import MANIFEST_NAME, Manifest, ShardInfo, write_file, write_manifest
from data.shard_index import Member, SampleEntry, index_bytes

logger = logging.getLogger(__name__)

LEDGER_NAME = "bad.jsonl"
OUR_FILES = re.compile(r"shard-\d{6,}\.(tar|idx)(\.partial)?|bad\.jsonl(\.partial)?|manifest\.json\.partial")


@dataclass(frozen=True, kw_only=True)
class NewSample:
    """What a source hands to the writer."""

    source: str
    """Where it comes from, for the ledger."""
    members: dict[str, bytes]
    """Content by extension; the first is the image."""
    label: int | None = None
    """Class number, written as `.cls`."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A file that is no image we decode."""

    source: str
    """Where it lies."""
    reason: str
    """Why it was left out."""


@dataclass(frozen=True, kw_only=True)
class ShardLimits:
    """When a shard is full, and when the writer gives up."""

    samples: int = 10_000
    """Most samples of a shard."""
    size_bytes: int = 256 * 2**20
    """A shard that has grown past this is closed."""
    max_bad: int = 100
    """The writer stops when more files than this cannot be read."""

    def __post_init__(self) -> None:
        """Refuse what no shard fits."""
        if self.samples < 1 or self.size_bytes < 1 or self.max_bad < 0:
            raise ValueError(f"a shard needs room for a sample and max-bad must not be negative, got {self}")


def write_shards(
    samples: Iterable[NewSample | Rejected], *, out: Path, classes: Sequence[str] | None, limits: ShardLimits
) -> Manifest:
    """Write all samples and return the manifest.

    Raises:
        ValueError: ``out`` holds something else, no sample is readable, or too many are not.
    """
    prepare_folder(out)
    rejected: list[Rejected] = []
    with contextlib.closing(_Writer(out=out, limits=limits)) as writer:
        for sample in samples:
            if isinstance(sample, NewSample):
                writer.add(sample)
            else:
                _reject(sample, rejected=rejected, out=out, max_bad=limits.max_bad)
        shards = writer.finish()
    _write_ledger(out, rejected=rejected)
    if not shards:
        example = f", for example {rejected[0].source} ({rejected[0].reason})" if rejected else ""
        raise ValueError(f"no readable image: {len(rejected)} files were tried{example}")
    manifest = Manifest(shards=tuple(shards), classes=None if classes is None else tuple(classes))
    write_manifest(out, manifest)
    return manifest


def _reject(sample: Rejected, *, rejected: list[Rejected], out: Path, max_bad: int) -> None:
    rejected.append(sample)
    logger.warning("left out %s: %s", sample.source, sample.reason)
    if len(rejected) > max_bad:
        _write_ledger(out, rejected=rejected)
        raise ValueError(
            f"{len(rejected)} files cannot be read, the last {sample.source} ({sample.reason}); all are listed in "
            f"{out / LEDGER_NAME}: repair or remove them, or raise --max-bad (now {max_bad})"
        )


class _Writer:
    """Numbers the samples and cuts them into shards."""

    def __init__(self, *, out: Path, limits: ShardLimits) -> None:
        self._out, self._limits = out, limits
        self._num_samples = 0
        self._done: list[ShardInfo] = []
        self._shard: _Shard | None = None

    def add(self, sample: NewSample) -> None:
        shard = self._shard = self._shard or _Shard(self._out, number=len(self._done))
        shard.add(f"{self._num_samples:06d}", sample=sample)
        self._num_samples += 1
        if len(shard.entries) >= self._limits.samples or shard.size_bytes >= self._limits.size_bytes:
            self._close()

    def finish(self) -> list[ShardInfo]:
        if self._shard:
            self._close()
        return self._done

    def close(self) -> None:
        """Let go of a shard that was not finished."""
        if self._shard:
            self._shard.abandon()

    def _close(self) -> None:
        assert self._shard
        self._done.append(self._shard.close())
        self._shard = None


@dataclass
class _Shard:
    """A tar being written."""

    out: Path
    number: int = field(kw_only=True)

    def __post_init__(self) -> None:
        self.name = f"shard-{self.number:06d}"
        self.path = self.out / f"{self.name}.tar"
        self._file = self.path.with_name(self.path.name + ".partial").open("wb")
        self._digest = hashlib.sha256()
        self.entries: list[SampleEntry] = []
        self.size_bytes = 0

    def add(self, key: str, *, sample: NewSample) -> None:
        members = [self._append(key, extension=name, content=content) for name, content in sample.members.items()]
        if sample.label is not None:
            self._append(key, extension="cls", content=str(sample.label).encode())
        self.entries.append(SampleEntry(key=key, image=members[0], label=sample.label, members=tuple(members[1:])))

    def close(self) -> ShardInfo:
        self._write(bytes(-(self.size_bytes + 1024) % tarfile.RECORDSIZE + 1024))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        Path(self._file.name).replace(self.path)
        index = index_bytes(self.entries)
        write_file(self.out / f"{self.name}.idx", index)
        return ShardInfo(
            name=self.path.name,
            num_samples=len(self.entries),
            size_bytes=self.size_bytes,
            sha256=self._digest.hexdigest(),
            index=f"{self.name}.idx",
            index_sha256=hashlib.sha256(index).hexdigest(),
        )

    def abandon(self) -> None:
        self._file.close()

    def _append(self, key: str, *, extension: str, content: bytes) -> Member:
        header = tarfile.TarInfo(f"{key}.{extension}")
        header.size = len(content)
        header.mode = 0o644
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.size_bytes
        self._write(content)
        self._write(bytes(-len(content) % tarfile.BLOCKSIZE))
        return Member(extension=extension, offset=offset, size=len(content))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.size_bytes += len(content)


def prepare_folder(out: Path) -> None:
    """Make the folder, or clear what a killed writer left in it."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / MANIFEST_NAME).exists():
        raise ValueError(f"{out} already holds shards; delete it or choose another --out")
    strangers = sorted(path.name for path in out.iterdir() if not OUR_FILES.fullmatch(path.name))
    if strangers:
        raise ValueError(f"{out} is not empty (it holds {', '.join(strangers[:3])}); choose another --out")
    for path in out.iterdir():
        path.unlink()


def _write_ledger(out: Path, *, rejected: Sequence[Rejected]) -> None:
    if rejected:
        lines = [json.dumps({"source": item.source, "reason": item.reason}) for item in rejected]
        write_file(out / LEDGER_NAME, "".join(line + "\n" for line in lines).encode())
