"""What an extension costs: one file of at most 60 lines, imports and docstring counted, and one line in a registry."""

import sys
from pathlib import Path

import pytest

EXTENSIONS = sorted((Path(__file__).resolve().parents[3] / "examples" / "extensions").glob("*.py"))
REGISTRY_LINES = {
    "backbone": "register(",
    "detector": "DETECTORS[",
    "source": "FORMATS[",
    "target": "TARGETS[",
}


@pytest.mark.parametrize("path", EXTENSIONS, ids=lambda path: path.stem)
def test_an_extension_is_one_short_file_and_one_registry_line(path, capsys):
    lines = path.read_text().splitlines()
    with capsys.disabled():
        sys.stdout.write(f"\n{path.name}: {len(lines)} lines\n")
    assert len(lines) <= 60
    assert sum(line.startswith(REGISTRY_LINES[path.stem]) for line in lines) == 1


def test_there_is_one_of_each_kind():
    assert {path.stem for path in EXTENSIONS} == set(REGISTRY_LINES)
