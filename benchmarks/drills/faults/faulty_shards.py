"""Shards with something wrong in them, made from sound ones: broken pictures, image bombs, hostile members."""

import io
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Damage = Callable[[bytes], bytes]

DAMAGES: Sequence[Damage] = (
    lambda picture: picture[: len(picture) // 2],
    lambda picture: b"",
    lambda picture: b"no picture at all",
    lambda picture: picture[:20] + bytes(len(picture) - 20),
    lambda picture: b"\xff\xd8\xff" + picture[::-1],
    lambda picture: picture[:3],
)
"""Ways in which a picture can be beyond repair."""


def copy_tars(shards: Path, out: Path) -> Path:
    """Copy the tars of a folder, without manifest and indexes, as someone else would have written them."""
    out.mkdir(parents=True)
    for tar in sorted(shards.glob("*.tar")):
        shutil.copyfile(tar, out / tar.name)
    return out


def replace_pictures(folder: Path, pictures: Mapping[int, Damage]) -> None:
    """Replace pictures, by their number over all tars of ``folder``."""
    number = 0
    for path in sorted(folder.glob("*.tar")):
        members = read_tar(path)
        for place, (name, content) in enumerate(members):
            if name.endswith(".jpg"):
                if number in pictures:
                    members[place] = (name, pictures[number](content))
                number += 1
        write_tar(path, members)


def read_tar(path: Path) -> list[tuple[str, bytes]]:
    """Return names and contents of a tar's files."""
    with tarfile.open(path) as tar:
        found = [(info.name, tar.extractfile(info)) for info in tar]
        return [(name, file.read()) for name, file in found if file is not None]


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


def jpeg_bomb(picture: bytes, *, side: int = 20_000) -> bytes:
    """Return a JPEG of less than 1 KB that claims ``side`` x ``side`` pixels: sound headers, and the first of its codes."""
    frame, scan = picture.index(b"\xff\xc0"), picture.index(b"\xff\xda")
    size = struct.pack(">HH", side, side)
    return picture[: frame + 5] + size + picture[frame + 9 : scan + 50] + b"\xff\xd9"


def png_bomb(_picture: bytes, *, side: int = 30_000) -> bytes:
    """Return a sound PNG of about 100 KB that holds ``side`` x ``side`` grey pixels of one bit."""
    rows = zlib.compress(bytes((1 + -(-side // 8)) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
