"""The fault drills of ``benchmarks/drills/data_faults.py``: some of them, and that they can fail."""

import pytest

from benchmarks.drills.data_faults import run_drills
from benchmarks.drills.drill import Drill
from benchmarks.drills.faults.damaged_data import corrupt_pictures
from benchmarks.drills.faults.hostile_data import pickle_members
from benchmarks.drills.faults.remote_faults import hanging_server


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_bad_images_hanging_servers_and_pickles_end_as_promised_and_a_broken_promise_is_seen(tmp_path):
    def broken_promise(drill: Drill) -> str:
        drill.data("verify", "--shards", drill.sound).expect_error("a fault that is not there")
        return "it was found"

    def program_that_runs_the_datas_code(drill: Drill) -> str:
        drill.canary.touch()
        drill.data("verify", "--shards", drill.sound).expect_sound()
        return "nobody saw it"

    drills = [corrupt_pictures, hanging_server, pickle_members, broken_promise, program_that_runs_the_datas_code]
    outcomes = run_drills(drills, folder=tmp_path)
    assert [outcome.kept for outcome in outcomes] == [True, True, True, False, False], outcomes
