"""What is done to an image file on its way into a shard: its header is read, it is decoded once, shrunk if asked to."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg

from data.images.decode import BadImage, decode_rgb, read_header
from data.images.phone_formats import as_jpeg, is_phone_format, read_suffixes
from data.images.transforms import resize
from data.sources.config import Preparation
from engine.terms import Size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp")
MEMBER_NAMES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}
MAX_FILE_BYTES = 2**30


def packed_suffixes() -> tuple[str, ...]:
    """List the suffixes of images that can be packed: those that training reads, and those that become JPEGs."""
    return IMAGE_SUFFIXES + read_suffixes()


class Prepared(NamedTuple):
    """An image as it goes into the shard."""

    extension: str
    """Its member's name behind the key."""
    content: bytes
    """The encoded image."""
    size: Size
    """Height and width of the upright image."""
    is_as_it_was: bool
    """Whether the bytes are those that came in."""


def prepare_image(data: bytes, *, preparation: Preparation) -> Prepared:
    """Check an encoded image, and shrink it where that is asked for and makes it smaller.

    Raises:
        BadImage: it does not decode, or has more pixels than allowed.
    """
    is_as_it_was = not is_phone_format(data)
    if not is_as_it_was:
        data = as_jpeg(data, max_pixels=preparation.max_pixels, quality=preparation.quality)
    header = read_header(data, max_pixels=preparation.max_pixels)
    shorter = min(header.height, header.width)
    if preparation.resize is not None and preparation.resize < shorter:
        height, width = (max(1, round(side * preparation.resize / shorter)) for side in (header.height, header.width))
        pixels = resize(decode_rgb(data, header=header), size=(height, width))
        pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        content = simplejpeg.encode_jpeg(pixels, quality=preparation.quality, colorspace="RGB")
        return Prepared("jpg", content, (height, width), is_as_it_was=False)
    if preparation.check == "decode":  # at an eighth of the size all of the file is still read
        decode_rgb(data, min_size=(header.height // 8, header.width // 8), header=header)
    return Prepared(MEMBER_NAMES[header.format], data, (header.height, header.width), is_as_it_was)


def read_limited(path: Path) -> bytes:
    """Read a file of a size that no hostile one exceeds.

    Raises:
        BadImage: it is larger than `MAX_FILE_BYTES`, or no file but a pipe or a device, which may never end.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # which does not wait at a pipe
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor has no path
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("no regular file")
        content = b"" if status.st_size > MAX_FILE_BYTES else file.read(MAX_FILE_BYTES + 1)
    if max(status.st_size, len(content)) > MAX_FILE_BYTES:  # it may have grown
        raise BadImage(f"{status.st_size} bytes, at most {MAX_FILE_BYTES} are read")
    return content
