"""``backbones/main.py show``: an architecture, a backbone folder or a checkpoint file described."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from backbones.build import layout_spec
from backbones.commands.config import Show
from backbones.commands.counting import encoders
from backbones.commands.counts import sides
from backbones.commands.weights import listed
from backbones.visible.layout import LayoutSpec
from backbones.weights.foreign_files import read_source
from backbones.weights.handoff import CONFIG, read_backbone
from backbones.weights.key_names import to_timm
from backbones.weights.model_size import made_for, measure_model
from engine.errors import UserError
from engine.terms import Size

_SHOWN_TENSORS = 5


def run_show(options: Show) -> None:
    """Describe what is named."""
    path = Path(options.what)
    if (path / CONFIG).is_file():
        _show_folder(path)
    elif path.exists():
        _show_source(path)
    else:
        print_architecture(options.what, options.img_size)


def print_architecture(name: str, img_size: Size | None = None, **model_args: Any) -> None:
    """Print the counted size of an architecture, its maps, and how it can be pretrained, or why not.

    Raises:
        UserError: there is no such architecture, or it cannot take images of ``img_size``.
    """
    console, model = Console(), made_for(name, img_size, model_args)
    size = measure_model(model, img_size=img_size)
    without = (size.macs - size.attention_macs) / 1e9
    console.print(
        f"{name}: {size.parameters / 1e6:.1f} M parameters ({size.parameters:,}), {size.macs / 1e9:.2f} G "
        f"multiply-accumulates at {sides(size.img_size)} px ({without:.2f} G without those between activations)",
        markup=False,
    )
    maps = ", ".join(f"{c} channels at stride {s}" for c, s in zip(size.channels, size.strides, strict=True))
    console.print(f"maps: {maps}", markup=False)
    try:
        spec = layout_spec(model)
    except UserError as reason:
        console.print(f"no pretraining: {reason}", markup=False, soft_wrap=True)
        return
    console.print(f"pretraining: {' or '.join(encoders(model))}")
    console.print(_stage_table(spec))


def _stage_table(spec: LayoutSpec) -> Table:
    """List the stages; levels of pixels or of a stem, finer than the first stage's tokens, are none."""
    stages = [stage for stage in spec.stages if stage.grid[0] * spec.patch[0] <= spec.img_size[0]]
    names = [field.name for field in fields(stages[0])]
    table = Table("stage", *names, title=f"tokens under a mask of units of {sides(spec.unit)} px")
    for number, stage in enumerate(stages, start=1):
        table.add_row(str(number), *(_text(getattr(stage, name)) for name in names))
    return table


def _text(value: Any) -> str:
    if isinstance(value, tuple) and all(isinstance(item, tuple) for item in value):
        return ", ".join(map(_text, value))
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _show_folder(folder: Path) -> None:
    info = read_backbone(folder)
    table = Table("field", "value", title=str(folder))
    for name in ("img_size", "mean", "std", "interpolation", "num_classes", "model_args"):
        table.add_row(name, str(getattr(info, name)))
    for name, value in info.provenance.items():
        table.add_row(f"provenance: {name}", str(value))
    Console().print(table)
    args = {key: value for key, value in info.model_args.items() if key != "img_size"}
    print_architecture(info.architecture, info.img_size, num_classes=info.num_classes, **args)


def _show_source(path: Path) -> None:
    source = read_source(path)
    translated = to_timm(source.state)
    table = Table("field", "value", title=str(path))
    table.add_row("tensors", str(len(source.state)))
    table.add_row("layout", translated.naming)
    table.add_row("architecture", source.architecture or "not said")
    for reason, names in translated.left_out.items():
        table.add_row(f"left out on import: {reason}", listed(names))
    for name in list(translated.state)[:_SHOWN_TENSORS]:
        table.add_row(name, str(tuple(translated.state[name].shape)))
    Console().print(table)
