"""What follows an attempt: restarts are limited, wait longer and longer, and start afresh with progress."""

import pytest

from launch.attempt.restart import decide
from launch.config import RestartConfig

LIMITS = RestartConfig(limit=5, limit_without_progress=2, backoff_s=10, longest_backoff_s=35)


def attempts(*ends, first=0):
    """Events of attempts that each ended as (outcome, step of the newest checkpoint); None was killed with no end."""
    events, step = [{"event": "submit"}], first
    for end in ends:
        events.append({"event": "start", "step": step})
        if end is not None:
            outcome, step = end
            events += [{"event": "end", "outcome": outcome, "step": step}, {"event": "decision"}]
    return events


def test_a_finished_run_and_one_that_its_user_ended_do_not_go_on():
    assert not decide(attempts(("finished", 9)), "finished", limits=LIMITS).go_on
    assert not decide(attempts(("ended by the user", 9)), "ended by the user", limits=LIMITS).go_on


def test_a_stopped_run_with_progress_goes_on_at_once_any_number_of_times():
    events = attempts(*[("stopped", step) for step in range(1, 51)])
    decision = decide(events, "stopped", limits=LIMITS)
    assert decision.go_on
    assert decision.wait_s == 0


@pytest.mark.parametrize("end", [("stopped", 4), None], ids=["stopped", "killed"])
def test_attempts_without_progress_end_at_their_limit_however_they_end(end):
    assert decide(attempts(*[end] * 9, ("stopped", 4), first=4), "stopped", limits=LIMITS).go_on
    last = decide(attempts(*[end] * 10, ("stopped", 4), first=4), "stopped", limits=LIMITS)
    assert not last.go_on
    assert last.reason.startswith("stopped 11 times in a row without a newer checkpoint than that of step 4, restart.")
    assert "--cluster.warning-s" in last.reason
    assert not decide(attempts(*[end] * 11, ("failed", 4), first=4), "failed", limits=LIMITS).go_on


def test_a_checkpoint_that_a_killed_attempt_left_is_progress():
    start = {"event": "start", "step": 8}
    events = [*attempts(*[None] * 8, first=4), start, *attempts(*[("stopped", 8)] * 9, first=8)[1:]]
    assert decide(events, "stopped", limits=LIMITS).go_on


def test_stops_between_failures_do_not_start_their_count_afresh():
    events = attempts(("failed", 0), ("stopped", 0), ("failed", 0), None, ("failed", 0))
    assert not decide(events, "failed", limits=LIMITS).go_on


def test_a_failure_with_progress_is_restarted_after_the_first_wait():
    decision = decide(attempts(("failed", 7)), "failed", limits=LIMITS)
    assert decision.go_on
    assert decision.wait_s == 10


def test_failures_without_progress_wait_twice_as_long_and_end_at_their_limit():
    waits = [decide(attempts(*[("failed", 0)] * n), "failed", limits=LIMITS).wait_s for n in (1, 2)]
    assert waits == [10, 20]
    last = decide(attempts(*[("failed", 0)] * 3), "failed", limits=LIMITS)
    assert not last.go_on
    assert last.reason == (
        "failed 3 times in a row without a newer checkpoint than that of step 0, restart.limit-without-progress is 2"
    )


def test_progress_in_between_starts_the_count_without_progress_afresh():
    events = attempts(("failed", 0), ("failed", 0), ("failed", 8), ("failed", 8), ("failed", 8))
    assert decide(events, "failed", limits=LIMITS).go_on
    assert not decide([*events, *attempts(("failed", 8), first=8)[1:]], "failed", limits=LIMITS).go_on


def test_no_wait_is_longer_than_the_longest():
    limits = RestartConfig(limit=50, limit_without_progress=50, backoff_s=10, longest_backoff_s=35)
    assert decide(attempts(*[("failed", 0)] * 30), "failed", limits=limits).wait_s == 35


def test_failures_with_progress_end_at_their_own_limit():
    events = attempts(*[("failed", step) for step in range(1, 6)])
    assert decide(events, "failed", limits=LIMITS).go_on
    ended = decide(attempts(*[("failed", step) for step in range(1, 7)]), "failed", limits=LIMITS)
    assert not ended.go_on
    assert ended.reason == "failed 6 times, restart.limit is 5"


def test_attempts_that_slurm_killed_are_no_failures():
    assert decide(attempts(None, None, None, ("failed", 0)), "failed", limits=LIMITS).wait_s == 10


def test_attempts_that_end_before_they_start_are_failures_without_progress():
    end = {"event": "end", "outcome": "failed", "step": 4}
    assert decide([{"event": "submit"}, end, end], "failed", limits=LIMITS).wait_s == 20
    assert not decide([{"event": "submit"}, end, end, end], "failed", limits=LIMITS).go_on


def test_a_new_submission_starts_all_counts_afresh():
    events = [*attempts(*[("failed", 0)] * 3), *attempts(("failed", 0))]
    assert decide(events, "failed", limits=LIMITS).go_on


def test_no_restarts_at_all_can_be_asked_for():
    assert not decide(attempts(("failed", 7)), "failed", limits=RestartConfig(limit=0)).go_on


def test_a_refusal_is_not_tried_again_unless_there_was_progress_before_it():
    refused = decide(attempts(("failed", 4), first=4), "failed", limits=LIMITS, refusal="no such window")
    assert not refused.go_on
    assert refused.reason == "refused, and would be again: no such window; correct it, then `resume`"
    assert decide(attempts(("failed", 9), first=4), "failed", limits=LIMITS, refusal="out of memory").go_on
