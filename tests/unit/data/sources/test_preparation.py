"""Only files are read, and none without end."""

import os

import pytest

from data.images.decode import BadImage
from data.sources import preparation
from data.sources.preparation import read_limited


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(BadImage, match="no regular file"):
            read_limited(tmp_path / name)
    with pytest.raises((BadImage, OSError)):
        read_limited(tmp_path / "folder.jpg")


def test_files_are_read_to_the_limit_only(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "MAX_FILE_BYTES", 10)
    (tmp_path / "a.jpg").write_bytes(b"x" * 10)
    assert read_limited(tmp_path / "a.jpg") == b"x" * 10
    (tmp_path / "a.jpg").write_bytes(b"x" * 11)
    with pytest.raises(BadImage, match="11 bytes, at most 10"):
        read_limited(tmp_path / "a.jpg")
