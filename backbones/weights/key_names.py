"""Names and orders of weights in other people's files, translated to timm's and back.

The published Swin, Swin V2, SimMIM and GreenMIM files share one layout ("microsoft" here): a stage merges 2x2 cells at
its end, timm's at the start of the next one, and the classifier is ``head``, timm's ``head.fc``. Pretraining files wrap
the network in ``encoder.``. Buffers that every model computes itself are dropped.

SecViT's published files ("secvit"): a stage downsamples at its end, 1x1 convolutions where ours are linear layers,
norms and scales with the shapes of maps. For GreenMIM's Twins and SimMIM's ViT see pretraining_layouts.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backbones.config import MergeOrder, Naming
from backbones.weights.pretraining_layouts import (
    from_greenmim_twins,
    from_simmim_vit,
    is_greenmim_twins,
    is_simmim_vit,
)
from engine.errors import UserError

COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask", "angle")
_PRETRAINING = ("mask_token", "decoder")
CLASSIFIER = "the classifier"
_CLASSIFIERS = ("head", "head.fc", "head_dist")


@dataclass(frozen=True, kw_only=True)
class Translated:
    """Weights under timm's names, and what of the file they are not."""

    state: dict[str, Tensor]
    naming: Naming
    left_out: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Names by the reason for which they were left out."""


def to_timm(
    state: Mapping[str, Tensor], *, merge_order: MergeOrder = "swin", keep_classifier: bool = False
) -> Translated:
    """Translate the encoder's weights to timm's names, and note what is left out."""
    left_out: dict[str, list[str]] = {}
    kept: dict[str, Tensor] = {}
    for name, value in _unwrapped(state).items():
        reason = _reason_to_leave_out(name)
        if reason and not (keep_classifier and reason == CLASSIFIER):
            left_out.setdefault(reason, []).append(name)
        else:
            kept[name.removeprefix("encoder.")] = value
    naming = _naming_of(kept)
    if naming == "microsoft":
        kept = {_moved_downsample(re.sub(r"^head\.", "head.fc.", name), by=1): value for name, value in kept.items()}
    elif naming == "secvit":
        kept = {_moved_downsample(_bare_norm(name), by=1): _linear(value) for name, value in kept.items()}
    elif naming == "greenmim-twins":
        kept = from_greenmim_twins(kept)
    elif naming == "simmim-vit":
        kept = from_simmim_vit(kept)
    if merge_order == "official-2022" and naming != "secvit":
        kept = {name: _swap_merged_blocks(name, value) for name, value in kept.items()}
    return Translated(state=kept, naming=naming, left_out=left_out)


def to_microsoft(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a timm Swin's or Swin V2's weights to the names of microsoft's code, without computed buffers.

    Raises:
        UserError: they belong to another architecture.
    """
    own = "layers.0.blocks.0.attn.proj.weight"
    if own not in state:
        raise UserError(f"microsoft's layout exists for Swin and Swin V2 only, these weights have no {own}")
    return {_moved_downsample(name, by=-1).replace("head.fc.", "head."): value for name, value in state.items()}


def _naming_of(state: Mapping[str, Tensor]) -> Naming:
    if "layers.0.blocks.0.norm1.norm.weight" in state:
        return "secvit"
    if is_greenmim_twins(state):
        return "greenmim-twins"
    if is_simmim_vit(state):
        return "simmim-vit"
    return "microsoft" if any(name.startswith("layers.0.downsample.") for name in state) else "timm"


def _bare_norm(name: str) -> str:
    """Drop from SecViT's name of a norm the wrapper that turns maps for it."""
    return re.sub(r"\.(norm[12])\.norm\.", r".\1.", name)


def _linear(value: Tensor) -> Tensor:
    """Reshape for linear layers: a 1x1 convolution to a matrix, a map's scale [1 c 1 1] to a vector, others stay."""
    if value.ndim != 4 or value.shape[2:] != (1, 1):
        return value
    return value.flatten() if value.shape[0] == 1 else value.flatten(1)


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip the prefixes that wrappers of the whole model leave on every name."""
    unwrapped = dict(state)
    for prefix in ("module.", "_orig_mod.", "model."):
        if unwrapped and all(name.startswith(prefix) for name in unwrapped):
            unwrapped = {name.removeprefix(prefix): value for name, value in unwrapped.items()}
    return unwrapped


def _reason_to_leave_out(name: str) -> str | None:
    inner = name.removeprefix("encoder.")
    if inner.rpartition(".")[2] in COMPUTED:
        return "computed by every model"
    if inner.startswith(_PRETRAINING):
        return "of pretraining only"
    if inner.rpartition(".")[0] in _CLASSIFIERS:
        return CLASSIFIER
    return None


def _moved_downsample(name: str, *, by: int) -> str:
    return re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + by}.downsample.", name)


def _swap_merged_blocks(name: str, value: Tensor) -> Tensor:
    """Turn the row-by-row order of the four merged cells into Swin's, which goes down the columns."""
    if not re.match(r"layers\.\d+\.downsample\.(norm\.(weight|bias)|reduction\.weight)$", name):
        return value
    top_left, top_right, bottom_left, bottom_right = value.chunk(4, dim=-1)
    return torch.cat([top_left, bottom_left, top_right, bottom_right], dim=-1)
