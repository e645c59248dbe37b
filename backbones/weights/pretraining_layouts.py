"""Pretraining files whose tensors differ from timm's in more than their names: GreenMIM's Twins, SimMIM's ViT.

GreenMIM's Twins computes on sparse tensors. Its strided convolutions have kernels (out, rows, columns, in), where torch
has (out, in, rows, columns), and its positional convolution returns conv(x), where Twins returns conv(x) + x: the same
function has 1 less at the centre of each kernel.

SimMIM's ViT is a BEiT whose blocks share one table of relative position biases; its fine-tuning gives each block a copy
of its own, as timm's BEiT has. It pools after the last norm, timm's BEiT before: the norm is taken as timm's.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from engine.errors import UserError

_STRIDED = re.compile(r"^(patch_embeds\.\d+\.proj|blocks\.\d+\.\d+\.attn\.sr)\.(?:\w+\.)*(weight|bias)$")
_POSITIONAL = re.compile(r"^(pos_block\.\d+\.proj)\.(?:\w+\.)*(weight|bias)$")
_SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
_TWINS_NAMES: dict[tuple[int, tuple[int, ...]], str] = {
    (64, (2, 2, 10, 4)): "twins_svt_small",
    (96, (2, 2, 18, 2)): "twins_svt_base",
    (128, (2, 2, 18, 2)): "twins_svt_large",
}
_BEIT_NAMES: dict[tuple[int, int], str] = {(768, 12): "beit_base_patch16_224", (1024, 24): "beit_large_patch16_224"}


def is_greenmim_twins(state: Mapping[str, Tensor]) -> bool:
    """Whether strided convolutions of a Twins have kernels of sparse convolutions."""
    return any(_is_sparse(value) for name, value in state.items() if _STRIDED.match(name))


def from_greenmim_twins(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a Twins of GreenMIM's the kernels, names and positional residual of timm's."""
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if strided := _STRIDED.match(name):
            dense = value.permute(0, 3, 1, 2).contiguous() if _is_sparse(value) else value
            converted[f"{strided[1]}.{strided[2]}"] = dense
        elif positional := _POSITIONAL.match(name):
            converted[f"{positional[1]}.0.{positional[2]}"] = _without_identity(value)
        else:
            converted[name] = value
    return converted


def infer_twins(state: Mapping[str, Tensor]) -> str:
    """Recognise a Twins-SVT by its weights.

    Raises:
        UserError: no published one has these widths and depths.
    """
    width = len(state["patch_embeds.0.proj.bias"])
    stages = 1 + max(int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name)))
    depths = tuple(_count(state, rf"blocks\.{stage}\.(\d+)\.") for stage in range(stages))
    if (width, depths) not in _TWINS_NAMES:
        raise UserError(f"no published Twins-SVT has {width} channels and depths {depths}; give --architecture")
    return _TWINS_NAMES[width, depths]


def is_twins(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a Twins-SVT."""
    return "patch_embeds.0.proj.bias" in state and "blocks.0.0.attn.qkv.weight" in state


def is_simmim_vit(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a ViT whose blocks share one table of relative position biases."""
    return _SHARED_TABLE in state and "blocks.0.attn.qkv.weight" in state


def from_simmim_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a ViT of SimMIM's the tables and the last norm of timm's BEiT."""
    converted = {re.sub(r"^norm\.", "fc_norm.", name): value for name, value in state.items()}
    table = converted.pop(_SHARED_TABLE)
    for block in range(_count(state, r"blocks\.(\d+)\.")):
        converted[f"blocks.{block}.attn.relative_position_bias_table"] = table.clone()
    return converted


def is_beit(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of timm's BEiT with a table in each block."""
    return "blocks.0.attn.q_bias" in state and "blocks.0.attn.relative_position_bias_table" in state


def infer_beit(state: Mapping[str, Tensor]) -> tuple[str, dict[str, int]]:
    """Recognise a BEiT by its weights: timm's name and the image's side, which the tables tell.

    Raises:
        UserError: no published one has this width and depth.
    """
    width, depth = state["blocks.0.norm1.weight"].shape[0], _count(state, r"blocks\.(\d+)\.")
    if (width, depth) not in _BEIT_NAMES:
        raise UserError(f"no published BEiT has {width} channels and {depth} blocks; give --architecture")
    rows = len(state["blocks.0.attn.relative_position_bias_table"]) - 3  # for the class token's three relations
    side = (round(rows**0.5) + 1) // 2
    return _BEIT_NAMES[width, depth], {"img_size": side * state["patch_embed.proj.weight"].shape[-1]}


def _is_sparse(value: Tensor) -> bool:
    return value.ndim == 4 and value.shape[1] == value.shape[2] != value.shape[3]


def _without_identity(value: Tensor) -> Tensor:
    """Subtract from each kernel the one that returns its input."""
    if value.ndim != 4:
        return value
    value = value.clone()
    value[..., value.shape[-2] // 2, value.shape[-1] // 2] -= 1
    return value


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(match[1]) for name in state if (match := re.match(pattern, name)))
