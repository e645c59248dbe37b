"""Shards that are hard on an order: uneven ones, of one sample or none, with a few images that do not decode."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from data.shards.scan import index_shards
from data.shards.tar_files import find_tars

BROKEN = (b"\xff\xd8\xff no image", b"neither is this")
CLASSES = ("a", "b")


def write_uneven(out: Path, *, num_samples: int, num_broken: int, seed: int) -> frozenset[int]:
    """Write small labelled images as WebDataset tars with their manifest, and number the broken ones."""
    rng = np.random.default_rng(seed)
    broken = frozenset(rng.permutation(num_samples)[:num_broken].tolist())
    out.mkdir(parents=True)
    start = 0
    for shard, size in enumerate(uneven_sizes(num_samples, rng)):
        with tarfile.open(out / f"{shard:03d}.tar", "w") as tar:
            for number in range(start, start + size):
                image = BROKEN[number % 2] if number in broken else _image(rng)
                _add(tar, f"{number:06d}.jpg", image)
                _add(tar, f"{number:06d}.cls", str(number % len(CLASSES)).encode())
        start += size
    index_shards(find_tars(out), out=out, classes=CLASSES)
    return broken


def uneven_sizes(num_samples: int, rng: np.random.Generator) -> list[int]:
    """Draw sizes that add up, an empty shard and some of one sample among them."""
    sizes = [0, 1, 1]
    while sum(sizes) < num_samples:
        sizes.append(min(int(rng.integers(1, max(3, num_samples // 5))), num_samples - sum(sizes)))
    return rng.permutation(sizes).tolist()


def _image(rng: np.random.Generator) -> bytes:
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(coarse).resize((48, 40)).save(content, "JPEG")
    return content.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
