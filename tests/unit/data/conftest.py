"""Small data sets for the tests."""

import io

import numpy as np
import pytest
from PIL import Image

from data.shards.shard_set import open_shards
from data.writing.writer import NewSample, ShardLimits, write_shards


def encode(number, *, height=40, width=56, format="JPEG", **options):  # noqa: A002
    """Encode a smooth image of its own for each number."""
    y, x = np.mgrid[:height, :width]
    x, y = x * (150 / width), y * (150 / width)
    waves = [127 + 120 * np.sin((x * (number % 5 + 1) + y * (channel + 1)) / 40 + number) for channel in range(3)]
    content = io.BytesIO()
    Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).save(content, format, **options)
    return content.getvalue()


@pytest.fixture
def encoded():
    return encode


@pytest.fixture
def write(tmp_path):
    """Write a data set of ``count`` images and open it."""

    def write(count=23, *, name="shards", per_shard=5, broken=(), classes=("a", "b", "c")):
        samples = (
            NewSample(
                source=f"{number}.jpg",
                members={"jpg": b"\xff\xd8\xff no image" if number in broken else encode(number)},
                label=None if classes is None else number % len(classes),
            )
            for number in range(count)
        )
        write_shards(samples, out=tmp_path / name, classes=classes, limits=ShardLimits(samples=per_shard))
        return open_shards(tmp_path / name)

    return write
