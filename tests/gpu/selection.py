"""The cases that are tried where time is short (``benchmarks/gpu.sh``); others are marked slow, since each compiles."""

from itertools import product

import pytest


def selected(*axes, quick):
    """Parametrise a test by all combinations of the axes; those that ``quick(*values)`` refuses are marked slow."""
    return [
        pytest.param(*values, marks=() if quick(*values) else pytest.mark.slow, id="-".join(map(str, values)))
        for values in product(*axes)
    ]
