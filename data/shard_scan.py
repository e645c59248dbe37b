"""Reads the structure of a tar that anyone may have written: which samples it holds and where, extracting nothing.

Only headers are parsed, each is checked against the file's size before it is believed, and the scan moves strictly
forward, so that no crafted file makes it loop or allocate. Links, devices and folders are passed over; names are keys,
never paths.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from data.manifest import Manifest, ShardInfo, write_file, write_manifest
from data.shard_index import EXTENSIONS, IMAGE_EXTENSIONS, MAX_KEY_BYTES, Member, SampleEntry, index_bytes

logger = logging.getLogger(__name__)

ALL_TARS = "*.tar"
BLOCK = 512
MAX_NAME_BYTES = 64 * 1024
MAX_LABEL_BYTES = 20
REGULAR_TYPES = (b"0", b"\0")
LONG_NAME, PAX, GLOBAL_PAX = b"L", b"x", b"g"


@dataclass(kw_only=True)
class Scan:
    """What a tar holds."""

    entries: list[SampleEntry] = field(default_factory=list[SampleEntry])
    """Its samples, in order."""
    ignored: Counter[str] = field(default_factory=Counter[str])
    """What was passed over, by reason."""


@dataclass(frozen=True, kw_only=True)
class _TarMember:
    name: str
    offset: int
    size: int


def index_shards(
    source: Path, *, out: Path, pattern: str = ALL_TARS, classes: Sequence[str] | None = None, digests: bool = True
) -> tuple[Manifest, Counter[str]]:
    """Write a manifest and index files into ``out`` for the tars in ``source``; the tars stay as they are.

    Without ``digests`` the tars' bytes are not read through, and the manifest serves only this once.
    Returns the manifest and what was passed over in the tars, by reason.
    """
    tars = find_tars(source, pattern=pattern)
    out.mkdir(parents=True, exist_ok=True)
    _check_writable(out)
    ignored: Counter[str] = Counter()
    shards: list[ShardInfo] = []
    highest = -1
    for number, tar in enumerate(tars):
        scan = scan_tar(tar)
        ignored += scan.ignored
        highest = max([highest, *(entry.label for entry in scan.entries if entry.label is not None)])
        index_name = f"{number:06d}-{tar.stem}.idx"
        shards.append(describe_shard(tar, out=out, entries=scan.entries, index_name=index_name, digest=digests))
        logger.info("%s: %d samples", tar.name, len(scan.entries))
    if not any(shard.num_samples for shard in shards):
        raise ValueError(f"no sample with an image ({', '.join(IMAGE_EXTENSIONS)}) in the {len(tars)} tars of {source}")
    manifest = Manifest(shards=tuple(shards), classes=_class_names(classes, highest=highest))
    write_manifest(out, manifest)
    return manifest, ignored


def find_tars(source: Path, *, pattern: str) -> list[Path]:
    """Return the tars of a folder in the order of their names."""
    if not source.is_dir():
        raise ValueError(f"expected a folder with tar shards, but {source} is no folder")
    tars = sorted(path for path in source.glob(pattern) if path.is_file())
    if not tars:
        others = sorted(path.name for path in source.iterdir())[:5]
        raise ValueError(f"no file in {source} matches {pattern!r}; it holds {', '.join(others) or 'nothing'}")
    if pattern == ALL_TARS and all(any(tar.name.startswith(split) for tar in tars) for split in ("train", "val")):
        raise ValueError(
            f"{source} holds both train and val tars: choose one with --pattern 'train*.tar' or 'val*.tar'"
        )
    return tars


def describe_shard(
    tar: Path, *, out: Path, entries: Sequence[SampleEntry], index_name: str, digest: bool = True
) -> ShardInfo:
    """Write the index of one tar into ``out`` and return the manifest's line."""
    content = index_bytes(entries)
    write_file(out / index_name, content)
    inside = tar.resolve().is_relative_to(out.resolve())
    return ShardInfo(
        name=str(tar.resolve().relative_to(out.resolve()) if inside else tar.resolve()),
        num_samples=len(entries),
        size_bytes=tar.stat().st_size,
        sha256=_sha256(tar) if digest else "",
        index=index_name,
        index_sha256=hashlib.sha256(content).hexdigest(),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_writable(folder: Path) -> None:
    """Refuse a folder that is marked read-only, also where we run as root, whom the system lets write anyway."""
    if not folder.stat().st_mode & 0o222 or not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} is read-only; write manifest and index into another folder with --out")


def scan_tar(path: Path) -> Scan:
    """Return the samples of one tar.

    Raises:
        ValueError: it is no tar, or it ends too early.
    """
    scan = Scan()
    with path.open("rb") as file:
        try:
            for key, members in _group(_members(file, ignored=scan.ignored), ignored=scan.ignored):
                _add_sample(scan, file=file, key=key, members=members)
        except ValueError as error:
            raise ValueError(f"{path} is no readable tar shard: {error}") from error
    return scan


def _members(file: BinaryIO, *, ignored: Counter[str]) -> Iterator[_TarMember]:
    """Yield the regular files; every turn moves at least one block forward."""
    end = os.fstat(file.fileno()).st_size
    place = 0
    long_name: str | None = None
    long_size: int | None = None
    while place + BLOCK <= end:
        header = _read_at(file, offset=place, size=BLOCK)
        if header == bytes(BLOCK):
            return
        size = _check_header(header, place=place)
        kind = header[156:157]
        if kind in REGULAR_TYPES:
            size = size if long_size is None else long_size
        body = place + BLOCK
        if body + size > end:
            raise ValueError(
                f"it ends at byte {end}, inside the member at byte {place} that needs {size} bytes (truncated?)"
            )
        place = body + -(-size // BLOCK) * BLOCK
        if kind == LONG_NAME:
            long_name = _text(_read_name(file, offset=body, size=size))
        elif kind == PAX:
            long_name, long_size = _pax(_read_name(file, offset=body, size=size), name=long_name, size=long_size)
        elif kind != GLOBAL_PAX:
            if kind in REGULAR_TYPES:
                yield _TarMember(name=long_name or _header_name(header), offset=body, size=size)
            elif kind != b"5":
                ignored["links and special files"] += 1
            long_name = long_size = None
    raise ValueError(f"it ends at byte {end} without the zero block that ends a tar (truncated?)")


def _check_header(header: bytes, *, place: int) -> int:
    """Return the size of the member that a header announces."""
    stored = _number(header[148:156], place=place)
    unsigned = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if stored != unsigned:
        raise ValueError(f"no tar header at byte {place}")
    return _number(header[124:136], place=place)


def _number(text: bytes, *, place: int) -> int:
    """Read an octal number, or GNU's binary one for sizes of 8 GiB and more."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    try:
        number = int(text.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        number = -1
    if number < 0:
        raise ValueError(f"no tar header at byte {place}")
    return number


def _header_name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _read_name(file: BinaryIO, *, offset: int, size: int) -> bytes:
    if size > MAX_NAME_BYTES:
        raise ValueError(f"a name of {size} bytes at byte {offset}, at most {MAX_NAME_BYTES} are read")
    return _read_at(file, offset=offset, size=size)


def _pax(records: bytes, *, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    """Read `length key=value` lines for the path and the size."""
    while records:
        length_text, separator, _ = records.partition(b" ")
        if not separator or not length_text.isdigit() or not len(length_text) < int(length_text[:8]) <= len(records):
            raise ValueError("a malformed extended header")
        line, records = records[: int(length_text)], records[int(length_text) :]
        key, _, value = line[len(length_text) + 1 :].rstrip(b"\n").partition(b"=")
        if key == b"path":
            name = _text(value)
        elif key == b"size" and value.isdigit():
            size = int(value[:20])
    return name, size


def _group(members: Iterator[_TarMember], *, ignored: Counter[str]) -> Iterator[tuple[str, dict[str, _TarMember]]]:
    """Gather neighbouring members whose names differ only behind the first dot of the file name, as WebDataset does."""
    key, held = "", dict[str, _TarMember]()
    for member in members:
        folder, slash, name = member.name.rpartition("/")
        stem, dot, extension = name.partition(".")
        if not stem or not dot:
            ignored["names without an extension"] += 1
            continue
        extension = extension.lower()
        if folder + slash + stem != key or extension in held:
            if held:
                yield key, held
            key, held = folder + slash + stem, {}
        held[extension] = member
    if held:
        yield key, held


def _add_sample(scan: Scan, *, file: BinaryIO, key: str, members: dict[str, _TarMember]) -> None:
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
            image=_member(image, found=members[image]),
            label=label,
            members=tuple(_member(extension, found=members[extension]) for extension in others),
        )
    )


def _member(extension: str, *, found: _TarMember) -> Member:
    return Member(extension=extension, offset=found.offset, size=found.size)


def _label(file: BinaryIO, *, member: _TarMember) -> int | None:
    text = _read_at(file, offset=member.offset, size=member.size) if member.size <= MAX_LABEL_BYTES else b""
    return int(text) if text.strip().isdigit() and len(text.strip()) < 10 else None


def _read_at(file: BinaryIO, *, offset: int, size: int) -> bytes:
    return os.pread(file.fileno(), size, offset)


def _text(raw: bytes) -> str:
    """Decode a name up to its first zero; what does not print becomes a question mark."""
    text = raw.split(b"\0")[0].decode(errors="replace")
    return "".join(character if character.isprintable() else "?" for character in text)


def _class_names(classes: Sequence[str] | None, *, highest: int) -> tuple[str, ...] | None:
    if highest < 0:
        return None
    if classes is None:
        return tuple(str(number) for number in range(highest + 1))
    if highest >= len(classes):
        raise ValueError(f"the shards hold class number {highest}, but only {len(classes)} class names were given")
    return tuple(classes)
