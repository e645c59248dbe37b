"""Checks a data set: that the tars are the ones that the manifest names, that images decode and that labels make sense."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.decode import MAX_PIXELS, BadImage, decode_rgb, read_header
from data.manifest import Manifest, ShardInfo, read_manifest
from data.shard_index import SampleEntry
from data.shards import ShardSet

logger = logging.getLogger(__name__)

MAX_LISTED = 20
MAX_COMPARED_KEYS = 50_000_000


@dataclass(kw_only=True)
class Findings:
    """What a check found; problems mean that the data set must not be used as it is."""

    num_shards: int = 0
    """Shards in the manifest."""
    num_samples: int = 0
    """Samples in the manifest."""
    size_bytes: int = 0
    """Size of all tars."""
    num_digests: int = 0
    """Tars whose bytes were compared with their digest."""
    num_decoded: int = 0
    """Images that were decoded."""
    num_unlabelled: int = 0
    """Samples without a class number, in a labelled data set."""
    num_duplicate_keys: int = 0
    """Samples whose key another one has, too."""
    counts: dict[str, int] = field(default_factory=dict[str, int])
    """Samples by class name."""
    problems: list[str] = field(default_factory=list[str])
    """What is broken."""
    warnings: list[str] = field(default_factory=list[str])
    """What is odd."""

    @property
    def passed(self) -> bool:
        """Whether nothing is broken."""
        return not self.problems


def verify(
    folder: Path, *, num_decoded: int | None = 1000, digests: bool = True, max_pixels: int = MAX_PIXELS
) -> Findings:
    """Check the data set in ``folder``, decoding this many images spread over it (None: all of them).

    Raises:
        ValueError: there is no manifest to check.
    """
    manifest = read_manifest(folder)
    findings = Findings(
        num_shards=len(manifest.shards),
        num_samples=manifest.num_samples,
        size_bytes=sum(shard.size_bytes for shard in manifest.shards),
    )
    shards = ShardSet(folder, manifest=manifest)
    sound = [number for number, info in enumerate(manifest.shards) if _check_files(folder, info, digests, findings)]
    sound = [number for number in sound if _opens(shards, number, findings)]
    _check_labels(shards, manifest=manifest, sound=sound, findings=findings)
    _check_keys(shards, sound=sound, findings=findings)
    _check_images(shards, sound=sound, num_decoded=num_decoded, max_pixels=max_pixels, findings=findings)
    shards.close()
    return findings


def class_counts(shards: ShardSet) -> dict[str, int]:
    """Return the number of samples of each class by name; empty where there are no classes."""
    return _counts(shards.labels(), classes=shards.classes)


def _check_files(folder: Path, info: ShardInfo, digests: bool, findings: Findings) -> bool:
    """Compare a tar and its index with the manifest; say whether the shard can be looked into."""
    for path, wanted in ((folder / info.name, info.sha256), (folder / info.index, info.index_sha256)):
        if not path.is_file():
            findings.problems.append(f"{path} is missing")
            return False
        if not digests:
            continue
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted:
            findings.problems.append(f"{path} has changed: sha256 {found[:12]}…, the manifest says {wanted[:12]}…")
            return False
    findings.num_digests += digests
    return True


def _opens(shards: ShardSet, number: int, findings: Findings) -> bool:
    try:
        shards.entries(number)
    except (ValueError, OSError) as error:
        findings.problems.append(str(error))
        return False
    return True


def _check_labels(shards: ShardSet, *, manifest: Manifest, sound: list[int], findings: Findings) -> None:
    if manifest.classes is None:
        return
    labels = np.concatenate([shards.entries(number).labels for number in sound] or [np.zeros(0, np.int64)])
    findings.counts = _counts(labels, classes=manifest.classes)
    findings.num_unlabelled = int((labels < 0).sum())
    beyond = int((labels >= len(manifest.classes)).sum())
    if beyond:
        findings.problems.append(f"{beyond} samples have a class number of {len(manifest.classes)} or more")
    if findings.num_unlabelled:
        findings.warnings.append(f"{findings.num_unlabelled} samples have no label")
    empty = [name for name, count in findings.counts.items() if not count]
    if empty:
        findings.warnings.append(f"{len(empty)} classes have no sample: {', '.join(empty[:5])}")


def _check_keys(shards: ShardSet, *, sound: list[int], findings: Findings) -> None:
    if findings.num_samples > MAX_COMPARED_KEYS:
        findings.warnings.append(f"keys were not compared: there are more than {MAX_COMPARED_KEYS} samples")
        return
    keys = (entry.key for number in sound for entry in _entries(shards, number))
    hashes = np.fromiter((_hash(key) for key in keys), np.uint64)
    _, counts = np.unique(hashes, return_counts=True)
    findings.num_duplicate_keys = int(counts[counts > 1].sum())
    if findings.num_duplicate_keys:
        twice = Counter(entry.key for number in sound for entry in _entries(shards, number)).most_common(1)[0][0]
        findings.warnings.append(f"{findings.num_duplicate_keys} samples share their key with another, like {twice}")


def _check_images(
    shards: ShardSet, *, sound: list[int], num_decoded: int | None, max_pixels: int, findings: Findings
) -> None:
    bad: list[str] = []
    for shard, position in _spread(shards, sound=sound, count=num_decoded):
        sample = shards.read(shard, position)
        findings.num_decoded += 1
        try:
            decode_rgb(sample.image, header=read_header(sample.image, max_pixels=max_pixels))
        except BadImage as error:
            bad.append(f"sample {sample.key} of {shards.manifest.shards[shard].name} does not decode: {error}")
    findings.problems += bad[:MAX_LISTED]
    if len(bad) > MAX_LISTED:
        findings.problems.append(f"and {len(bad) - MAX_LISTED} more images that do not decode")


def _spread(shards: ShardSet, *, sound: list[int], count: int | None) -> Iterator[tuple[int, int]]:
    """Yield the places of ``count`` samples at equal distances."""
    sizes = np.array([len(shards.entries(number)) for number in sound], np.int64)
    total = int(sizes.sum())
    count = total if count is None else min(count, total)
    ends = np.cumsum(sizes)
    for place in ((number * total) // count for number in range(count)):
        turn = int(np.searchsorted(ends, place, side="right"))
        yield sound[turn], place - int(ends[turn] - sizes[turn])


def _entries(shards: ShardSet, number: int) -> Iterable[SampleEntry]:
    index = shards.entries(number)
    return (index[position] for position in range(len(index)))


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _counts(labels: npt.NDArray[np.int64], *, classes: tuple[str, ...] | None) -> dict[str, int]:
    if classes is None:
        return {}
    counts = np.bincount(labels[labels >= 0], minlength=len(classes)).tolist()
    return dict(zip(classes, counts, strict=False))
