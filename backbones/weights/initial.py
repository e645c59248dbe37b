"""First weights for masked image modelling."""

from typing import Any

import torch
from timm.layers.weight_init import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from backbones.ops.positions import sine_cosine_position


def init_mim(model: nn.Module) -> None:
    """Set the weights of ``model`` as GreenMIM and MAE do, in place, from torch's generator.

    Linear and convolution weights Xavier-uniform (a convolution seen as a matrix), biases 0, norms 1 and 0, relative
    position bias tables normal with deviation 0.02. Swin V2's norms after its branches start at 0, as in timm: every
    branch then starts as nothing. A ViT's positions start as MAE's sines and cosines (which MAE keeps; here they learn).
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
    if isinstance(model, VisionTransformer):
        _init_vit(model)


@torch.no_grad()
def _init_vit(model: Any) -> None:
    """Set the positions to 0 for tokens before the patches and to sines and cosines for these; those tokens normal 0.02."""
    for token in (model.cls_token, model.reg_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)
    if model.pos_embed is not None:
        patches = sine_cosine_position(model.patch_embed.grid_size, model.embed_dim)
        before = model.pos_embed.shape[1] - patches.shape[1]
        model.pos_embed.copy_(torch.cat([patches.new_zeros(1, before, model.embed_dim), patches], dim=1))
