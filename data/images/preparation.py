"""What is done to an image on its way into a shard: its header is read, it is decoded once, shrunk if asked to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg

from data.images.decode import MAX_PIXELS, BadImage, decode_rgb, read_header
from data.images.transforms import resize

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp")
MEMBER_NAMES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}
MAX_FILE_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to image files on their way into shards."""

    check: Literal["decode", "header"] = "decode"
    """Decode every image, or read its header only: faster, but a truncated file is found only in training."""
    resize: int | None = None
    """Shrink the shorter side to this many pixels and write JPEG; otherwise the file's own bytes are kept."""
    quality: int = 95
    """Quality of those JPEGs, 1 to 100."""
    max_pixels: int = MAX_PIXELS
    """Images that claim more pixels than this are refused."""


class Prepared(NamedTuple):
    """An image as it goes into the shard."""

    extension: str
    """Its member's name behind the key."""
    content: bytes
    """The encoded picture."""
    height: int
    """Rows of the upright picture."""
    width: int
    """Columns of it."""
    is_as_it_was: bool
    """Whether the bytes are those that came in."""


def prepare_image(data: bytes, *, preparation: Preparation) -> Prepared:
    """Return the image checked, and shrunk where that is asked for and makes it smaller.

    Raises:
        BadImage: it does not decode, or has more pixels than allowed.
    """
    header = read_header(data, max_pixels=preparation.max_pixels)
    shorter = min(header.height, header.width)
    if preparation.resize is not None and preparation.resize < shorter:
        height, width = (max(1, round(side * preparation.resize / shorter)) for side in (header.height, header.width))
        pixels = resize(decode_rgb(data, header=header), size=(height, width))
        pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        content = simplejpeg.encode_jpeg(pixels, quality=preparation.quality, colorspace="RGB")
        return Prepared("jpg", content, height, width, is_as_it_was=False)
    if preparation.check == "decode":  # at an eighth of the size all of the file is still read
        decode_rgb(data, min_size=(header.height // 8, header.width // 8), header=header)
    return Prepared(MEMBER_NAMES[header.format], data, header.height, header.width, is_as_it_was=True)


def read_limited(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        BadImage: it is larger than `MAX_FILE_BYTES`.
        OSError: it cannot be read.
    """
    size_bytes = path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise BadImage(f"{size_bytes} bytes, at most {MAX_FILE_BYTES} are read")
    return path.read_bytes()
