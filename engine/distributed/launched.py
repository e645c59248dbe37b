"""What the launcher of several processes says of them in the environment: all of it, or nothing. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.errors import UserError
from engine.recipe import LAUNCHER_VARIABLES

_NUMBERS = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
"""Whole numbers that launchers set, and the least that each may be: that of a process that is alone, too."""
LARGEST_PORT = 65_535


@dataclass(frozen=True, kw_only=True)
class Launched:
    """Where this process stands among those of its launcher."""

    rank: int
    """Its number, from 0."""
    world_size: int
    """How many there are."""
    meeting_place: str
    """Host and port where they meet."""


def read_launched(environment: Mapping[str, str]) -> Launched | None:
    """Read where this process stands; None where no launcher started it, whatever address it knows.

    Raises:
        UserError: some of what it must know is missing, or is nonsense; the message names it.
    """
    given = {name: environment[name] for name in LAUNCHER_VARIABLES if environment.get(name)}
    if not {"RANK", "WORLD_SIZE"} & given.keys():
        return None
    missing = [name for name in LAUNCHER_VARIABLES if name not in given]
    advice = (
        "a launcher (`accelerate launch`, `torchrun`) sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; for one "
        f"process without: unset {' '.join(given)}"
    )
    values = ", ".join(f"{name}={value}" for name, value in given.items())
    if missing:
        raise UserError(f"the environment has {values}, but not {' and '.join(missing)}: {advice}")
    numbers = {name: _number(name, environment, advice=advice) for name in _NUMBERS if environment.get(name)}
    if numbers["RANK"] >= numbers["WORLD_SIZE"] or numbers["MASTER_PORT"] > LARGEST_PORT:
        raise UserError(
            f"the environment has {values}: expected a RANK below WORLD_SIZE and a port of at most {LARGEST_PORT}; "
            f"{advice}"
        )
    return Launched(
        rank=numbers["RANK"],
        world_size=numbers["WORLD_SIZE"],
        meeting_place=f"{given['MASTER_ADDR']}:{given['MASTER_PORT']}",
    )


def local_number(name: Literal["LOCAL_RANK", "LOCAL_WORLD_SIZE"], environment: Mapping[str, str]) -> int:
    """Read where this process stands on its node; unset or empty, it is that of one that is alone there.

    Raises:
        UserError: it is nonsense.
    """
    if not environment.get(name):
        return _NUMBERS[name]
    return _number(name, environment, advice=f"unset {name}, or start with a launcher")


def _number(name: str, environment: Mapping[str, str], *, advice: str) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdecimal()) or int(text) < _NUMBERS[name]:
        raise UserError(
            f"the environment has {name}={text}, expected a whole number of at least {_NUMBERS[name]}: {advice}"
        )
    return int(text)
