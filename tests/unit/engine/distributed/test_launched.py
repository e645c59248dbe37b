"""A launcher says all of its processes, or nothing; what is missing or nonsense is named."""

import pytest

from engine.distributed.launched import local_number, read_launched
from engine.errors import UserError

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node7", "MASTER_PORT": "29500", "LOCAL_RANK": "1"}


def test_a_whole_environment_is_read():
    launched = read_launched(WHOLE)
    assert (launched.rank, launched.world_size, launched.meeting_place) == (1, 2, "node7:29500")


@pytest.mark.parametrize("environment", [{}, {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, {"RANK": "", "WORLD_SIZE": ""}])
def test_an_address_alone_starts_one_process(environment):
    assert read_launched(environment) is None


@pytest.mark.parametrize("value", ["", "-1", "first"])
def test_local_rank_of_a_process_without_a_launcher_is_not_judged(value):
    assert read_launched({"LOCAL_RANK": value, "LOCAL_WORLD_SIZE": value}) is None
    assert read_launched({**WHOLE, "LOCAL_RANK": ""}) is not None


def test_local_number_that_is_not_set_is_that_of_a_process_alone():
    assert [local_number("LOCAL_RANK", each) for each in ({}, {"LOCAL_RANK": ""}, {"LOCAL_RANK": "3"})] == [0, 0, 3]
    assert local_number("LOCAL_WORLD_SIZE", {"LOCAL_WORLD_SIZE": ""}) == 1
    with pytest.raises(UserError, match=r"LOCAL_RANK=-1, expected a whole number of at least 0: unset LOCAL_RANK"):
        local_number("LOCAL_RANK", {"LOCAL_RANK": "-1"})


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
