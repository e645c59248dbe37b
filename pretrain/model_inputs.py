"""What the network takes of the micro-batches of one forward pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from backbones.stacking import VisibleStack
from backbones.visible import LayoutSpec, Rule, build_layout
from pretrain.masking import UnitMask


def model_inputs(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the model takes of the micro-batches of one forward pass: of several, a stack."""
    names = ("images", "feature_units", "predicted_units")
    if len(batches) == 1:
        return {name: batches[0][name] for name in (*names, "layout")}
    tensors = {name: torch.stack([batch[name] for batch in batches]) for name in names}
    return {**tensors, "layout": VisibleStack.of([batch["layout"] for batch in batches])}


def mask_inputs(
    spec: LayoutSpec, mask: UnitMask, feature_units: np.ndarray, *, rule: Rule = "optimal"
) -> dict[str, Any]:
    """Return all that a mask means for the network: its visible layout and the tensors of its units."""
    return {**mask_tensors(mask, feature_units), "layout": build_layout(spec, mask.visible, rule=rule)}


def mask_tensors(mask: UnitMask, feature_units: np.ndarray) -> dict[str, torch.Tensor]:
    """Return the mask's unit lists as the tensors that the model takes."""
    return {
        "feature_units": torch.from_numpy(feature_units.astype(np.int64)),
        "predicted_units": torch.from_numpy(mask.predicted_units.astype(np.int64)),
    }
