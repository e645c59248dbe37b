"""timm's Mlp with less kept for the backward pass.

A quarter of a transformer block's activations is the output of GELU, and computing it again from its input takes under
1 % of a step.
"""

from typing import Any

import torch
from jaxtyping import Float
from timm.layers.mlp import Mlp
from torch import Tensor, nn


def lean_mlp(mlp: Mlp, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
    """Compute ``mlp(x)`` in less memory: the backward pass has its activation's input, and computes the output again.

    torch.compile decides itself what to compute again, and dropout could not be: then it is a plain call.
    """
    plain = torch.compiler.is_compiling() or (mlp.training and mlp.drop1.p > 0) or not isinstance(mlp.norm, nn.Identity)
    if plain or not torch.is_grad_enabled():
        return mlp(x)
    hidden = mlp.fc1(x)
    active = mlp.act(hidden)
    kept, address = hidden.detach(), active.data_ptr()

    def pack(saved: Tensor) -> Any:
        is_active = saved.data_ptr() == address and saved.numel() == kept.numel()
        return saved.shape if is_active else saved

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else mlp.act(kept).view(packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return mlp.drop2(mlp.fc2(active))
