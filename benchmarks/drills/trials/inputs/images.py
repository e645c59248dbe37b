"""Images that cost more than they show, show less than they hold, or are no files at all, given to `write`."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.drills.trials.case import Case
from data.images.decode import decode_rgb
from data.shards.shard_set import open_shards

WRITE = ["data/main.py", "write", "--source", "in", "--out", "out", "--format", "folder"]
SIDE = 24
RED = [254, 0, 0]


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """Encode an image."""
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def noise(mode: str = "RGB") -> Image.Image:
    """Make an image that compresses badly."""
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def chunk(kind: bytes, content: bytes) -> bytes:
    """Make a PNG's chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(size: tuple[int, int], rows: bytes, *, bits: int = 8, colours: int = 0, before: bytes = b"") -> bytes:
    """Make a PNG of (width, height) whose rows need not be what its header says."""
    head = struct.pack(">IIBBBBB", *size, bits, colours, 0, 0, 0)
    body = chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def written(data: bytes, *, suffix: str) -> Callable[[Path], list[str]]:
    """Write an image beside a good one, and give the command."""

    def make(folder: Path) -> list[str]:
        (folder / "in").mkdir()
        (folder / "in" / f"a{suffix}").write_bytes(data)
        (folder / "in" / "good.jpg").write_bytes(encoded(noise(), "JPEG"))
        return WRITE

    return make


def left_out(reason: str) -> Callable[[Path], str | None]:
    """Check that one file was left out, and why."""

    def check(folder: Path) -> str | None:
        ledger = folder / "out" / "bad.jsonl"
        lines = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.is_file() else []
        return None if len(lines) == 1 and reason in lines[0]["reason"] else f"left out: {lines}"

    return check


def shows(colour: list[int] | None = None, *, size: tuple[int, int] = (SIDE, SIDE)) -> Callable[[Path], str | None]:
    """Check that both images were kept, the size (height, width) of the one that was tried, and its first pixel."""

    def check(folder: Path) -> str | None:
        shards = open_shards(folder / "out")
        samples = [shards.read(0, position).image for position in range(shards.num_samples)]
        good = encoded(noise(), "JPEG")
        tried = [decode_rgb(image) for image in samples if image != good]
        if len(tried) != 1:
            return f"{len(tried)} images were kept"
        first = tried[0][0, 0].tolist()
        if tried[0].shape[:2] != size or (colour is not None and max(np.abs(np.subtract(first, colour))) > 3):
            return f"it became {tried[0].shape} with {first}"
        return None

    return check


def _turned(form: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise().crop((0, 0, SIDE, 10)), form, exif=exif.tobytes())


def _link(target: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        command = written(b"", suffix=".jpg")(folder)
        (folder / "in" / "a.jpg").unlink()
        if target:
            (folder / "in" / "a.jpg").symlink_to(target)
        else:
            os.mkfifo(folder / "in" / "a.jpg")
        return command

    return make


_PROFILES = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(900_000))) * 3000
_ROW = b"\0" + b"\x77" * 50
_TWELVE = b"".join(b"\0" + struct.pack(">H", 4095) * 50 for _ in range(50))
_TWELVE_COLOURS = b"".join(b"\0" + struct.pack(">HHH", 4095, 2000, 100) * 50 for _ in range(50))
_JPEG = encoded(noise(), "JPEG", quality=95)
_PROGRESSIVE = encoded(noise(), "JPEG", quality=95, progressive=True)
_RED = Image.new("RGB", (SIDE, SIDE), "red")
_PALETTE = _RED.quantize(4)
_FRAMES = [_RED, Image.new("RGB", (SIDE, SIDE), "blue")]


def _bad(name: str, data: bytes, reason: str, *, suffix: str = ".png") -> Case:
    return Case(name=name, make=written(data, suffix=suffix), check=left_out(reason), says="left out")


def _good(
    name: str, data: bytes, colour: list[int] | None = None, *, suffix: str = ".png", **size: tuple[int, int]
) -> Case:
    return Case(
        name=name, make=written(data, suffix=suffix), check=shows(colour, **size), never_says="Traceback|left out"
    )


CASES = [
    _bad("one_column_of_178_million", png((1, 178_000_000), b""), "a side is longer than 65535"),
    _bad("one_column_of_60_million", png((1, 60_000_000), b"\0\0"), "a side is longer than 65535"),
    _bad("more_pixels_than_are_allowed", png((13_000, 13_000), b""), "more than the 120000000 allowed"),
    _bad("half_of_the_rows", png((50, 50), _ROW * 25), "50% of its rows are there"),
    _bad("thousands_of_colour_profiles", png((50, 50), _ROW * 50, before=_PROFILES), "several colour profiles"),
    _bad("jpeg_cut_and_ended", _JPEG[:900] + b"\xff\xd9", "premature end", suffix=".jpg"),
    _bad("progressive_jpeg_cut", _PROGRESSIVE[:900], "does not decode", suffix=".jpg"),
    _bad("progressive_jpeg_cut_and_ended", _PROGRESSIVE[:900] + b"\xff\xd9", "does not decode", suffix=".jpg"),
    _bad("twelve_bits_in_16_bit_colours", png((50, 50), _TWELVE_COLOURS, bits=16, colours=2), "no more than 12 bits"),
    _bad("a_gif_called_jpg", encoded(noise(), "GIF"), "no image that is decoded here", suffix=".jpg"),
    _good("twelve_bits_in_16_bit_grey", png((50, 50), _TWELVE, bits=16), [255] * 3, size=(50, 50)),
    _good("one_bit", encoded(Image.new("1", (SIDE, SIDE), 1), "PNG"), [255] * 3),
    _good("cmyk_jpeg", encoded(Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)), "JPEG"), [255, 0, 0], suffix=".jpg"),
    _good("palette_with_transparency", encoded(_PALETTE, "PNG", transparency=0), [255, 0, 0]),
    _good("animated_webp", encoded(_FRAMES[0], "WEBP", save_all=True, append_images=_FRAMES[1:]), RED, suffix=".webp"),
    _good("turned_jpeg", _turned("JPEG"), suffix=".jpg", size=(SIDE, 10)),
    _good("turned_png", _turned("PNG"), size=(SIDE, 10)),
    _good("png_called_jpg", encoded(_RED, "PNG"), [255, 0, 0], suffix=".jpg"),
    Case(name="a_link_to_a_device", make=_link("/dev/zero"), check=left_out("no regular file"), limit_s=30),
    Case(name="a_pipe", make=_link(""), check=left_out("no regular file"), limit_s=30),
]
