"""Writes samples into WebDataset shards with their index and manifest: the same samples give the same bytes.

    out/
      shard-000000.tar      000000.jpg 000000.cls 000001.jpg 000001.cls ... (USTAR, no times, no owners)
      shard-000000.idx      data/shards/index.py
      shard-000000.sources.jsonl    {"key": ..., "source": ...} of every sample: the file that it was
      bad.jsonl             {"source": ..., "reason": ...} of every file left out
      manifest.json         written last: a folder without it is not complete

Every file is written beside its place, synced and renamed, so a killed writer leaves nothing that looks whole. What it
had finished stands in a journal (data/writing/journal.py): with `resume_shards` it goes on from there.
"""

import contextlib
import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.shards.index import Member, SampleEntry, index_bytes
from data.shards.manifest import Manifest, ShardInfo, write_manifest
from data.writing.journal import (
    LEDGER_NAME,
    Journal,
    Plan,
    Rejected,
    resume_journal,
    sources_name,
    start_journal,
    write_ledger,
)
from engine.errors import UserError, at_path
from engine.run.durable import write_durably

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NewSample:
    """One sample on its way into a shard."""

    source: str
    """Where it comes from, for the ledger."""
    members: dict[str, bytes]
    """Content by extension; the first is the image."""
    label: int | None = None
    """Class number, written as `.cls`."""
    key: str | None = None
    """Its name in the shard; None: its number."""


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
            raise UserError(f"a shard needs room for a sample and max-bad must not be negative, got {self}")


def write_shards(
    samples: Iterable[NewSample | Rejected], *, out: Path, classes: Sequence[str] | None, limits: ShardLimits
) -> Manifest:
    """Write all samples and the manifest.

    Raises:
        UserError: ``out`` holds something else, no sample is readable, or too many are not.
    """
    return _write_shards(samples, journal=start_journal(out), classes=classes, limits=limits)


def resume_shards(
    samples_from: Callable[[int], Iterable[NewSample | Rejected]],
    *,
    out: Path,
    plan: Plan,
    classes: Sequence[str] | None,
    limits: ShardLimits,
) -> Manifest:
    """Write all samples and the manifest, or the rest of them where the same plan was begun in ``out``.

    ``samples_from(position)`` yields the plan's samples from that one on. The files are those of a run without a break.

    Raises:
        UserError: as `write_shards`, or ``out`` was begun with another plan.
    """
    journal = resume_journal(out, plan=plan)
    return _write_shards(samples_from(journal.position), journal=journal, classes=classes, limits=limits)


def _write_shards(
    samples: Iterable[NewSample | Rejected], *, journal: Journal, classes: Sequence[str] | None, limits: ShardLimits
) -> Manifest:
    with contextlib.closing(journal), contextlib.closing(_Writer(journal=journal, limits=limits)) as writer:
        for sample in samples:
            writer.add(sample)
        writer.finish()
        write_ledger(journal.out, rejected=writer.rejected)
        if not journal.shards:
            raise UserError(f"no readable image: {len(writer.rejected)} files were tried{_example(writer.rejected)}")
        manifest = Manifest(shards=tuple(journal.shards), classes=None if classes is None else tuple(classes))
        # The manifest makes the folder complete, so the journal goes after it; a kill between them leaves both.
        write_manifest(journal.out, manifest)
        journal.remove()
    return manifest


def _example(rejected: Sequence[Rejected]) -> str:
    return f", for example {rejected[0].source} ({rejected[0].reason})" if rejected else ""


class _Writer:
    """Numbers the samples and cuts them into shards."""

    def __init__(self, *, journal: Journal, limits: ShardLimits) -> None:
        self._journal, self._limits = journal, limits
        self._position = journal.position
        self._num_samples = sum(shard.num_samples for shard in journal.shards)
        self._shard: _Shard | None = None
        self.rejected = list(journal.rejected)

    def add(self, sample: NewSample | Rejected) -> None:
        self._position += 1
        if isinstance(sample, Rejected):
            self._reject(sample)
            return
        shard = self._shard = self._shard or _Shard(self._journal.out, number=len(self._journal.shards))
        shard.add(sample.key or f"{self._num_samples:06d}", sample=sample)
        self._num_samples += 1
        if len(shard.entries) >= self._limits.samples or shard.size_bytes >= self._limits.size_bytes:
            self.finish()

    def finish(self) -> None:
        """Close the shard that is open, if one is."""
        if self._shard:
            self._journal.record(self._shard.close(), rejected=self.rejected, position=self._position)
            self._shard = None

    def close(self) -> None:
        """Let go of a shard that was not finished."""
        if self._shard:
            self._shard.abandon()

    def _reject(self, sample: Rejected) -> None:
        self.rejected.append(sample)
        logger.warning("left out %s: %s", sample.source, sample.reason)
        if len(self.rejected) > self._limits.max_bad:
            write_ledger(self._journal.out, rejected=self.rejected)
            raise UserError(
                f"{len(self.rejected)} files cannot be read, the last {sample.source} ({sample.reason}); all are "
                f"listed in {self._journal.out / LEDGER_NAME}: repair or remove them, or raise --max-bad (now "
                f"{self._limits.max_bad})"
            )


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
        self._sources: list[str] = []
        self.size_bytes = 0

    def add(self, key: str, *, sample: NewSample) -> None:
        members = [self._append(key, extension=name, content=content) for name, content in sample.members.items()]
        if sample.label is not None:
            self._append(key, extension="cls", content=str(sample.label).encode())
        self.entries.append(SampleEntry(key=key, image=members[0], label=sample.label, members=tuple(members[1:])))
        self._sources.append(json.dumps({"key": key, "source": sample.source}) + "\n")

    def close(self) -> ShardInfo:
        self._write(bytes(-(self.size_bytes + 1024) % tarfile.RECORDSIZE + 1024))
        with at_path(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            Path(self._file.name).replace(self.path)
        write_durably(self.out / sources_name(self.path.name), "".join(self._sources).encode())
        index = index_bytes(self.entries)
        write_durably(self.out / f"{self.name}.idx", index)
        return ShardInfo(
            name=self.path.name,
            num_samples=len(self.entries),
            size_bytes=self.size_bytes,
            sha256=self._digest.hexdigest(),
            index=f"{self.name}.idx",
            index_sha256=hashlib.sha256(index).hexdigest(),
        )

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # a full disk, which has been said
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
        with at_path(self.path):
            self._file.write(content)
        self._digest.update(content)
        self.size_bytes += len(content)
