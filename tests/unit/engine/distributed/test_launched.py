"""A launcher says all of its processes, or nothing; what is missing or nonsense is named."""

import pytest

from engine.distributed.launched import read_launched
from engine.errors import UserError

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node7", "MASTER_PORT": "29500", "LOCAL_RANK": "1"}


def test_a_whole_environment_is_read():
    launched = read_launched(WHOLE)
    assert (launched.rank, launched.world_size, launched.meeting_place) == (1, 2, "node7:29500")


@pytest.mark.parametrize("environment", [{}, {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, {"RANK": "", "WORLD_SIZE": ""}])
def test_an_address_alone_starts_one_process(environment):
    assert read_launched(environment) is None


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_one_that_is_missing_is_named_and_so_is_the_way_out(name):
    part = {key: value for key, value in WHOLE.items() if key != name}
    with pytest.raises(UserError, match=rf"but not {name}: a launcher .* sets .* unset "):
        read_launched(part)


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORLD_SIZE", "abc"), ("WORLD_SIZE", "0"), ("RANK", "-1"), ("RANK", "2"), ("LOCAL_RANK", "x"),
     ("MASTER_PORT", "99999"), ("MASTER_PORT", "http"), ("RANK", "²")],
)  # fmt: skip
def test_nonsense_is_named(name, value):
    with pytest.raises(UserError, match=f"{name}={value}"):
        read_launched({**WHOLE, name: value})
