"""The members of a tar that anyone may have written, extracting nothing.

Only headers are parsed, each is checked against the file's size before it is believed, and reading moves strictly
forward, so that no crafted file makes it loop or allocate: time and memory grow with the file's own size at most.
Links, devices, folders, sparse files and members of more than 1 GiB are passed over; names are keys, never paths.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from engine.errors import UserError

BLOCK = 512
MAX_EXTENDED_BYTES = 64 * 1024
MAX_MEMBER_BYTES = 2**30
MAX_LENGTH_DIGITS, MAX_SIZE_DIGITS = 6, 20
PACKINGS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
REGULAR_TYPES = (b"0", b"\0")
LONG_NAME, LONG_LINK, PAX, GLOBAL_PAX, FOLDER, GNU_SPARSE = b"L", b"K", b"x", b"g", b"5", b"S"


@dataclass(frozen=True, kw_only=True)
class TarMember:
    """A regular file in a tar."""

    name: str
    """Its name; what does not print is a question mark."""
    offset: int
    """Where its bytes start."""
    size: int
    """How many there are, all inside the tar."""
    part: int = 0
    """In which of several joined tars it lies."""


def tar_members(file: BinaryIO, *, ignored: Counter[str]) -> Iterator[TarMember]:
    """Yield the regular files, and count in ``ignored`` what is passed over.

    Tars that were joined (`cat a.tar b.tar`) are read to the end of the last.

    Raises:
        UserError: it is no tar, it ends too early, or a header is malformed.
    """
    end = os.fstat(file.fileno()).st_size
    _refuse_packed(read_at(file, offset=0, size=8))
    place = tar_end = part = 0
    extended = _Extended()
    while place + BLOCK <= end:  # every turn moves at least one block forward
        header = read_at(file, offset=place, size=BLOCK)
        if header == bytes(BLOCK):
            tar_end, place = place + 2 * BLOCK, _after_zeros(file, place=place, end=end)
            if place >= end:
                return
            part += 1
            continue
        if tar_end:
            _check_joined(header, place=place, tar_end=tar_end)
        size = _check_header(header, place=place)
        kind = header[156:157]
        if kind in REGULAR_TYPES and extended.size is not None:  # which is of the file, not of an extended header
            size = extended.size
        body = place + BLOCK
        if body + size > end:
            raise UserError(
                f"it ends at byte {end}, inside the member at byte {place} that needs {size} bytes (truncated?)"
            )
        place = body + -(-size // BLOCK) * BLOCK
        if kind in (LONG_NAME, PAX, GLOBAL_PAX, LONG_LINK):
            extended.read(kind, file, offset=body, size=size)
            continue
        reason = _why_ignored(kind, size=size, extended=extended)
        if reason is None:
            yield TarMember(name=extended.name or _header_name(header), offset=body, size=size, part=part)
        elif kind != FOLDER:
            ignored[reason] += 1
        extended = _Extended()
    raise UserError(f"it ends at byte {end} without the zero block that ends a tar (truncated?)")


def _refuse_packed(start: bytes) -> None:
    packing = next((name for magic, name in PACKINGS.items() if start.startswith(magic)), None)
    if packing is not None:
        raise UserError(
            f"it is compressed ({packing}): samples are read by position, which needs a plain tar; unpack it"
        )


def _check_joined(header: bytes, *, place: int, tar_end: int) -> None:
    """Refuse what follows the end of a tar, unless it is a tar beyond doubt."""
    if header[257:262] != b"ustar":
        raise UserError(
            f"its end is at byte {tar_end}, and what follows at byte {place} is no tar: if nothing is lost, cut it off "
            f"with `truncate -s {tar_end}`"
        )


def _after_zeros(file: BinaryIO, *, place: int, end: int) -> int:
    """Find the first block behind zeros, of which a sparse file may have any number."""
    while place < end:
        try:
            place = max(place, os.lseek(file.fileno(), place, os.SEEK_DATA) // BLOCK * BLOCK)
        except OSError:  # nothing but a hole follows
            return end
        piece = read_at(file, offset=place, size=MAX_EXTENDED_BYTES)
        if rest := len(piece.lstrip(b"\0")):
            return place + (len(piece) - rest) // BLOCK * BLOCK
        place += max(len(piece), BLOCK)
    return end


def _why_ignored(kind: bytes, *, size: int, extended: "_Extended") -> str | None:
    if kind not in REGULAR_TYPES:
        return "links and special files"
    if extended.is_sparse:
        return "sparse files"
    return f"members of more than {MAX_MEMBER_BYTES // 2**20} MiB" if size > MAX_MEMBER_BYTES else None


def _check_header(header: bytes, *, place: int) -> int:
    """Read the size of the member that a header announces, if its checksum holds."""
    stored = _number(header[148:156], place=place)
    unsigned = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if stored != unsigned:
        raise UserError(f"no tar header at byte {place}")
    if header[156:157] == GNU_SPARSE:
        raise UserError(f"a sparse member at byte {place}; write the tar again without --sparse")
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
        raise UserError(f"no tar header at byte {place}")
    return number


def _header_name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _read_extended(file: BinaryIO, *, offset: int, size: int) -> bytes:
    if size > MAX_EXTENDED_BYTES:
        raise UserError(f"an extended header of {size} bytes at byte {offset}, at most {MAX_EXTENDED_BYTES} are read")
    return read_at(file, offset=offset, size=size)


@dataclass(kw_only=True)
class _Extended:
    """What extended headers say of the member that follows them."""

    name: str | None = None
    size: int | None = None
    is_sparse: bool = False

    def read(self, kind: bytes, file: BinaryIO, *, offset: int, size: int) -> None:
        """Take what an extended header of any kind says of the next member."""
        if kind == LONG_NAME:
            self.name = _text(_read_extended(file, offset=offset, size=size))
        elif kind == PAX:
            self.update(_read_extended(file, offset=offset, size=size))

    def update(self, records: bytes) -> None:
        """Read `length key=value` lines for the path and the size, each line once."""
        place = 0
        while place < len(records):
            length_text = records[place : place + MAX_LENGTH_DIGITS].split(b" ")[0]
            length = int(length_text) if length_text.isdigit() else 0
            if not len(length_text) + 1 < length <= len(records) - place:
                raise UserError("a malformed extended header")
            line = records[place + len(length_text) + 1 : place + length]
            place += length
            key, _, value = line.rstrip(b"\n").partition(b"=")
            if key == b"path":
                self.name = _text(value)
            elif key == b"size" and value.isdigit():
                self.size = int(value[:MAX_SIZE_DIGITS])
            self.is_sparse = self.is_sparse or key.startswith(b"GNU.sparse.")


def read_at(file: BinaryIO, *, offset: int, size: int) -> bytes:
    """Read bytes from a place of an open file."""
    return os.pread(file.fileno(), size, offset)


def _text(raw: bytes) -> str:
    """Decode a name up to its first zero; what does not print becomes a question mark."""
    text = raw.split(b"\0")[0].decode(errors="replace")
    return "".join(character if character.isprintable() else "?" for character in text)
