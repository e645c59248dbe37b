"""Exactly once, counted from the notes of real runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_sample_is_seen_as_often_as_promised_through_kills_and_other_layouts():
    """SIGKILL at random moments, other process counts and workers, broken samples, repeats, two folders mixed."""
    audit = subprocess.run(
        [sys.executable, "benchmarks/drills/epoch_audit.py", "--short"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=380,
        capture_output=True,
        text=True,
    )
    assert audit.returncode == 0, audit.stdout[-3000:] + audit.stderr[-3000:]


@pytest.mark.slow
def test_the_order_keeps_its_bounds_at_the_scale_of_a_thousand_processes():
    scale = subprocess.run(
        [sys.executable, "benchmarks/loading/order_scale.py", "--laid-out", "32"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
        capture_output=True,
        text=True,
    )
    assert scale.returncode == 0, scale.stdout[-3000:] + scale.stderr[-3000:]
