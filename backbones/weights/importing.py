"""Turn other people's checkpoints into backbone folders, and say what was missing, unexpected, resized or left out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backbones.config import MergeOrder, Naming
from backbones.weights.foreign_files import Source, read_source
from backbones.weights.handoff import (
    check_replaceable,
    fp32,
    input_size,
    is_classifier,
    make_network,
    skeleton,
    stored_skeleton,
    write_backbone,
)
from backbones.weights.key_names import CLASSIFIER, Translated, to_timm
from backbones.weights.pretraining_layouts import infer_beit, infer_twins, is_beit, is_twins
from backbones.weights.resizing import POSITIONS, TABLE, Resized, fit_state
from backbones.weights.stored import check_statistics
from engine.errors import UserError
from engine.terms import Size

_SWIN_NAMES: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2)): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2)): "swin_base_patch4_window7_224",
    (192, (2, 2, 18, 2)): "swin_large_patch4_window7_224",
}
_SECVIT_NAMES: dict[tuple[int, tuple[int, ...]], str] = {
    (64, (2, 2, 9, 2)): "secvit_tiny",
    (64, (3, 4, 18, 4)): "secvit_small",
    (80, (4, 8, 26, 8)): "secvit_base",
    (112, (4, 8, 26, 8)): "secvit_large",
}
_RECOMPUTED: tuple[Naming, ...] = ("greenmim-twins", "simmim-vit")
_SOME_SWIN = "swin_tiny_patch4_window7_224"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of a file's tensors."""

    architecture: str
    model_args: dict[str, Any]
    num_taken: int
    resized: list[Resized]
    assumed_size: Size | None
    """Height and width that the weights are taken to be made for, where neither the file nor the user says it."""
    missing: list[str]
    """Weights of the model that the file lacks; they stay random."""
    unexpected: list[str]
    """Tensors of the file that the model has no place for; they are dropped."""
    left_out: dict[str, list[str]]
    """Tensors left out on purpose, by reason."""


def import_backbone(
    source: Path,
    out: Path,
    *,
    architecture: str | None = None,
    sizes: Mapping[str, Any] | None = None,
    merge_order: MergeOrder = "swin",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    partial: bool = False,
) -> Imported:
    """Write the backbone in ``source`` as the folder ``out``.

    ``architecture`` is timm's name; a Swin's is found from the shapes. ``sizes`` (``img_size``, ``window_size``) other
    than the file's resize its tables. ``partial`` takes what fits instead of refusing a file that lacks weights or has
    others.

    Raises:
        UserError: the file cannot be read or does not fit.
    """
    check_replaceable(out)
    read = read_source(source)
    translated = to_timm(fp32(read.state), merge_order=merge_order)
    # what is wrong with the weights is found by functions that do not know the file: its name is put before their words
    try:
        name, own_args = _architecture_of(read, translated.state, architecture)
        model_args = own_args | {key: value for key, value in (sizes or {}).items() if value is not None}
        model = stored_skeleton(name, {"num_classes": 0, **model_args})
        cfg: Any = model.pretrained_cfg
        # tables that are not square are resized rightly only from a model of the file's own size, where that is known
        same_source = architecture in (None, read.architecture)
        own_model = skeleton(name, num_classes=0, **own_args) if own_args and same_source else None
        state, resized = fit_state(translated.state, model, source=own_model)
        missing, unexpected = _differences(state, model)
        left_out = translated.left_out | _of_the_head(state, model, besides=translated.left_out)
        if (missing or unexpected) and not partial:
            raise UserError(_mismatch(missing, unexpected, name, naming=translated.naming))
        own_mean: Sequence[float] = mean or read.mean or cfg["mean"]
        own_std: Sequence[float] = std or read.std or cfg["std"]
        check_statistics(own_mean, own_std)
        state = _completed(state, missing=missing, unexpected=unexpected, architecture=name, model_args=model_args)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    is_told = "img_size" in (sizes or {}) and (sizes or {})["img_size"] is not None
    assumed = None if is_told or _says_size(read, state) else input_size(model, model_args)
    write_backbone(
        out,
        architecture=name,
        model_args=model_args,
        state=state,
        mean=own_mean,
        std=own_std,
        provenance=_provenance(read, translated, merge_order, resized, missing)
        | ({"img_size": "not known, assumed"} if assumed else {}),
    )
    return Imported(
        architecture=name,
        model_args=model_args,
        num_taken=len(model.state_dict()) - len(missing),
        resized=resized,
        assumed_size=assumed,
        missing=missing,
        unexpected=unexpected,
        left_out=left_out,
    )


def infer_swin(state: Mapping[str, Tensor], *, computed: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Recognise a Swin by its weights' shapes, under timm's names: timm's name of it and its arguments.

    ``computed`` are the file's own names and tensors: buffers there tell the windows of a Swin V2.

    Raises:
        UserError: it is no Swin, or its window cannot be told.
    """
    if "layers.0.blocks.0.attn.qkv.weight" not in state or "patch_embed.proj.weight" not in state:
        raise UserError("cannot tell the architecture from the names of its weights; give --architecture, timm's name")
    depths = tuple(_count(state, rf"layers\.{s}\.blocks\.(\d+)\.") for s in range(_count(state, r"layers\.(\d+)\.")))
    embed_dim, _, patch, _ = state["patch_embed.proj.weight"].shape
    heads, windows = zip(*(_heads_and_window(state, computed, stage) for stage in range(len(depths))), strict=True)
    version2 = "layers.0.blocks.0.attn.logit_scale" in state
    name = "swinv2_tiny_window8_256" if version2 else _SWIN_NAMES.get((embed_dim, depths), _SOME_SWIN)
    side = windows[-1] * patch * 2 ** (len(depths) - 1)  # the last stage is one window
    sizes = {"img_size": (side, side), "window_size": windows[0], "patch_size": patch}
    return name, {**sizes, "embed_dim": embed_dim, "depths": depths, "num_heads": heads}


def infer_secvit(state: Mapping[str, Tensor], *, name: str | None = None) -> tuple[str, dict[str, Any]]:
    """Recognise a SecViT by its weights: its name, unless that is given, and its version.

    Raises:
        UserError: no published SecViT has these widths and depths.
    """
    depths = tuple(_count(state, rf"layers\.{s}\.blocks\.(\d+)\.") for s in range(_count(state, r"layers\.(\d+)\.")))
    embed_dim = state["layers.0.blocks.0.attn.out_proj.weight"].shape[0]
    name = name or _SECVIT_NAMES.get((embed_dim, depths))
    if name is None:
        raise UserError(f"no published SecViT has {embed_dim} channels and depths {depths}; give --architecture")
    version = 2 if "layers.0.blocks.0.ffn.dwconv.weight" in state else 1
    return name, {"version": version}


def _architecture_of(read: Source, state: Mapping[str, Tensor], name: str | None) -> tuple[str, dict[str, Any]]:
    if read.architecture and name in (None, read.architecture):
        return read.architecture, dict(read.model_args or {})
    if name and not name.startswith("secvit"):
        return name, {}
    if "layers.0.blocks.0.attn.out_proj.weight" in state:
        return infer_secvit(state, name=name)
    if name:
        return name, {}
    if is_twins(state):
        return infer_twins(state), {}
    if is_beit(state):
        return infer_beit(state)
    return infer_swin(state, computed=read.state)


def _says_size(read: Source, state: Mapping[str, Tensor]) -> bool:
    """Whether it is known for which images the weights were made: a folder says it, positions and BEiT's tables do."""
    return read.architecture is not None or POSITIONS in state or is_beit(state)


def _heads_and_window(state: Mapping[str, Tensor], computed: Mapping[str, Tensor], stage: int) -> tuple[int, int]:
    block = f"layers.{stage}.blocks.0.attn."
    table, scale = state.get(block + TABLE), state.get(block + "logit_scale")
    if table is not None and len(table) in {(2 * side - 1) ** 2 for side in range(1, 65)}:
        return table.shape[1], (round(len(table) ** 0.5) + 1) // 2
    coords = next((value for name, value in computed.items() if name.endswith(block + "relative_coords_table")), None)
    if scale is None or coords is None:
        raise UserError(
            "cannot tell the window from the shapes of its weights; give --architecture, --window and --img-size"
        )
    return scale.shape[0], (coords.shape[1] + 1) // 2


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(match[1]) for name in state if (match := re.match(pattern, name)))


def _differences(state: Mapping[str, Tensor], model: nn.Module) -> tuple[list[str], list[str]]:
    """Compare names and shapes: what the model has and ``state`` has not, and the reverse; another shape is both."""
    expected = model.state_dict()
    missing = [name for name, value in expected.items() if name not in state or state[name].shape != value.shape]
    unexpected = [
        f"{name} {tuple(value.shape)}"
        for name, value in state.items()
        if not is_classifier(name, model) and (name not in expected or expected[name].shape != value.shape)
    ]
    return missing, unexpected


def _of_the_head(
    state: Mapping[str, Tensor], model: nn.Module, *, besides: dict[str, list[str]]
) -> dict[str, list[str]]:
    """List what is left out for the classifier's sake, ``besides`` included; empty where ``state`` has none of it."""
    names = [name for name in state if is_classifier(name, model)]
    return {CLASSIFIER: [*besides.get(CLASSIFIER, []), *names]} if names else {}


def _completed(
    state: Mapping[str, Tensor],
    *,
    missing: list[str],
    unexpected: list[str],
    architecture: str,
    model_args: Mapping[str, Any],
) -> dict[str, Tensor]:
    dropped = {name.split(" ")[0] for name in unexpected}
    kept = {name: value for name, value in state.items() if name not in dropped}
    if not missing:
        return kept
    fresh = make_network(architecture, {"num_classes": 0, **model_args}).state_dict()
    return kept | {name: fresh[name] for name in missing}


def _mismatch(missing: list[str], unexpected: list[str], architecture: str, *, naming: Naming) -> str:
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    # what had to be recomputed for another architecture is of no use in parts
    partial = ", or --partial to take what fits and leave the rest random" if naming not in _RECOMPUTED else ""
    return f"its weights do not fit {architecture}: {' and '.join(parts)}; give the right --architecture{partial}"


def _provenance(
    read: Source, translated: Translated, merge_order: MergeOrder, resized: list[Resized], missing: list[str]
) -> dict[str, Any]:
    return {
        "imported_from": read.provenance,
        "layout": translated.naming,
        "merge_order": merge_order,
        "resized": list(map(str, resized)),
        "random": missing,
    }
