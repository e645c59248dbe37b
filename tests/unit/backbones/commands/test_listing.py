"""The list of the zoo: it is shown without torch, and its sizes are those that are counted."""

import subprocess
import sys
from pathlib import Path

import pytest

from backbones.commands.counting import count
from backbones.commands.counts import read_counts
from backbones.registry.zoo import ZOO

ROOT = Path(__file__).parents[4]
NAMES = [name for entry in ZOO.values() for name in entry.names]
SMALL = ("vit_tiny_patch16_224", "xformer", "secvit_tiny")
OLD = "the file of sizes is out of date: run `python benchmarks/tables/backbone_counts.py`"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in NAMES]
)
def test_sizes_are_those_that_are_counted(name):
    assert read_counts()[name] == count(name), OLD


def test_there_are_sizes_of_all_names():
    assert list(read_counts()) == NAMES, OLD


def test_list_and_help_need_no_torch():
    script = """
import sys
from backbones.app import main
for argv in (["list"], ["--help"], ["import", "--help"]):
    sys.argv = ["backbones/main.py", *argv]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
print(sorted({"torch", "timm", "matplotlib"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in NAMES)
