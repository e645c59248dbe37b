"""What there is to choose from: backbones by name, with counted sizes, strides and ways to be pretrained."""

from dataclasses import fields
from typing import Any

import timm
from rich.console import Console
from rich.table import Column, Table
from torch import nn

from backbones.build import layout_spec, pretrainable
from backbones.visible.layout import LayoutSpec
from backbones.weights.handoff import skeleton
from backbones.weights.model_size import ModelSize, made_for, measure
from engine.errors import UserError
from engine.terms import Size

SHOWN = (
    "swin_*_patch4_window7_224",
    "swinv2_*_window8_256",
    "secvit_*",
    "sec_*",
    "xformer",
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "vit_large_patch16_224",
    "vit_huge_patch14_224",
    "twins_svt_*",
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
    "convnext_large",
)
"""Patterns of the names that are listed when none is asked for."""


def print_list(pattern: str | None) -> None:
    """Print one row for each architecture that can be pretrained and whose name matches.

    Raises:
        UserError: no name matches.
    """
    names = (
        [name for known in SHOWN for name in timm.list_models(known)] if pattern is None else timm.list_models(pattern)
    )
    if not names:
        raise UserError(f"none of timm's names matches {pattern!r}; * stands for any letters, as in 'swin*'")
    columns = (Column("timm name", no_wrap=True), "params", "MACs", "px", "strides", "mask unit", "ways")
    table = Table(*columns, title="can be pretrained")
    for name in names:
        model = skeleton(name)
        spec = _spec(model)
        if isinstance(spec, LayoutSpec):
            table.add_row(name, *_counted(measure(name)), sides(spec.unit), ", ".join(_ways(model)))
    Console().print(table)
    Console().print(
        "list 'PATTERN' looks through all of timm's names; every one of them can be handed off and fine-tuned"
    )


def print_architecture(name: str, img_size: Size | None = None, **model_args: Any) -> None:
    """Print the counted size of an architecture, its maps, and how it can be pretrained, or why not.

    Raises:
        UserError: there is no such architecture, or it cannot take images of ``img_size``.
    """
    model, size = made_for(name, img_size, model_args), measure(name, img_size=img_size, **model_args)
    without = (size.macs - size.attention_macs) / 1e9
    parameters, macs, px, _ = _counted(size)
    Console().print(
        f"{name}: {parameters} parameters ({size.parameters:,}), {macs} multiply-accumulates at {px} px "
        f"({without:.2f} G without those between activations)",
        markup=False,
    )
    maps = ", ".join(f"{c} channels at stride {s}" for c, s in zip(size.channels, size.strides, strict=True))
    Console().print(f"maps: {maps}", markup=False)
    spec = _spec(model)
    if isinstance(spec, UserError):
        Console().print(f"no pretraining: {spec}", markup=False, soft_wrap=True)
        return
    Console().print(f"pretraining: {' or '.join(_ways(model))}")
    Console().print(_stage_table(spec))


def sides(pair: Size) -> str:
    """Return a height and width, or one number where they are the same."""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def _counted(size: ModelSize) -> tuple[str, str, str, str]:
    strides = "-".join(map(str, size.strides))
    return f"{size.parameters / 1e6:.1f} M", f"{size.macs / 1e9:.2f} G", sides(size.img_size), strides


def _spec(model: nn.Module) -> LayoutSpec | UserError:
    """Return the sizes that the model's visible layouts follow from, or why it has none."""
    try:
        return layout_spec(model)
    except UserError as error:
        return error


def _ways(model: nn.Module) -> list[str]:
    """Return the values of mim.encoder that the model can be pretrained with."""
    return ["visible"] if pretrainable(model).dense is None else ["visible", "dense"]


def _stage_table(spec: LayoutSpec) -> Table:
    """Return the table of the stages; levels of pixels or of a stem, finer than the first stage's tokens, are none."""
    stages = [stage for stage in spec.stages if stage.grid[0] * spec.patch[0] <= spec.img_size[0]]
    names = [field.name for field in fields(stages[0])]
    table = Table("stage", *names, title=f"tokens under a mask of units of {sides(spec.unit)} px")
    for number, stage in enumerate(stages, start=1):
        table.add_row(str(number), *(_words(getattr(stage, name)) for name in names))
    return table


def _words(value: Any) -> str:
    if isinstance(value, tuple) and all(isinstance(item, tuple) for item in value):
        return ", ".join(map(_words, value))
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
