"""Checks of the sizes and options of a network, and how a config's sizes become timm's arguments."""

from collections.abc import Iterable, Sequence
from typing import Any

from engine.errors import UserError

NUM_STAGES = 4


def check_stages(**sizes: Sequence[int]) -> None:
    """Refuse sizes that are not given for four stages, or are below 1.

    Raises:
        UserError: they are such; names them.
    """
    for name, values in sizes.items():
        if len(values) != NUM_STAGES or min(values) < 1:
            raise UserError(f"{name} takes {NUM_STAGES} numbers from 1 on, one for each stage, got {tuple(values)}")


def check_choice(choices: Iterable[object], **options: object) -> None:
    """Refuse options with a value that is none of the ``choices``.

    Raises:
        UserError: they are such; names them and the choices.
    """
    values = list(choices)
    for name, value in options.items():
        if value not in values:
            raise UserError(f"{name} is {' or '.join(map(repr, values))}, got {value!r}")


def refuse_size(sizes: dict[str, Any], key: str, *, family: str) -> None:
    """Refuse a config's size ``key`` for a ``family`` that has no such size.

    Raises:
        UserError: it is given.
    """
    if key in sizes:
        option = {"window_size": "window"}.get(key, key.replace("_", "-"))
        raise UserError(f"backbone.{option}: {family} has no such size, got {sizes[key]}; leave it out")


def check_lengths(sizes: dict[str, Any], *, family: str) -> None:
    """Refuse a config's sizes that are not given for each of the four stages of a ``family``.

    Raises:
        UserError: they are such; names them.
    """
    for key in ("depths", "num_heads"):
        if key in sizes and len(sizes[key]) != NUM_STAGES:
            raise UserError(
                f"backbone.{key.replace('_', '-')}: {family} has {NUM_STAGES} stages, so {NUM_STAGES} numbers are "
                f"expected, got {len(sizes[key])}: {sizes[key]}"
            )


def doubled(width: int) -> tuple[int, ...]:
    """Give the widths of four stages that double from one to the next."""
    return tuple(width * 2**stage for stage in range(NUM_STAGES))
