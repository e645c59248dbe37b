"""What follows an attempt to run a job: a pure decision from the events so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launch.config import RestartConfig

Outcome = Literal["finished", "stopped", "failed", "ended by the user"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether to go on, when, and why."""

    go_on: bool
    """Run the job again."""
    wait_s: int
    """Seconds to wait before."""
    reason: str
    """For the log and the events."""


def decide(
    events: Sequence[dict[str, Any]], outcome: Outcome, *, limits: RestartConfig, refusal: str | None = None
) -> Decision:
    """Decide what follows the attempt that has just ended with ``outcome``.

    ``refusal`` is why its program refused to go on: the same would come again, unless there was progress in between, as
    where memory ran out on the way.

    ``events`` hold one `start` with its newest checkpoint's `step` per attempt, and an `end` with `step` and `outcome`
    for each that was not killed, the one just ended included.
    """
    match outcome:
        case "finished":
            return Decision(go_on=False, wait_s=0, reason="the run is finished")
        case "ended by the user":
            return Decision(go_on=False, wait_s=0, reason="ended as asked; `resume` goes on")
        case "stopped":
            idle = _idle(_attempts(events))
            return _give_up(idle, limits=limits) or Decision(
                go_on=True, wait_s=0, reason="stopped by the scheduler, not finished"
            )
        case "failed":
            attempts = _attempts(events)
            if refusal is not None and attempts[-1].last <= attempts[-1].first:
                reason = f"refused, and would be again: {refusal}; correct it, then `resume`"
                return Decision(go_on=False, wait_s=0, reason=reason)
            return _after_failure(_attempts(events), limits=limits)


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    outcome: str
    """How it ended; `killed` where nothing was written of its end."""
    first: int
    """Step of the newest checkpoint when it started."""
    last: int
    """The same when it ended."""


def _after_failure(attempts: Sequence[_Attempt], *, limits: RestartConfig) -> Decision:
    idle = _idle(attempts)
    failures, idle_failures = (sum(attempt.outcome == "failed" for attempt in some) for some in (attempts, idle))
    if failures > limits.limit:
        return Decision(go_on=False, wait_s=0, reason=f"failed {failures} times, restart.limit is {limits.limit}")
    if idle_failures > limits.limit_without_progress:
        reason = f"failed {idle_failures} times in a row without a newer checkpoint than that of step {idle[-1].last}"
        return Decision(
            go_on=False, wait_s=0, reason=f"{reason}, restart.limit-without-progress is {limits.limit_without_progress}"
        )
    wait_s = min(limits.backoff_s * 2 ** max(0, idle_failures - 1), limits.longest_backoff_s)
    return _give_up(idle, limits=limits) or Decision(
        go_on=True, wait_s=wait_s, reason=f"failed, restart {failures} of at most {limits.limit} in {wait_s} s"
    )


def _give_up(idle: Sequence[_Attempt], *, limits: RestartConfig) -> Decision | None:
    """The decision to end where attempts were stopped or killed too often without progress; else None."""
    stopped = sum(attempt.outcome != "failed" for attempt in idle)
    if stopped <= limits.limit_stopped_without_progress:
        return None
    return Decision(
        go_on=False,
        wait_s=0,
        reason=f"stopped {stopped} times in a row without a newer checkpoint than that of step {idle[-1].last}, "
        f"restart.limit-stopped-without-progress is {limits.limit_stopped_without_progress}: save more often "
        f"(--run.save-every-steps), or give a longer --cluster.warning-s, then `resume`",
    )


def _idle(attempts: Sequence[_Attempt]) -> Sequence[_Attempt]:
    """The newest attempts, as many as brought no newer checkpoint."""
    progress = [number for number, attempt in enumerate(attempts, start=1) if attempt.last > attempt.first]
    return attempts[max(progress, default=0) :]


def _attempts(events: Sequence[dict[str, Any]]) -> list[_Attempt]:
    """The attempts since the last submission; one that was killed, as with its node, has no end but the next start."""
    attempts: list[_Attempt] = []
    start: dict[str, Any] | None = None
    for event in events:
        match event["event"]:
            case "submit":
                attempts, start = [], None
            case "start":
                if start is not None:
                    attempts.append(_Attempt(outcome="killed", first=start["step"], last=event["step"]))
                start = event
            case "end":
                first = (start or event)["step"]  # one that ended before it started has brought no progress
                attempts.append(_Attempt(outcome=event["outcome"], first=first, last=event["step"]))
                start = None
            case _:
                pass
    return attempts
