"""Recomputes as many blocks as a budget for activations asks for, chosen from what they are measured to cost here.

Bytes and operations are a constant and a part per image, so two passes of a few images give those of a micro-batch.
They also differ by some percent from mask to mask, with the groups of windows. So the masks that have the largest
groups in a stage are measured, the largest numbers of all count, and a part of the budget is not planned with.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from backbones.build import layout_spec
from backbones.ops.window_attention import usable_rule
from backbones.recompute.blocks import recompute_blocks
from backbones.recompute.choice import Choice, choose, least_budget
from backbones.recompute.costs import ForwardCost, joined, measure_blocks
from backbones.visible.layout import build_layout, num_indices
from engine.distributed.engine import Engine
from engine.errors import UserError
from pretrain.batches.masking import unit_mask
from pretrain.config import PretrainConfig
from pretrain.model.greenmim import GreenMIM
from pretrain.model.model_inputs import random_inputs

logger = logging.getLogger(__name__)

FEW = 2
"""Images of the smaller pass that is measured; BatchNorm cannot be trained on one."""
MASKS = 64
"""Masks whose layouts are compared to find those that are measured."""
MARGIN = 0.02
"""Share of the budget that is left for masks with yet larger groups."""
GIB = 2**30
Precision = Callable[[], AbstractContextManager[Any]]
"""Gives the context of a forward pass."""


class BudgetError(UserError):
    """Whatever is recomputed, activations take more than they may."""


def keep_to_budget(config: PretrainConfig, model: GreenMIM, *, engine: Engine) -> None:
    """Recompute blocks of ``model`` as the recipe asks, the same on every process, and log the cost (collective).

    Raises:
        BudgetError: the budget is too small.
    """
    if config.mim.activation_gib is None:
        return
    cost = forward_cost(config, engine.place(model), precision=engine.autocast)
    choice = engine.broadcast_object(choose_blocks(config, cost))
    recompute_blocks(model, choice.recomputed)
    logger.info("%s", _summary(config, cost, choice))


def forward_cost(config: PretrainConfig, model: GreenMIM, *, precision: Precision) -> ForwardCost:
    """Measure one forward pass of the recipe's micro-batches, in training."""
    images = config.data.micro_batch_size

    def measured(mask: int, size: int) -> ForwardCost:
        inputs = random_inputs(config, model, masks=[mask] * config.mim.micro_batches_per_forward, images=size)
        with precision():
            return measure_blocks(model, lambda: model(**inputs))

    def of_mask(mask: int) -> ForwardCost:
        if images <= FEW:
            return measured(mask, images)
        each = [measured(mask, FEW), measured(mask, FEW + 1)]
        return joined(each, lambda values: values[0] + (images - FEW) * (values[1] - values[0]))

    with _as_it_was(model):
        return joined([of_mask(mask) for mask in _largest_masks(config, model)], max)


def _largest_masks(config: PretrainConfig, model: GreenMIM) -> list[int]:
    """Find the masks, of the first ``MASKS``, that have the largest layout of some stage."""
    spec, mim = layout_spec(model.encoder), config.mim
    masks = [unit_mask(spec.units, mask_ratio=mim.mask_ratio, seed=0, step=0, micro_batch=i) for i in range(MASKS)]
    rule = usable_rule(mim.grouping, next(model.parameters()).device)
    layouts = [build_layout(spec, mask.visible, rule=rule) for mask in masks]
    sizes = zip(*([num_indices(stage) for stage in layout.stages] for layout in layouts), strict=True)
    return sorted({of_stage.index(max(of_stage)) for of_stage in sizes})


@contextlib.contextmanager
def _as_it_was(model: GreenMIM) -> Iterator[None]:
    """Put batch statistics and the state of random numbers back at the end."""
    device = next(model.parameters()).device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def choose_blocks(config: PretrainConfig, cost: ForwardCost) -> Choice:
    """Choose what to recompute.

    Raises:
        BudgetError: the budget is too small.
    """
    assert config.mim.activation_gib is not None
    choice = choose(cost, budget=int(config.mim.activation_gib * GIB * (1 - MARGIN)))
    if choice is None:
        raise BudgetError(
            f"mim.activation-gib must be at least {_rounded_up(least_budget(cost) / (1 - MARGIN))} for "
            f"{_forward_pass(config)}, which keeps so much however many blocks are recomputed, got "
            f"{config.mim.activation_gib}; allow more, or make data.micro-batch-size or mim.micro-batches-per-forward "
            "smaller"
        )
    return choice


def _summary(config: PretrainConfig, cost: ForwardCost, choice: Choice) -> str:
    return (
        f"activations: {_forward_pass(config)} keeps {choice.kept / GIB:.3g} GiB instead of {cost.bytes / GIB:.3g}, "
        f"and at most {choice.peak / GIB:.3g} with a block that is recomputed (mim.activation-gib "
        f"{config.mim.activation_gib:g}); "
        f"{len(choice.recomputed)} of {len(cost.blocks)} blocks are recomputed, "
        f"{choice.flops / max(cost.flops, 1):.1%} of its operations"
    )


def _forward_pass(config: PretrainConfig) -> str:
    stack, images = config.mim.micro_batches_per_forward, config.data.micro_batch_size
    return f"a forward pass of {f'{stack} x ' if stack > 1 else ''}{images} images"


def _rounded_up(size: float) -> str:
    """Write bytes as GiB with four digits after the point, rounded up."""
    return f"{math.ceil(size / GIB * 10_000) / 10_000:g}"
