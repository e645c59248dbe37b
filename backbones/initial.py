"""First weights for masked image modelling."""

from timm.layers.weight_init import trunc_normal_
from torch import nn


def init_mim(model: nn.Module) -> None:
    """Set the weights of ``model`` as GreenMIM and MAE do, in place, from torch's generator.

    Linear and convolution weights Xavier-uniform (a convolution seen as a matrix), biases 0, norms 1 and 0, relative
    position bias tables normal with deviation 0.02. Swin V2's norms after its branches start at 0, as in timm: every
    branch then starts as nothing.
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
    for module in model.modules():
        if hasattr(module, "_init_respostnorm"):
            module._init_respostnorm()  # pyright: ignore[reportCallIssue]
