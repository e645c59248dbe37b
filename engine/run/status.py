"""How a run stands, read from its folder by anybody, while it runs or later. Changes nothing. Imports no torch."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from engine.commands import ExistingRun
from engine.documents import json_lines
from engine.errors import UserError
from engine.run.folder import checkpoint_steps, step_folder
from engine.run.lock import describe, find_holder

_TAIL_BYTES = 1 << 18


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The last report of a run, its newest checkpoint and its holder."""

    step: int
    """Steps done at the last report."""
    total_steps: int
    """Length of the run."""
    images_per_s: float
    """Over the last report's interval."""
    seconds_left: float
    """Steps left times the time per step between the last reports."""
    loss: float | None
    """Of the last report."""
    report_age_s: float
    """Seconds since the last report."""
    checkpoint_step: int | None
    """The newest checkpoint's step."""
    checkpoint_age_s: float
    """Seconds since it was complete."""
    holder: str | None
    """Who runs here now; None if nobody does."""


def read_status(run_folder: Path) -> RunStatus:
    """Read how the run in ``run_folder`` stands.

    Raises:
        UserError: it is no run folder.
    """
    if not (run_folder / "config.yaml").exists():
        raise UserError(f"{run_folder} is no run folder: expected config.yaml in it, which a run writes when it starts")
    lines = _last_lines(run_folder / "metrics.jsonl")
    last: dict[str, Any] = lines[-1] if lines else {}
    steps = checkpoint_steps(run_folder / "checkpoints")
    holder = find_holder(run_folder)
    now = time.time()
    return RunStatus(
        step=last.get("step", 0),
        total_steps=last.get("total_steps", 0),
        images_per_s=last.get("images_per_s") or 0.0,
        seconds_left=(last.get("total_steps", 0) - last.get("step", 0)) * _seconds_per_step(lines),
        loss=last.get("loss"),
        report_age_s=now - last.get("time", now),
        checkpoint_step=steps[-1] if steps else None,
        checkpoint_age_s=now - step_folder(run_folder / "checkpoints", steps[-1]).stat().st_mtime if steps else 0.0,
        holder=describe(holder) if holder is not None else None,
    )


def show_status(options: ExistingRun) -> None:
    """Print how a run stands."""
    Console().print(status(options.folder))


def status(run_folder: Path) -> Table:
    """Tell for the terminal how the run in ``run_folder`` stands."""
    run = read_status(run_folder)
    table = Table(title=str(run_folder), show_header=False)
    table.add_row("state", "finished" if run.step and run.step == run.total_steps else _state(run))
    table.add_row("step", f"{run.step} of {run.total_steps}" if run.step else "no report yet")
    if run.step:
        table.add_row("time left", format_seconds(run.seconds_left))
        table.add_row("speed", f"{run.images_per_s:.1f} images/s")
        table.add_row("loss", "none" if run.loss is None else f"{run.loss:.4f}")
        table.add_row("last report", f"{format_seconds(run.report_age_s)} ago")
    if run.checkpoint_step is None:
        table.add_row("last checkpoint", "none yet")
    else:
        table.add_row("last checkpoint", f"step {run.checkpoint_step}, {format_seconds(run.checkpoint_age_s)} ago")
    return table


def format_seconds(seconds: float) -> str:
    """Write a duration as 1 d 02 h, 3 h 04 min, 5 min 06 s or 7 s."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {s:02d} s" if minutes else f"{s} s"


def _state(run: RunStatus) -> str:
    return f"running: {run.holder}" if run.holder else "not running"


def _last_lines(metrics: Path) -> list[dict[str, Any]]:
    """Read the newest whole lines, oldest first; those that are no reports are left out."""
    if not metrics.exists():
        return []
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - _TAIL_BYTES))
        return list(filter(is_report, json_lines(file.read())))


def is_report(line: dict[str, Any]) -> bool:
    """Whether a line of ``metrics.jsonl`` is a report of a run."""
    return all(isinstance(line.get(name), int | float) for name in ("step", "total_steps", "seconds", "time"))


def _seconds_per_step(lines: list[dict[str, Any]]) -> float:
    """Average the time per step over the last reports' own intervals, so that pauses between runs do not count."""
    recent = lines[-10:]
    pairs = zip(lines[-11:-1], recent[-len(lines[-11:-1]) :], strict=True) if len(lines) > 1 else ()
    timed = [(b["step"] - a["step"], b["seconds"]) for a, b in pairs if b["step"] > a["step"]]
    steps = sum(count for count, _ in timed)
    if steps:
        return sum(seconds for _, seconds in timed) / steps
    return lines[-1]["seconds"] / max(lines[-1]["step"], 1) if lines else 0.0
