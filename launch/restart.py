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


def decide(events: Sequence[dict[str, Any]], outcome: Outcome, *, limits: RestartConfig) -> Decision:
    """Return what follows the attempt that has just ended with ``outcome``.

    ``events`` hold one `start` with its newest checkpoint's `step` per attempt, and an `end` with `step` and `outcome` for
    each that ended by itself, the one just ended included.
    """
    match outcome:
        case "finished":
            return Decision(go_on=False, wait_s=0, reason="the run is finished")
        case "ended by the user":
            return Decision(go_on=False, wait_s=0, reason="ended as asked; `resume` goes on")
        case "stopped":
            return Decision(go_on=True, wait_s=0, reason="stopped by the scheduler, not finished")
        case "failed":
            return _after_failure(events, limits=limits)


def _after_failure(events: Sequence[dict[str, Any]], *, limits: RestartConfig) -> Decision:
    attempts = _attempts(events)
    failures = sum(end["outcome"] == "failed" for _, end in attempts)
    idle = 0
    for start, end in reversed(attempts):
        if end["outcome"] != "failed" or end["step"] > start["step"]:
            break
        idle += 1
    if failures > limits.limit:
        return Decision(go_on=False, wait_s=0, reason=f"failed {failures} times, restart.limit is {limits.limit}")
    if idle > limits.limit_without_progress:
        reason = f"failed {idle} times in a row without a newer checkpoint than that of step {attempts[-1][1]['step']}"
        return Decision(
            go_on=False, wait_s=0, reason=f"{reason}, restart.limit-without-progress is {limits.limit_without_progress}"
        )
    wait_s = min(limits.backoff_s * 2 ** max(0, idle - 1), limits.longest_backoff_s)
    return Decision(
        go_on=True, wait_s=wait_s, reason=f"failed, restart {failures} of at most {limits.limit} in {wait_s} s"
    )


def _attempts(events: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return start and end of the attempts since the last submission that ended by themselves; killed ones have no end."""
    attempts: list[tuple[dict[str, Any], dict[str, Any]]] = []
    start: dict[str, Any] | None = None
    for event in events:
        match event["event"]:
            case "submit":
                attempts, start = [], None
            case "start":
                start = event
            case "end":
                attempts.append((start or event, event))  # one that ended before it started has brought no progress
                start = None
            case _:
                pass
    return attempts
