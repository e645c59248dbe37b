"""What the network takes of the micro-batches of one forward pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from backbones.build import layout_spec
from backbones.ops.window_attention import usable_rule
from backbones.visible.layout import LayoutSpec, Rule, build_layout
from backbones.visible.stacking import VisibleStack
from pretrain.config import PretrainConfig
from pretrain.greenmim import GreenMIM
from pretrain.masking import UnitMask, unit_mask


def model_inputs(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the model takes of the micro-batches of one forward pass: of several, a stack."""
    names = ("images", "feature_units", "predicted_units")
    if len(batches) == 1:
        return {name: batches[0][name] for name in (*names, "layout")}
    tensors = {name: torch.stack([batch[name] for batch in batches]) for name in names}
    return {**tensors, "layout": VisibleStack.of([batch["layout"] for batch in batches])}


def random_inputs(config: PretrainConfig, model: GreenMIM, *, masks: Sequence[int], images: int) -> dict[str, Any]:
    """Return what the model takes of micro-batches of so many ``images`` of random pixels, on its device.

    ``masks`` are the numbers of the micro-batches' masks.
    """
    spec, device = layout_spec(model.encoder), next(model.parameters()).device

    def micro_batch(number: int) -> dict[str, Any]:
        mask = unit_mask(spec.units, mask_ratio=config.mim.mask_ratio, seed=0, step=0, micro_batch=number)
        of_mask = mask_inputs(spec, mask, mask.visible_units, rule=usable_rule(config.mim.grouping, device))
        pixels = torch.randint(256, (images, 3, *spec.img_size), dtype=torch.uint8, device=device)
        return {"images": pixels, **{name: x.to(device) for name, x in of_mask.items()}}

    return model_inputs([micro_batch(number) for number in masks])


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
