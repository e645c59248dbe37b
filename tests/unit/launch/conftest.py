"""A command line that passes all checks, and the launcher as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

SUBMITTING = ("pretrain", "finetune", "resume", "verify-resume")


@pytest.fixture
def options(tmp_path):
    """Options of a pretraining of 4 micro-batches, whose shards look right from outside."""
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "manifest.json").write_text(json.dumps({}))
    recipe = str(ROOT / "benchmarks" / "drills" / "resume.yaml")
    return ("--recipe", recipe, "--data.shards", str(shards), "--run.folder", str(tmp_path / "runs" / "x"))


@pytest.fixture
def launch(tmp_path):
    """Start `launch/main.py`, in another folder than the project's."""

    def start(*arguments, check=False, **environment):
        if arguments[:1] and arguments[0] in SUBMITTING and not {"-h", "--help"} & {*arguments} and not check:
            arguments = (*arguments, "--skip-check")  # which imports torch
        return subprocess.run(
            [sys.executable, str(ROOT / "launch" / "main.py"), *arguments],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return start
