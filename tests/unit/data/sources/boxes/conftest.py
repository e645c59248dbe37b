"""Small images with files of boxes."""

import json

import pytest

from data.sources.formats import find_source, source_format
from data.writing.journal import Rejected
from tests.unit.data.write_options import write_options


@pytest.fixture
def boxed(tmp_path, encoded):
    """Write images (40 by 56 pixels) by name, and texts."""

    def boxed(*images, texts):
        for number, name in enumerate(images):
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_bytes(encoded(number))
        for name, text in texts.items():
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_text(text)
        return tmp_path / "in"

    return boxed


@pytest.fixture
def opened():
    """Tell the kind of a source, and open it."""

    def opened(root, **options):
        asked = write_options(root, **options)
        name, _ = find_source(asked)
        return name, source_format(name).open(asked, root)

    return opened


@pytest.fixture
def objects():
    """Read the objects of a sample, or why there is none."""

    def objects(source, number=0):
        sample = source.prepare(number)
        return sample.reason if isinstance(sample, Rejected) else json.loads(sample.members["json"])["objects"]

    return objects
