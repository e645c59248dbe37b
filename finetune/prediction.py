"""What a trained run says about one picture, whatever its task."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.errors import UserError

Picture = npt.NDArray[np.uint8]
LabelImage = npt.NDArray[np.uint8 | np.uint16]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one picture."""

    record: dict[str, Any]
    """JSON values: classes with probabilities, objects, or each class's share of the picture."""
    overlay: Image.Image
    """The answer drawn into the picture."""
    label_map: LabelImage | None = None
    """[height, width]: the class of each pixel, of runs that segment."""
    similarities: Image.Image | None = None
    """Masks of the class queries beside the picture, of runs that segment with SegViT."""


Predictor = Callable[[Picture], Prediction]
"""From an upright RGB picture [height, width, 3]."""
MakePredictor = Callable[[Path, str | None], Predictor]
"""From a run, a checkpoint or best weights, and the name of the weights (raw, ema); None takes raw, or the only ones."""


def pick_weights(found: dict[str, Any], *, asked: str | None, where: Path) -> Any:
    """Return the weights ``asked`` for; None takes raw, or the only ones where there are others.

    Raises:
        UserError: the run has no such weights.
    """
    if asked is None and len(found) == 1:
        return next(iter(found.values()))
    asked = asked or "raw"
    if asked not in found:
        raise UserError(f"{where} has no {asked} weights, only {', '.join(found)}; choose with --weights")
    return found[asked]
