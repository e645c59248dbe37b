"""What the network takes of the micro-batches of one forward pass."""

from collections.abc import Sequence
from typing import Any

import torch

from backbones.build import layout_spec
from backbones.ops.window_attention import usable_rule
from backbones.visible.stacking import VisibleStack
from pretrain.batches.mask_inputs import mask_inputs
from pretrain.batches.masking import unit_mask
from pretrain.config import PretrainConfig
from pretrain.model.greenmim import GreenMIM


def model_inputs(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join what the model takes of the micro-batches of one forward pass: of several, a stack."""
    names = ("images", "feature_units", "predicted_units")
    if len(batches) == 1:
        return {name: batches[0][name] for name in (*names, "layout")}
    tensors = {name: torch.stack([batch[name] for batch in batches]) for name in names}
    return {**tensors, "layout": VisibleStack.of([batch["layout"] for batch in batches])}


def random_inputs(config: PretrainConfig, model: GreenMIM, *, masks: Sequence[int], images: int) -> dict[str, Any]:
    """Make inputs of random pixels on the model's device, to measure what a pass costs.

    Args:
        config: the recipe, for its masks.
        model: the network that will take them.
        masks: numbers of the micro-batches' masks, one micro-batch each.
        images: images of a micro-batch.
    """
    spec, device = layout_spec(model.encoder), next(model.parameters()).device

    def micro_batch(number: int) -> dict[str, Any]:
        mask = unit_mask(spec.units, mask_ratio=config.mim.mask_ratio, seed=0, step=0, micro_batch=number)
        of_mask = mask_inputs(spec, mask, mask.visible_units, rule=usable_rule(config.mim.grouping, device))
        pixels = torch.randint(256, (images, 3, *spec.img_size), dtype=torch.uint8, device=device)
        return {"images": pixels, **{name: x.to(device) for name, x in of_mask.items()}}

    return model_inputs([micro_batch(number) for number in masks])
