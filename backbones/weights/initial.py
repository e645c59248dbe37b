"""First weights for masked image modelling."""

from collections.abc import Callable
from typing import Any

from timm.layers.weight_init import trunc_normal_
from torch import nn


def init_mim(model: nn.Module, *, special: Callable[[Any], None] | None = None) -> None:
    """Set the weights of ``model`` as GreenMIM and MAE do, in place, from torch's generator.

    Linear and convolution weights Xavier-uniform (a convolution seen as a matrix), biases 0, norms 1 and 0, relative
    position bias tables normal with deviation 0.02. ``special`` then sets what a backbone sets otherwise.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            trunc_normal_(parameter, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1).detach())  # a view: set in place
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if special is not None:
        special(model)
