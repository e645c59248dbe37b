"""Indexes tars that anyone may have written: which samples they hold and where, as WebDataset groups them.

Reading them is bounded (data/shards/tar_members.py), and nothing is extracted, unpickled or decoded.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from data.parallel import in_order
from data.shards.class_names import MAX_CLASSES
from data.shards.index import EXTENSIONS, IMAGE_EXTENSIONS, MAX_KEY_BYTES, Member, SampleEntry, index_bytes
from data.shards.manifest import Manifest, ShardInfo, file_sha256, write_manifest
from data.shards.tar_members import TarMember, read_at, tar_members
from engine.errors import UserError
from engine.run.durable import write_durably

logger = logging.getLogger(__name__)

ALL_TARS = "*.tar"
MAX_LABEL_BYTES = 20


@dataclass(kw_only=True)
class Scan:
    """What a tar holds."""

    entries: list[SampleEntry] = field(default_factory=list[SampleEntry])
    """Its samples, in order."""
    ignored: Counter[str] = field(default_factory=Counter[str])
    """What was passed over, by reason."""


def index_shards(
    source: Path,
    *,
    out: Path,
    pattern: str = ALL_TARS,
    classes: Sequence[str] | None = None,
    digests: bool = True,
    processes: int = 1,
) -> tuple[Manifest, Counter[str]]:
    """Write a manifest and index files into ``out`` for the tars in ``source``; the tars stay as they are.

    Without ``digests`` the tars' bytes are not read through, and the manifest serves only this once. Gives the manifest
    and what was passed over in the tars, by reason.

    Raises:
        UserError: no tars, tars that cannot be read (all are named), no image in them, or too few class names.
    """
    tars = find_tars(source, pattern=pattern)
    out.mkdir(parents=True, exist_ok=True)
    _check_writable(out)
    results = in_order(_index_tar, enumerate(tars), state=(out, digests), processes=processes)
    indexed: list[_IndexedTar] = []
    for tar, result in zip(tars, results, strict=True):
        logger.info("%s: %s", tar.name, result.problem or f"{result.info.num_samples} samples")
        indexed.append(result)
    _refuse_broken(indexed)
    if not any(tar.info.num_samples for tar in indexed):
        raise UserError(f"no sample with an image ({', '.join(IMAGE_EXTENSIONS)}) in the {len(tars)} tars of {source}")
    highest = max(tar.highest_label for tar in indexed)
    manifest = Manifest(shards=tuple(tar.info for tar in indexed), classes=_class_names(classes, highest=highest))
    write_manifest(out, manifest)
    return manifest, sum((tar.ignored for tar in indexed), Counter[str]())


def find_tars(source: Path, *, pattern: str) -> list[Path]:
    """List the tars of a folder in the order of their names."""
    if not source.is_dir():
        raise UserError(f"expected a folder with tar shards, but {source} is no folder")
    if Path(pattern).is_absolute():
        raise UserError(f"--pattern is of names in {source}, such as 'train-*.tar', got {pattern!r}")
    try:
        tars = sorted(path for path in source.glob(pattern) if path.is_file())
    except ValueError as error:
        raise UserError(f"--pattern is of names in {source}, such as 'train-*.tar': {error}") from None
    if not tars:
        others = sorted(path.name for path in source.iterdir())[:5]
        raise UserError(f"no file in {source} matches {pattern!r}; it holds {', '.join(others) or 'nothing'}")
    if pattern == ALL_TARS and all(any(tar.name.startswith(split) for tar in tars) for split in ("train", "val")):
        raise UserError(f"{source} holds both train and val tars: choose one with --pattern 'train*.tar' or 'val*.tar'")
    return tars


@dataclass(frozen=True, kw_only=True)
class _IndexedTar:
    """What became of one tar."""

    info: ShardInfo
    ignored: Counter[str] = field(default_factory=Counter[str])
    highest_label: int = -1
    problem: str | None = None


def _index_tar(state: tuple[Path, bool], numbered: tuple[int, Path]) -> _IndexedTar:
    (out, digests), (number, tar) = state, numbered
    try:
        scan = scan_tar(tar)
    except UserError as error:
        empty = ShardInfo(name=tar.name, num_samples=0, size_bytes=0, sha256="", index="", index_sha256="")
        return _IndexedTar(info=empty, problem=str(error))
    index_name = f"{number:06d}-{tar.stem}.idx"
    info = describe_shard(tar, out=out, entries=scan.entries, index_name=index_name, digest=digests)
    highest = max((entry.label for entry in scan.entries if entry.label is not None), default=-1)
    return _IndexedTar(info=info, ignored=scan.ignored, highest_label=highest)


def _refuse_broken(tars: Sequence[_IndexedTar]) -> None:
    problems = [tar.problem for tar in tars if tar.problem]
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(
            f"{len(problems)} of {len(tars)} tars cannot be read; repair them or move them away: "
            f"{'; '.join(problems[:5])}"
        )


def describe_shard(
    tar: Path, *, out: Path, entries: Sequence[SampleEntry], index_name: str, digest: bool = True
) -> ShardInfo:
    """Write the index of one tar into ``out``, and make the manifest's line."""
    content = index_bytes(entries)
    write_durably(out / index_name, content)
    inside = tar.resolve().is_relative_to(out.resolve())
    return ShardInfo(
        name=str(tar.resolve().relative_to(out.resolve()) if inside else tar.resolve()),
        num_samples=len(entries),
        size_bytes=tar.stat().st_size,
        sha256=file_sha256(tar) if digest else "",
        index=index_name,
        index_sha256=hashlib.sha256(content).hexdigest(),
    )


def _check_writable(folder: Path) -> None:
    """Refuse a folder that is marked read-only, also where we run as root, whom the system lets write anyway."""
    if not folder.stat().st_mode & 0o222 or not os.access(folder, os.W_OK):
        raise UserError(f"{folder} is read-only; write manifest and index into another folder with --out")


def scan_tar(path: Path) -> Scan:
    """List the samples of one tar.

    Raises:
        UserError: it is no tar, or it ends too early.
    """
    scan = Scan()
    with path.open("rb") as file:
        try:
            for key, members in _group(tar_members(file, ignored=scan.ignored), ignored=scan.ignored):
                _add_sample(scan, file=file, key=key, members=members)
        except UserError as error:
            raise UserError(f"{path} is no readable tar shard: {error}") from error
    return scan


def _group(members: Iterator[TarMember], *, ignored: Counter[str]) -> Iterator[tuple[str, dict[str, TarMember]]]:
    """Gather neighbouring members whose names differ only behind the first dot of the file name, as WebDataset does."""
    key, sample = "", dict[str, TarMember]()
    for member in members:
        folder, slash, name = member.name.rpartition("/")
        stem, dot, extension = name.partition(".")
        if not stem or not dot:
            ignored["names without an extension"] += 1
            continue
        extension = extension.lower()
        if folder + slash + stem != key or extension in sample:
            if sample:
                yield key, sample
            key, sample = folder + slash + stem, {}
        sample[extension] = member
    if sample:
        yield key, sample


def _add_sample(scan: Scan, *, file: BinaryIO, key: str, members: dict[str, TarMember]) -> None:
    image = next((extension for extension in IMAGE_EXTENSIONS if extension in members), None)
    scan.ignored.update(f".{extension}" for extension in members if extension not in EXTENSIONS)
    if image is None:
        scan.ignored["samples without an image"] += 1
        return
    others = [extension for extension in members if extension in EXTENSIONS and extension not in (image, "cls")]
    label = _label(file, member=members["cls"]) if "cls" in members else None
    if "cls" in members and label is None:
        scan.ignored["labels that are no class number"] += 1
    scan.entries.append(
        SampleEntry(
            key=key.encode()[:MAX_KEY_BYTES].decode(errors="ignore"),
            image=_entry(image, member=members[image]),
            label=label,
            members=tuple(_entry(extension, member=members[extension]) for extension in others),
        )
    )


def _entry(extension: str, *, member: TarMember) -> Member:
    return Member(extension=extension, offset=member.offset, size=member.size)


def _label(file: BinaryIO, *, member: TarMember) -> int | None:
    text = read_at(file, offset=member.offset, size=member.size) if member.size <= MAX_LABEL_BYTES else b""
    number = int(text) if text.strip().isdigit() else MAX_CLASSES
    return number if number < MAX_CLASSES else None


def _class_names(classes: Sequence[str] | None, *, highest: int) -> tuple[str, ...] | None:
    if highest < 0:
        return None
    if classes is None:
        return tuple(str(number) for number in range(highest + 1))
    if highest >= len(classes):
        raise UserError(f"the shards hold class number {highest}, but only {len(classes)} class names were given")
    return tuple(classes)
