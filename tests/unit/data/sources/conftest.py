"""Folders of images."""

import pytest


@pytest.fixture
def image_folder(tmp_path, encoded):
    def make(*names):
        for number, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(encoded(number))
        return tmp_path

    return make
