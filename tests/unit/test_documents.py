"""Every path that documents, docstrings and scripts name is there, and lines of prose fit on a screen."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
DOCUMENTS = [name for name in TRACKED if name.endswith(".md") and (ROOT / name).exists()]
TEXTS = [
    name
    for name in TRACKED
    if not name.startswith("tests/")
    and (name.endswith((".py", ".sh", ".yaml", ".def")) or Path(name).name in ("Makefile", "run", "Dockerfile"))
    and (ROOT / name).exists()
]
PATH = re.compile(
    r"(?<![\w/.:~-])((?:backbones|benchmarks|containers|data|engine|examples|finetune|launch|pretrain|tests)"
    r"/[\w./*{},-]*[\w*}])"
)
"""A path below one of our folders, in text of any kind."""
LINK = re.compile(r"\]\((?!https?://)([^)#]+)")
WIDTH = 120


def exists(path):
    if "{" in path or "," in path:
        return True
    return any(ROOT.glob(path)) or any(ROOT.glob(f"{path}.*"))  # the second: what a benchmark's --out begins with


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(name):
    links = LINK.findall((ROOT / name).read_text())
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


def test_every_path_that_is_named_is_there():
    named = {(name, path) for name in [*DOCUMENTS, *TEXTS] for path in PATH.findall((ROOT / name).read_text())}
    assert sorted(place for place in named if not exists(place[1])) == []


@pytest.mark.parametrize("suffix", [".md", ".yaml", ".sh"])
def test_lines_are_wrapped(suffix):
    """Tables are as wide as they are; Python's lines are ruff's."""
    names = [name for name in [*DOCUMENTS, *TEXTS] if name.endswith(suffix) and not name.startswith("data/")]
    lines = [(name, line) for name in names for line in (ROOT / name).read_text().splitlines()]
    assert [place for place in lines if len(place[1]) > WIDTH and not place[1].startswith("|")] == []
