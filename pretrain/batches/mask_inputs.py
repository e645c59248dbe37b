"""What a mask means for the network: the tensors of its units and the visible layout. Imports no network.

Legend: k visible units, p predicted units.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from backbones.visible.layout import LayoutSpec, Rule, build_layout
from pretrain.batches.masking import UnitMask


def mask_inputs(
    spec: LayoutSpec, mask: UnitMask, feature_units: Int[np.ndarray, " k"], *, rule: Rule = "optimal"
) -> dict[str, Any]:
    """Build all that the network needs of a mask: its visible layout and the tensors of its units."""
    return {**mask_tensors(mask, feature_units), "layout": build_layout(spec, mask.visible, rule=rule)}


def mask_tensors(mask: UnitMask, feature_units: Int[np.ndarray, " k"]) -> dict[str, Tensor]:
    """Put the mask's lists of units into the tensors that the model takes: ``k`` features and ``p`` predictions."""
    return {
        "feature_units": torch.from_numpy(feature_units.astype(np.int64)),
        "predicted_units": torch.from_numpy(mask.predicted_units.astype(np.int64)),
    }
