"""``python backbones/main.py list|show|import|export``: which backbones there are, and weights in and out."""

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import tyro
from rich.console import Console
from rich.table import Column, Table

from backbones.build import REGISTRY, layout_spec
from backbones.checkpoint_files import read_source
from backbones.exporting import Layout, export_weights
from backbones.handoff import CONFIG, read_backbone, skeleton
from backbones.importing import Imported, import_backbone
from backbones.layouts import MergeOrder, to_timm
from engine.errors import one_line_errors

_SHOWN_NAMES = 5


@one_line_errors
def main() -> None:
    """Run the command that the first word names."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    commands = {"list": list_backbones, "show": show, "import": import_weights, "export": export}
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)


def list_backbones() -> None:
    """List timm's architectures that pretrain on visible tokens; img-size, window, width and depths can be changed."""
    name_column = Column("timm name", no_wrap=True)
    table = Table(name_column, "params", "width", "depths", "window", "px", title="pretrain on visible tokens")
    for kind in REGISTRY:
        for name in timm.list_models(module=kind.__module__.rpartition(".")[2]):
            table.add_row(name, *_sizes_of(name, {}))
    Console().print(table)
    Console().print("any other timm architecture can be handed off and fine-tuned: see `timm.list_models()`")


def show(what: Annotated[str, tyro.conf.Positional]) -> None:
    """Describe a timm architecture, a backbone folder or a checkpoint file.

    Args:
        what: timm name, backbone folder, checkpoint file or run folder.
    """
    path = Path(what)
    if (path / CONFIG).is_file():
        _show_folder(path)
    elif path.exists():
        _show_source(path)
    else:
        _show_architecture(what)


def import_weights(
    source: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    architecture: str | None = None,
    img_size: tuple[int, int] | None = None,
    window: int | None = None,
    greenmim_merge_order: MergeOrder = "swin",
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    partial: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Make a backbone folder from a checkpoint: GreenMIM, SimMIM, microsoft's Swin, timm or one of our runs.

    Args:
        source: .pth, .pt, .bin or .safetensors file, backbone folder, run folder or one of its checkpoints.
        out: Backbone folder to write.
        architecture: timm's name; None tells a Swin from the shapes of its weights.
        img_size: Height and width in pixels; None keeps the file's. Position embeddings and tables are resized.
        window: Window side in tokens; None keeps the file's. Bias tables are resized.
        greenmim_merge_order: official-2022 for weights trained with GreenMIM's code from before 2023, which merged 2x2
            cells row by row: the two middle quarters of the merging weights are swapped. The published files
            probably are such (the published fine-tuning did not swap them); swin for everything else.
        mean: Channel means that images are normalised with; None keeps what is known.
        std: Channel standard deviations that images are normalised with; None keeps what is known.
        partial: Take what fits and leave the rest random, instead of refusing.
    """
    found = import_backbone(
        source,
        out,
        architecture=architecture,
        sizes={"img_size": img_size, "window_size": window},
        merge_order=greenmim_merge_order,
        mean=mean,
        std=std,
        partial=partial,
    )
    _report(found)
    Console().print(f'wrote {out}: timm.create_model("local-dir:{out}", pretrained=True)', soft_wrap=True, markup=False)


def export(
    source: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    layout: Layout = "timm",
) -> None:
    """Write weights as one file for another code base.

    Args:
        source: Backbone folder, run folder, or anything that can be imported.
        out: File to write: .safetensors, or .pth with the weights under "model".
        layout: Names of the weights: timm's, or those of microsoft's Swin, SimMIM and GreenMIM.
    """
    count = export_weights(source, out, layout=layout)
    Console().print(f"wrote {count} tensors in {layout}'s layout: {out}", soft_wrap=True, markup=False)


def _sizes_of(name: str, model_args: dict[str, Any]) -> tuple[str, ...]:
    model: Any = skeleton(name, num_classes=0, **model_args)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    depths = "-".join(str(len(stage.blocks)) for stage in model.layers)
    windows = "-".join(dict.fromkeys(_sides(stage.blocks[0].window_size) for stage in model.layers))
    return f"{count:.1f} M", str(model.embed_dim), depths, windows, _sides(model.patch_embed.img_size)


def _sides(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def _show_architecture(name: str, model_args: dict[str, Any] | None = None) -> None:
    model = skeleton(name, num_classes=0, **(model_args or {}))
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    Console().print(f"{name}: {count:.1f} M parameters, {model.num_features} features", markup=False)
    if type(model) not in REGISTRY:
        Console().print("dense only: it cannot run on visible tokens")
        return
    spec = layout_spec(model)
    table = Table("stage", "tokens", "window", "shifts", "channels", title=f"mask units of {_sides(spec.unit)} px")
    for number, stage in enumerate(spec.stages, start=1):
        shifts = ", ".join(map(_sides, stage.shifts))
        table.add_row(
            str(number), f"{stage.grid[0]}x{stage.grid[1]}", _sides(stage.window), shifts, str(stage.channels)
        )
    Console().print(table)


def _show_folder(folder: Path) -> None:
    info = read_backbone(folder)
    table = Table("field", "value", title=str(folder))
    for name in ("img_size", "mean", "std", "interpolation", "num_classes", "model_args"):
        table.add_row(name, str(getattr(info, name)))
    for name, value in info.provenance.items():
        table.add_row(f"provenance: {name}", str(value))
    Console().print(table)
    _show_architecture(info.architecture, info.model_args)


def _show_source(path: Path) -> None:
    source = read_source(path)
    found = to_timm(source.state)
    table = Table("field", "value", title=str(path))
    table.add_row("tensors", str(len(source.state)))
    table.add_row("layout", found.layout)
    table.add_row("architecture", source.architecture or "not said")
    for reason, names in found.left_out.items():
        table.add_row(f"left out on import: {reason}", _listed(names))
    for name in list(found.state)[:_SHOWN_NAMES]:
        table.add_row(name, str(tuple(found.state[name].shape)))
    Console().print(table)


def _report(found: Imported) -> None:
    table = Table("tensors", "number", "which", title=f"{found.architecture} {found.model_args}")
    table.add_row("taken", str(found.num_taken), "")
    rows: dict[Literal["resized", "missing, random now", "unexpected, dropped"], list[str]] = {
        "resized": list(map(str, found.resized)),
        "missing, random now": found.missing,
        "unexpected, dropped": found.unexpected,
    }
    for kind, names in rows.items():
        table.add_row(kind, str(len(names)), _listed(names))
    for reason, names in found.left_out.items():
        table.add_row(f"left out: {reason}", str(len(names)), _listed(names))
    Console().print(table)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (
        f", and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    )
