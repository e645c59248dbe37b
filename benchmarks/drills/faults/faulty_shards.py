"""Shards with faults, made from sound ones: broken images, image bombs, hostile members."""

import io
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Damage = Callable[[bytes], bytes]

DAMAGES: Sequence[Damage] = (
    lambda image: image[: len(image) // 2],
    lambda image: b"",
    lambda image: b"no image at all",
    lambda image: image[:20] + bytes(len(image) - 20),
    lambda image: b"\xff\xd8\xff" + image[::-1],
    lambda image: image[:3],
)
"""Ways in which an image can be beyond repair."""


def copy_tars(shards: Path, out: Path) -> Path:
    """Copy the tars of a folder, without manifest and indexes, as someone else would have written them."""
    out.mkdir(parents=True)
    for tar in sorted(shards.glob("*.tar")):
        shutil.copyfile(tar, out / tar.name)
    return out


def replace_images(folder: Path, images: Mapping[int, Damage]) -> None:
    """Replace images, by their number over all tars of ``folder``."""
    number = 0
    for path in sorted(folder.glob("*.tar")):
        members = read_tar(path)
        for place, (name, content) in enumerate(members):
            if name.endswith(".jpg"):
                if number in images:
                    members[place] = (name, images[number](content))
                number += 1
        write_tar(path, members)


def read_tar(path: Path) -> list[tuple[str, bytes]]:
    """Read names and contents of a tar's files."""
    with tarfile.open(path) as tar:
        files = [(info.name, tar.extractfile(info)) for info in tar]
        return [(name, file.read()) for name, file in files if file is not None]


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], *, links: Mapping[str, str] | None = None) -> None:
    """Write a tar of files, with symbolic ``links`` (name, target) in front."""
    with tarfile.open(path, "w") as tar:
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def jpeg_bomb(image: bytes, *, side: int = 20_000) -> bytes:
    """Make a JPEG of under 1 KB that claims ``side`` x ``side`` pixels: sound headers, and the first of its codes."""
    frame, scan = image.index(b"\xff\xc0"), image.index(b"\xff\xda")
    size = struct.pack(">HH", side, side)
    return image[: frame + 5] + size + image[frame + 9 : scan + 50] + b"\xff\xd9"


def png_bomb(_image: bytes, *, side: int = 30_000) -> bytes:
    """Make a sound PNG of about 100 KB that holds ``side`` x ``side`` grey pixels of one bit."""
    rows = zlib.compress(bytes((1 + -(-side // 8)) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
