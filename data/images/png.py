"""What a PNG says in its chunks: how deep its values are, and whether its rows are all there.

    89 P N G 0D 0A 1A 0A | size IHDR width height bits colours ... crc | size iCCP ... | size IDAT zlib ... | 0 IEND

PIL decodes it, but unpacks every colour profile that it meets, a megabyte for each thousand bytes, and takes a stream
that ends early for a whole one, whose other rows are black.
"""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from engine.errors import UserError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD_BYTES = 13
MAX_CHUNKS = 200_000
MAX_PROFILES = 1
PIECE_BYTES = 2**20

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # values of a pixel by kind of colours
_PASSES = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))


class PngLayout(NamedTuple):
    """How a PNG's pixels are stored."""

    width: int
    height: int
    bits: int
    """Of each value."""
    colours: int
    """0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha."""
    interlaced: bool
    significant_bits: int
    """Of the values' bits, as the file says; all of them where it says nothing."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows, each with its filter's, before compression."""
        grids = _PASSES if self.interlaced else ((0, 1, 0, 1),)
        return sum(self._pass_bytes(*grid) for grid in grids)

    def _pass_bytes(self, top: int, down: int, left: int, across: int) -> int:
        rows, columns = -(-(self.height - top) // down), -(-(self.width - left) // across)
        if rows <= 0 or columns <= 0:
            return 0
        return rows * (1 + (columns * self.bits * _SAMPLES[self.colours] + 7) // 8)


def read_layout(data: bytes) -> PngLayout:
    """Read the chunks' heads.

    Raises:
        UserError: it is no PNG, or one whose chunks cost more than its pixels.
    """
    bits = profiles = count = 0
    start: tuple[int, ...] | None = None
    for count, (kind, place, size) in enumerate(_chunks(data), start=1):
        head = data[place : place + HEAD_BYTES]
        if kind == b"IHDR" and start is None and len(head) == HEAD_BYTES:
            start = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big"), head[8], head[9], head[12]
        elif kind == b"sBIT":
            bits = max(head[:size], default=0)
        profiles += kind == b"iCCP"
        if count > MAX_CHUNKS or profiles > MAX_PROFILES:
            raise UserError(f"a PNG of more than {MAX_CHUNKS} chunks, or of several colour profiles")
    if start is None or start[3] not in _SAMPLES:
        raise UserError("a PNG without a header")
    width, height, depth, colours, interlaced = start
    significant = bits if 0 < bits <= depth else depth
    return PngLayout(width, height, depth, colours, bool(interlaced), significant)


def check_rows(data: bytes, layout: PngLayout) -> None:
    """Unpack all rows, and keep none.

    Raises:
        UserError: some are missing.
    """
    unpacked, needed = 0, layout.size_bytes
    stream = zlib.decompressobj()
    try:
        for kind, place, size in _chunks(data):
            waiting = data[place : place + size] if kind == b"IDAT" else b""
            while waiting and unpacked < needed:
                unpacked += len(stream.decompress(waiting, PIECE_BYTES))
                waiting = stream.unconsumed_tail
        while unpacked < needed and (piece := stream.decompress(b"", PIECE_BYTES)):
            unpacked += len(piece)
    except zlib.error:
        raise UserError("its rows do not unpack") from None
    if unpacked < needed:
        raise UserError(f"{unpacked / needed:.0%} of its rows are there")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, place and size of each chunk up to the end."""
    place = len(SIGNATURE)
    while place + 8 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        yield kind, place + 8, size
        if kind == b"IEND":
            return
        place += 12 + size
