"""What a file says of a network, judged before timm makes one of it: folders and checkpoints come from anywhere.

Beside a network's sizes timm's ``create_model`` takes arguments with which it downloads files and unpickles them, and
sizes that no memory holds. What is stored of a network is sizes, as JSON has them, within bounds.
"""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from timm.models import build_model_with_cfg

from engine.errors import UserError

MOST_BLOCKS = 1000
"""Of a network, all stages together; timm's deepest have about 200."""
LARGEST = 2**20
"""No number among a network's arguments is larger."""
LONGEST = 1000
"""No list or text among them is longer."""
DEEPEST = 4
"""Levels of lists in lists."""
LARGEST_SIDE = 2**16
"""No image is higher or wider, in pixels."""
_BLOCKS = re.compile(r"depths?|(num_)?(layers|blocks)")


def check_model_args(model_args: Mapping[str, Any]) -> None:
    """Refuse arguments that are no sizes of a network.

    Raises:
        UserError: one of them would load other files, or is out of bounds; the message names it.
    """
    loading = _loading_arguments()
    for name, value in model_args.items():
        if name in loading:
            raise UserError(
                f"the argument {name!r} would make timm load or run other things than the network: expected its sizes "
                "alone; take it out of model_args if you know where the file comes from"
            )
        _check_value(name, value, level=0)
        if _BLOCKS.fullmatch(name) and (blocks := sum(_whole_numbers(value))) > MOST_BLOCKS:
            raise UserError(f"{name} {value!r:.60} makes {blocks} blocks, expected at most {MOST_BLOCKS}")


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse means and deviations that no pixels in [0, 1] have.

    Raises:
        UserError: says what came.
    """
    if len(mean) != 3 or len(std) != 3:
        raise UserError(f"expected mean and std of three channels, got {list(mean)} and {list(std)}")
    if not all(math.isfinite(value) and abs(value) <= 256 for value in mean):
        raise UserError(f"mean {list(mean)} is none of pixels in [0, 1]")
    if not all(math.isfinite(value) and 0 < value <= 256 for value in std):
        raise UserError(f"std {list(std)} is none of pixels in [0, 1]: expected numbers above 0")


def check_size(size: Sequence[int], *, name: str) -> None:
    """Refuse heights and widths that no image has.

    Raises:
        UserError: says what came.
    """
    if not all(1 <= side <= LARGEST_SIDE for side in size):
        raise UserError(f"{name} {list(size)} is no size of images in pixels, from 1 to {LARGEST_SIDE}")


def _loading_arguments() -> frozenset[str]:
    """Name the arguments that timm keeps for itself, whatever the network: all that its functions spell out."""
    functions = (timm.create_model, build_model_with_cfg)
    return frozenset(
        parameter.name
        for function in functions
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    )


def _check_value(name: str, value: Any, *, level: int) -> None:
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= LARGEST):
        raise UserError(f"{name} {value!r:.60} is out of bounds: expected at most {LARGEST}")
    if isinstance(value, str | list | tuple | Mapping) and len(value) > LONGEST:
        raise UserError(f"{name} has {len(value)} entries, expected at most {LONGEST}")
    if isinstance(value, list | tuple | Mapping):
        if level == DEEPEST:
            raise UserError(f"{name} is nested too deeply")
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_value(name, item, level=level + 1)


def _whole_numbers(value: Any) -> list[int]:
    if isinstance(value, list | tuple):
        return [number for item in value for number in _whole_numbers(item)]
    return [value] if isinstance(value, int) else []
