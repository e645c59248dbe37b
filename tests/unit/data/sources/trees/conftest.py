"""Trees of files whose content nobody reads."""

import dataclasses

import pytest

from data.sources.formats import find_source, source_format
from tests.unit.data.write_options import write_options


@pytest.fixture
def tree(tmp_path):
    """Make a folder of these files; a name that ends in / is a folder, one with two makes as many."""

    def tree(*names, **texts):
        root = tmp_path / "in"
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if name.endswith("/") else path.write_text(texts.get(name, ""))
        return root

    return tree


@pytest.fixture
def opened():
    """Tell the kind of a source, and open it."""

    def opened(root, **options):
        asked = write_options(root, **options)
        name, place = find_source(asked)
        return name, source_format(name).open(dataclasses.replace(asked, source=place), root)

    return opened
