"""What a JPEG says before its pixels, and how to decode only its upper part.

The rows of a JPEG follow one another as one stream of codes, so what lies above a crop must be read with it. What lies
below need not be: with fewer rows written into the frame header, a decoder stops there, and the rows it returns are
those of the whole image, bit for bit.

    FF D8 | FF E1 size Exif ... | FF DB ... | FF C0 size precision HEIGHT width components ... | FF DA ... codes | FF D9
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

START = b"\xff\xd8\xff"
END = b"\xff\xd9"
ORIENTATION_TAG = 0x0112

_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, all with Huffman codes
_PROGRESSIVE = 0xC2
_SCAN = 0xDA
_WITHOUT_SIZE = (0x00, 0x01, *range(0xD0, 0xDA), 0xFF)  # stuffing, restart, start and end markers
_BITS = 8
_TAIL_BYTES = 64  # some writers pad after the end marker


class Frame(NamedTuple):
    """The image's frame header, as stored (before any turn)."""

    height: int
    width: int
    place: int
    """Where the two bytes of the height stand."""
    unit: int
    """Rows that are coded together: 8, or 16 and more where colours are subsampled."""


class Segments(NamedTuple):
    """What stands before the pixels."""

    frame: Frame | None
    """None where it is not of a kind that can be cut short."""
    orientation: int
    """EXIF orientation, 1 (upright) to 8."""
    one_scan: bool
    """Whether a decoder certainly goes through the coded data once only."""


def read_segments(data: bytes) -> Segments:
    """Walk the segments up to the pixels.

    The frame is trusted only where every segment is one that decoders step over alike.
    """
    place, frame, orientation = 2, None, 1
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, size = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _SCAN:
            return Segments(frame=frame, orientation=orientation, one_scan=_is_one_scan(data, frame, scan=place))
        if marker in _WITHOUT_SIZE or size < 2:
            break
        if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            orientation = exif_orientation(data[place + 4 : place + 2 + size])
        elif marker in _FRAMES:
            frame = _frame(data, place=place + 5, end=place + 2 + size)
        place += 2 + size
    return Segments(frame=None, orientation=orientation, one_scan=False)


def num_scans(data: bytes) -> int:
    """Count the scans that a JPEG may hold, each of which costs a pass over all its pixels."""
    return data.count(b"\xff\xda")


def exif_orientation(segment: bytes) -> int:
    """Read the orientation that an EXIF block names, 1 where it names none."""
    exif = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif.load(segment)
            value: Any = exif.get(ORIENTATION_TAG, 1)
    except Exception:  # EXIF blocks are broken in many ways, and none of them is worth losing the image
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def decode_upper(data: bytes, frame: Frame, *, bottom: int, shrink: int = 1) -> npt.NDArray[np.uint8] | None:
    """Decode the image's rows down to ``bottom`` and some more, as [rows, width, 3], ``shrink`` times smaller.

    Rows are as stored, before any turn. ``shrink`` is 1, 2, 4 or 8. None where that saves nothing, or where only the
    whole image tells whether it is sound.
    """
    rows = -(-(bottom + 2 * shrink) // frame.unit) * frame.unit  # colours are interpolated from the rows below, too
    if rows >= frame.height or END not in data[-_TAIL_BYTES:]:
        return None
    shorter = bytearray(data)
    shorter[frame.place : frame.place + 2] = rows.to_bytes(2, "big")
    least = (-(-rows // shrink), -(-frame.width // shrink), 2) if shrink > 1 else (0, 0, 1)
    try:  # not strict, since codes are left over
        return simplejpeg.decode_jpeg(
            shorter, min_height=least[0], min_width=least[1], min_factor=least[2], strict=False
        )
    except Exception:  # its errors on hostile bytes are not only ValueErrors
        return None


def _is_one_scan(data: bytes, frame: Frame | None, *, scan: int) -> bool:
    """Whether the frame is not progressive and the scan at ``scan`` holds all its components."""
    if frame is None or scan + 4 >= len(data):
        return False
    return data[frame.place - 4] != _PROGRESSIVE and data[scan + 4] == data[frame.place + 4]


def _frame(data: bytes, *, place: int, end: int) -> Frame | None:
    """Read a frame header whose height stands at ``place``."""
    if end > len(data) or end < place + 5 + 3 or data[place - 1] != _BITS:
        return None
    height, width = (int.from_bytes(data[at : at + 2], "big") for at in (place, place + 2))
    if not (height and width):
        return None
    sampling = max(data[at] & 15 for at in range(place + 6, end, 3))
    return Frame(height=height, width=width, place=place, unit=8 * max(sampling, 1))
