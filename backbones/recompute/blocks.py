"""How a block runs in training: it keeps what its backward pass needs, or its inputs only, and is computed again then.

Every block that can be computed again runs through ``run_block``. Those with BatchNorm do not: their statistics would
move twice. What is drawn in a block (dropout, drop path) is drawn again alike, so recomputing changes no bit of a
gradient.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Forward = Callable[..., Tensor]
"""``(block, *args)`` -> the block's output."""
Way = Callable[..., Tensor]
"""``(block, *args, forward, lean)`` -> the block's output.

A block's attribute ``way``, where it has one, is how it runs.
"""


def call(block: nn.Module, *args: Any) -> Tensor:
    """Run a block as its own module does: the ``forward`` of blocks that need no other."""
    return block(*args)


def run_block(
    block: nn.Module, *args: Any, forward: Forward = call, lean: Forward | None = None, recompute: bool = False
) -> Tensor:
    """Run ``forward(block, *args)`` in the block's ``way`` if it has one, else recomputed if ``recompute``.

    ``lean`` gives the same and keeps less, by means that do not go together with recomputing.
    """
    lean = lean or forward
    if not torch.is_grad_enabled():
        return lean(block, *args)
    way: Way = getattr(block, "way", recomputed if recompute else kept)
    return way(block, *args, forward=forward, lean=lean)


def kept(block: nn.Module, *args: Any, forward: Forward, lean: Forward) -> Tensor:
    """Run a block and keep what its backward pass needs."""
    del forward
    return lean(block, *args)


def recomputed(block: nn.Module, *args: Any, forward: Forward, lean: Forward) -> Tensor:
    """Run a block and keep its inputs only; the backward pass runs it again."""
    del lean
    return checkpoint(forward, block, *args, use_reentrant=False)  # pyright: ignore[reportReturnType]


def recompute_blocks(model: nn.Module, names: Collection[str]) -> None:
    """Have the blocks of ``model`` with these names recomputed from now on, and no other."""
    for name, module in model.named_modules():
        if name in names:
            set_way(module, recomputed)
        else:
            set_way(module, None)


def set_way(module: nn.Module, way: Way | None) -> None:
    """Say how a block runs; None leaves it to who calls it."""
    if way is not None:
        module.__dict__["way"] = way
    else:
        module.__dict__.pop("way", None)
