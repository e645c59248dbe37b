"""Sound images of every kind, sound shards, and ways to damage them: all functions of a random generator."""

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.writing.writer import NewSample, ShardLimits, write_shards

SIDE = 48
PNG_HEAD = 8
NUMBERS = (0, 1, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**32 - 1)
VALUES = (
    0,
    -1,
    1,
    2**31,
    2**63,
    10**40,
    1e308,
    float("nan"),
    "",
    "x" * 300,
    "../../etc/passwd",
    "pipe:id",
    None,
    [],
    {},
    True,
)
Rng = np.random.Generator


def image_bases() -> Mapping[str, bytes]:
    """Encode a small image in each format and mode that is decoded."""
    return _encoded(SIDE, SIDE)


def largest_images(max_pixels: int) -> Mapping[str, bytes]:
    """Encode an image of the most pixels that are allowed in each format and mode."""
    side = int(max_pixels**0.5)
    return _encoded(side, max_pixels // side)


def mutated_image(bases: Mapping[str, bytes], *, rng: Rng) -> bytes:
    """Damage one of the images in one to three ways."""
    names = sorted(bases)
    data = bytearray(bases[names[int(rng.integers(len(names)))]])
    for _ in range(int(rng.integers(1, 4))):
        _CHANGES[int(rng.integers(len(_CHANGES)))](data, rng)
    return _with_checksums(bytes(data)) if rng.random() < 0.7 else bytes(data)


def sound_shards(folder: Path) -> Path:
    """Write a small data set."""
    image = _save(Image.new("RGB", (16, 16), "red"), "JPEG")
    members = {"jpg": image, "json": b'{"objects": []}', "seg.png": _save(Image.new("L", (16, 16), 1), "PNG")}
    samples = (NewSample(source="", members=members, label=number % 3) for number in range(9))
    write_shards(samples, out=folder, classes=("a", "b", "c"), limits=ShardLimits(samples=4))
    return folder


def mutated_files(sound: Path, folder: Path, *, rng: Rng) -> Path:
    """Copy sound shards, and damage their manifest or an index."""
    shutil.copytree(sound, folder)
    if rng.random() < 0.5:
        path = folder / "manifest.json"
        text = path.read_text()
        path.write_bytes(_mutated_tree(text, rng) if rng.random() < 0.7 else _mutated_bytes(text.encode(), rng))
    else:
        path = folder / f"shard-{int(rng.integers(3)):06d}.idx"
        content = bytearray(path.read_bytes())
        if rng.random() < 0.3:
            content = bytearray(_mutated_bytes(bytes(content), rng))
        for _ in range(int(rng.integers(1, 4))):  # the file's size stays, so that more is read than its header
            _number(content, rng)
        path.write_bytes(content)
    return folder


def _encoded(height: int, width: int) -> dict[str, bytes]:
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin((x + channel * y) / 7 + channel) for channel in range(3)]
    photo = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.asarray(photo)[..., 0].astype(np.uint16) * 257)
    alpha = photo.copy()
    alpha.putalpha(photo.convert("L"))
    palette = photo.quantize(16)
    frames: dict[str, Any] = {"save_all": True, "append_images": [photo.rotate(90, expand=False)]}
    return {
        "jpeg": _save(photo, "JPEG"),
        "jpeg progressive": _save(photo, "JPEG", progressive=True, quality=90, subsampling=0),
        "jpeg grey": _save(photo.convert("L"), "JPEG"),
        "jpeg cmyk": _save(photo.convert("CMYK"), "JPEG"),
        "jpeg turned": _save(photo, "JPEG", exif=exif.tobytes()),
        "jpeg restarts": _save(photo, "JPEG", restart_marker_blocks=4, optimize=True),
        "png": _save(photo, "PNG"),
        "png grey": _save(photo.convert("L"), "PNG"),
        "png alpha": _save(alpha, "PNG", exif=exif.tobytes()),
        "png grey alpha": _save(alpha.convert("LA"), "PNG"),
        "png palette": _save(palette, "PNG", transparency=bytes([0, 128, 255])),
        "png one bit": _save(photo.convert("1"), "PNG"),
        "png 16 bits": _save(deep, "PNG"),
        "png interlaced": _interlaced(height, width),
        "webp": _save(photo, "WEBP"),
        "webp lossless": _save(alpha, "WEBP", lossless=True, method=0),
        "webp animated": _save(photo, "WEBP", method=0, lossless=True, **frames),
        "bmp": _save(photo, "BMP"),
        "bmp palette": _save(palette, "BMP"),
        "bmp one bit": _save(photo.convert("1"), "BMP"),
    }


def _save(image: Image.Image, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def _interlaced(height: int, width: int) -> bytes:
    """Write a grey PNG in seven passes, which PIL reads but does not write."""
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    values = (np.mgrid[:height, :width].sum(axis=0) % 256).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for t, d, l, a in passes for row in values[t::d, l::a] if row.size)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _place(data: bytearray, rng: Rng) -> int:
    """Choose a place, often near the start, where sizes stand."""
    end = min(len(data), 64) if rng.random() < 0.4 else len(data)
    return int(rng.integers(max(end, 1)))


def _flip(data: bytearray, rng: Rng) -> None:
    place = _place(data, rng)
    data[place : place + 1] = bytes([int(rng.integers(256))])


def _noise(data: bytearray, rng: Rng) -> None:
    place = _place(data, rng)
    noise = rng.bytes(int(rng.integers(1, 40)))
    data[place : place + len(noise)] = noise


def _number(data: bytearray, rng: Rng) -> None:
    place, value = _place(data, rng), NUMBERS[int(rng.integers(len(NUMBERS)))]
    order = ">I" if rng.random() < 0.5 else "<I"
    if rng.random() < 0.5:
        data[place : place + 4] = struct.pack(order, value)
    else:
        data[place : place + 2] = struct.pack(order.replace("I", "H"), value % 2**16)


def _cut(data: bytearray, rng: Rng) -> None:
    place = _place(data, rng)
    del data[place : place + int(rng.integers(1, 64))]


def _end(data: bytearray, rng: Rng) -> None:
    del data[max(1, _place(data, rng)) :]


def _repeat(data: bytearray, rng: Rng) -> None:
    place = _place(data, rng)
    piece = data[place : place + int(rng.integers(1, 200))]
    data[place:place] = piece * int(rng.integers(1, 30))


_CHANGES: tuple[Callable[[bytearray, Rng], None], ...] = (_flip, _flip, _noise, _number, _number, _cut, _end, _repeat)


def _with_checksums(data: bytes) -> bytes:
    """Mend the checksums of a PNG's chunks, without which decoders stop at the first."""
    if data[1:4] != b"PNG":
        return data
    result, place = bytearray(data), PNG_HEAD
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        end = place + 8 + size
        if end + 4 > len(data):
            break
        result[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(result)


def _mutated_bytes(content: bytes, rng: Rng) -> bytes:
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        _CHANGES[int(rng.integers(len(_CHANGES)))](data, rng)
    return bytes(data)


def _mutated_tree(text: str, rng: Rng) -> bytes:
    """Change values of a manifest, of the whole or of a shard's line, to what they should not be."""
    tree = json.loads(text)
    for _ in range(int(rng.integers(1, 4))):
        parts = [
            part
            for part in (tree, *(tree["shards"] if isinstance(tree.get("shards"), list) else []))
            if isinstance(part, dict)
        ]
        part = parts[int(rng.integers(len(parts)))]
        if not part:
            continue
        name = sorted(part)[int(rng.integers(len(part)))]
        if rng.random() < 0.2:
            del part[name]
        else:
            part[name] = VALUES[int(rng.integers(len(VALUES)))]
    return json.dumps(tree).encode()
