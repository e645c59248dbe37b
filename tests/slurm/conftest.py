"""A real Slurm for the tests of a file."""

import pytest

from tests.slurm.cluster import missing, running


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
