"""Encoded images to RGB arrays, safely: the header is read first, pixels are limited, only known formats are decoded.

JPEGs go through simplejpeg (whose scaled decoding skips what a small target does not need) and, where it finds fault
with them, through the more lenient PIL, which also decodes everything else. What neither of them decodes is a
`BadImage`. (torchvision's decoders are deprecated since 0.29.)
"""

import io
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from data.config import DataConfig
from data.images import png
from data.images.jpeg import START, Frame, decode_upper, exif_orientation, num_scans, read_segments
from data.shards.shard_set import Sample
from engine.errors import UserError, is_refusal
from engine.terms import Size

logger = logging.getLogger(__name__)

MAX_PIXELS: int = DataConfig.max_pixels
DARK = 15
"""What 12 bits in 16 amount to in the upper eight."""
MAX_SIDE = 65_535
"""Most pixels of a row or column, JPEG's own limit: memory and time of decoders also go by their number."""
BYTES_PER_PIXEL = 40
"""Most memory that decoding an image and cutting a crop take for each of ``max_pixels``: WebP 35, PNG 27, JPEG 21."""
MAX_SCANS = 100  # progressive JPEGs have about ten; a scan of 31 bytes costs a pass over all pixels
LOST_ROWS = "premature end of data segment"
"""What libjpeg says where the end marker comes before the last row."""
PIL_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]


class BadImage(UserError):  # noqa: N818 - it is what it says
    """Bytes that are no image that we decode."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an image says of itself before it is decoded."""

    height: int
    """Rows of the upright image."""
    width: int
    """Columns of the upright image."""
    format: str
    """PIL's name of the format."""
    orientation: int
    """EXIF orientation, 1 (upright) to 8."""
    frame: Frame | None = None
    """A JPEG's frame header, where it can be cut short."""
    layout: png.PngLayout | None = None
    """How a PNG's pixels are stored."""


@dataclass(frozen=True, kw_only=True)
class Decoded(Generic[T]):
    """What became of a micro-batch's samples."""

    values: list[T]
    """One for each sample."""
    samples: list[Sample]
    """The samples that the values come from: those that were to be decoded, but for replaced ones."""
    bad: list[tuple[int, str, str]]
    """Id, key and reason of every sample that was replaced."""


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read size, format and orientation without decoding.

    Raises:
        BadImage: no image, of an unknown format, or with more pixels than allowed.
    """
    header = _jpeg_header(data) if data[:3] == START else _pil_header(data)
    if max(header.height, header.width) > MAX_SIDE:
        raise BadImage(f"{header.height}x{header.width} pixels: a side is longer than {MAX_SIDE}")
    if header.height * header.width > max_pixels:
        raise BadImage(f"{header.height}x{header.width} pixels are more than the {max_pixels} allowed")
    return header


def decode_rgb(
    data: bytes, *, max_pixels: int = MAX_PIXELS, min_size: Size = (0, 0), header: Header | None = None
) -> Pixels:
    """Decode the upright image as [height, width, 3].

    With ``min_size`` (height, width) a JPEG may come out at half its size or less, but never smaller than that.

    Raises:
        BadImage: it does not decode.
    """
    header = header or read_header(data, max_pixels=max_pixels)
    if header.format != "JPEG":
        return _decode_pil(data, header=header)
    return _upright(_decode_jpeg(data, min_size=min_size, header=header), orientation=header.orientation)


def decode_part(data: bytes, *, header: Header, bottom: int, shrink: int = 1) -> tuple[Pixels, int]:
    """Decode the upright image down to row ``bottom`` at least; tell how many times smaller it came out.

    That is ``shrink`` (1, 2, 4 or 8) for a JPEG and 1 for everything else. Unshrunk rows are those of `decode_rgb`, bit
    for bit; the rows below ``bottom`` may be missing.

    Raises:
        BadImage: it does not decode.
    """
    if header.frame is not None and header.orientation <= 2:
        upper = decode_upper(data, header.frame, bottom=bottom, shrink=shrink)
        if upper is not None:
            return _upright(upper, orientation=header.orientation), shrink
    least = (-(-header.height // shrink), -(-header.width // shrink)) if shrink > 1 else (0, 0)
    pixels = decode_rgb(data, min_size=least, header=header)
    return pixels, 1 if pixels.shape[:2] == (header.height, header.width) else shrink


def decode_samples(samples: Sequence[Sample], decode: Callable[[Sample], T]) -> Decoded[T]:
    """Apply ``decode`` to every sample; one that raises `BadImage` is replaced as in `replace_bad`."""

    def attempt(sample: Sample) -> T | BadImage:
        try:
            return decode(sample)
        except BadImage as error:
            return error

    return replace_bad(samples, lambda some: [attempt(sample) for sample in some])


def replace_bad(samples: Sequence[Sample], decode: Callable[[Sequence[Sample]], Sequence[T | BadImage]]) -> Decoded[T]:
    """Apply ``decode`` to all samples; one that comes back as `BadImage` is replaced by the next one that does not.

    The replacement carries a negative `repeat` of its own, so that what is drawn for it differs from what is drawn for
    the same sample at its own place.

    Raises:
        BadImage: none of the samples decodes.
    """
    values: list[T] = []
    chosen: list[Sample] = []
    bad: list[tuple[int, str, str]] = []
    for place, (sample, value) in enumerate(zip(samples, decode(samples), strict=True)):
        if isinstance(value, BadImage):
            bad.append((sample.id, sample.key, str(value)))
            value, sample = _replacement(samples, place=place, decode=decode)
        values.append(value)
        chosen.append(sample)
    return Decoded(values=values, samples=chosen, bad=bad)


def _replacement(
    samples: Sequence[Sample], *, place: int, decode: Callable[[Sequence[Sample]], Sequence[T | BadImage]]
) -> tuple[T, Sample]:
    for distance in range(1, len(samples)):
        other = replace(samples[(place + distance) % len(samples)], repeat=-1 - place)
        value = decode([other])[0]
        if not isinstance(value, BadImage):
            return value, other
    raise BadImage(f"none of the {len(samples)} samples of a micro-batch decodes; run `python data/main.py verify`")


def _jpeg_header(data: bytes) -> Header:
    frame, orientation, one_scan = read_segments(data)
    if not one_scan and (scans := num_scans(data)) > MAX_SCANS:
        raise BadImage(f"JPEG of {scans} scans, of which {MAX_SCANS} are decoded at most")
    height, width = (frame.height, frame.width) if frame is not None else _decoders_size(data)
    if orientation >= 5:
        height, width = width, height
    return Header(height=height, width=width, format="JPEG", orientation=orientation, frame=frame)


def _decoders_size(data: bytes) -> Size:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except KeyError as error:
        raise BadImage("broken JPEG header: unknown colours or subsampling") from error
    except Exception as error:
        raise BadImage(f"broken JPEG header: {error}") from error
    return int(height), int(width)


def _pil_header(data: bytes) -> Header:
    layout = None
    if data[: len(png.SIGNATURE)] == png.SIGNATURE:
        try:
            layout = png.read_layout(data)  # before PIL, which unpacks all profiles
        except UserError as error:
            raise BadImage(str(error)) from None
    with _open_pil(data) as image:
        orientation = _pil_orientation(image)
        width, height = image.size
        if orientation >= 5:
            height, width = width, height
        return Header(height=height, width=width, format=str(image.format), orientation=orientation, layout=layout)


def _pil_orientation(image: Image.Image) -> int:
    raw: Any = image.info.get("exif")
    return exif_orientation(raw) if isinstance(raw, bytes) else 1


def _open_pil(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit on pixels comes next
            return Image.open(io.BytesIO(data), formats=PIL_FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(str(error)) from error
    except Exception as error:  # plugins raise what they like on hostile bytes
        raise BadImage(f"no image that is decoded here ({', '.join(PIL_FORMATS)})") from error


def _decode_pil(data: bytes, *, header: Header) -> Pixels:
    with _open_pil(data) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
            if header.layout is not None:
                check_rows(image, data, layout=header.layout)
            pixels = _as_rgb(image, layout=header.layout)
        except UserError as error:
            raise BadImage(f"{image.format} does not decode: {error}") from None
        except Exception as error:
            if not is_refusal(error):
                raise
            raise BadImage(f"{image.format} does not decode: {error}") from error
    return _upright(pixels, orientation=header.orientation)


def check_rows(image: Image.Image, data: bytes, *, layout: png.PngLayout) -> None:
    """Demand all rows of a PNG: rows that are missing leave zeros, and only then is it worth the time to count them.

    Raises:
        UserError: some are missing.
    """
    lowest = image.crop((0, image.height - 1, image.width, image.height))
    if layout.interlaced or not np.asarray(lowest).any():
        png.check_rows(data, layout)


def _as_rgb(image: Image.Image, *, layout: png.PngLayout | None = None) -> Pixels:
    if image.mode.startswith("I"):  # 16 bits, which PIL's own conversion would clip
        return np.repeat(_eight_bits(np.asarray(image), layout=layout)[..., None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    pixels = np.asarray(image.convert("RGB"))
    if layout is not None and layout.bits == 16 and pixels.max() <= DARK:  # PIL hands on the upper eight bits
        raise UserError("its 16-bit colours use no more than 12 bits, and come out black; write it with 8 bits")
    return pixels


def _eight_bits(values: npt.NDArray[Any], *, layout: png.PngLayout | None) -> Pixels:
    """Scale 16-bit grey by the bits that it uses: those that the file names, or 12, 10 or 8 where no value needs more.

    Cameras and scanners write 12 bits into 16: taken for 16, they come out black.
    """
    highest = int(values.max())
    named = 16 if layout is None else layout.significant_bits
    bits = next((bits for bits in (8, 10, 12, named) if highest < 2**bits), 16)
    grey = np.empty(values.shape, np.uint8)
    full = 2**bits - 1
    for row, line in enumerate(values):  # one at a time, since whole numbers that wide take four times the image
        grey[row] = (line.clip(0, full).astype(np.uint32) * 255 + full // 2) // full
    return grey


def _decode_jpeg(data: bytes, *, min_size: Size, header: Header) -> Pixels:
    height, width = min_size if header.orientation < 5 else min_size[::-1]
    try:
        scaled = height > 0 and width > 0
        return simplejpeg.decode_jpeg(
            data, min_height=height if scaled else 0, min_width=width if scaled else 0, min_factor=2 if scaled else 1
        )
    except Exception as error:  # its errors on hostile bytes are not only ValueErrors
        if LOST_ROWS in str(error):  # which PIL would fill with grey
            raise BadImage(f"JPEG does not decode: {error}") from error
        logger.debug("simplejpeg: %s; trying PIL", error)
    with _open_pil(data) as image:
        try:
            return _as_rgb(image)
        except Exception as error:
            if not is_refusal(error):
                raise
            raise BadImage(f"JPEG does not decode: {error}") from error


def _upright(pixels: Pixels, *, orientation: int) -> Pixels:
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])
