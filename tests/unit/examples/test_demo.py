"""The demo empties its own folder only."""

import pytest

from examples.demo import MARKER, make_room


def test_only_a_demo_is_emptied(tmp_path):
    (tmp_path / "old" / "shards").mkdir(parents=True)
    (tmp_path / "old" / MARKER).touch()
    make_room(tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == [MARKER]
    (tmp_path / "old" / "my images").mkdir()
    for folder in (tmp_path / "old", tmp_path):
        with pytest.raises(ValueError, match="might be lost"):
            make_room(folder)
    assert (tmp_path / "old" / "my images").is_dir()
