"""The container recipes: they cannot be built here, so a linter reads one and the other must say the same."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "containers"
SECTIONS = {"files", "post", "environment", "runscript", "test"}


def definition():
    """Read header and sections of the Apptainer definition."""
    text = (FOLDER / "green-pretrain.def").read_text()
    header, *parts = re.split(r"^%(\w+)\n", text, flags=re.MULTILINE)
    return header, dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_dockerfile_passes_its_linter():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [hadolint, "--no-color", str(FOLDER / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_definition_has_a_header_and_known_sections_whose_scripts_are_shell():
    header, sections = definition()
    assert re.match(r"Bootstrap: docker\nFrom: \S+\n", header)
    assert set(sections) == SECTIONS
    for name in SECTIONS - {"files"}:
        done = subprocess.run(["bash", "-n"], input=sections[name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_both_build_the_same_environment():
    dockerfile, (header, sections) = (FOLDER / "Dockerfile").read_text(), definition()
    assert re.search(r"^FROM (\S+)$", dockerfile, re.MULTILINE).group(1) == re.search(
        r"^From: (\S+)$", header, re.MULTILINE
    ).group(1)
    packages = [
        re.search(r"--no-install-recommends (.*?)(?: \\)?$", text, re.MULTILINE).group(1)
        for text in (dockerfile, sections["post"])
    ]
    assert packages[0] == packages[1]
    upgraded = [
        re.search(r"--upgrade (.*?)(?: \\)?$", text, re.MULTILINE).group(1) for text in (dockerfile, sections["post"])
    ]
    assert upgraded[0] == upgraded[1]


def test_the_definition_copies_the_packages_and_nothing_else_that_lies_about():
    root = FOLDER.parent
    named = {line.split()[0] for line in definition()[1]["files"].splitlines() if line.strip()}
    packages = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert set(packages) | {"pyproject.toml", "README.md", "LICENSE"} == named
    assert all((root / name).exists() for name in named)
