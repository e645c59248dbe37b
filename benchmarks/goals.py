"""How a benchmark ends: its figures as one JSON line, and exit code 1 where a goal is missed."""

import json
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure and the bound that it must keep."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the figure keeps its bound."""
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


def finish(figures: dict[str, Any], goals: list[Goal], *, check: bool) -> None:
    """Print the figures as one JSON line and exit with 1 where ``check`` is asked for and a goal is missed."""
    for goal in goals:
        bound = f"at least {goal.at_least}" if goal.at_least is not None else f"at most {goal.at_most}"
        sys.stdout.write(f"{'met' if goal.met else 'MISSED'}: {goal.name} is {goal.value:.4g}, goal {bound}\n")
    met = {"goals_met": all(goal.met for goal in goals)} if goals else {}
    sys.stdout.write(json.dumps({**figures, **met}) + "\n")
    sys.stdout.flush()
    if check and not all(goal.met for goal in goals):
        sys.exit(1)


def machine() -> dict[str, Any]:
    """Describe the machine and the versions that figures are measured with."""
    names = ("torch", "timm", "accelerate", "deepspeed", "numpy")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: _version(name) for name in names},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
