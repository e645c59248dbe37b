"""``python backbones/main.py list|show|clusters|import|export``: which backbones there are, and weights in and out."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from backbones.catalogue import print_architecture, print_list
from backbones.pictures import draw, picture_file, random_layout, read_photograph
from backbones.sec.clusters import clusters_of, load_network, normalised
from backbones.weights.exporting import Layout, export_weights
from backbones.weights.foreign_files import read_source
from backbones.weights.handoff import CONFIG, read_backbone
from backbones.weights.importing import Imported, import_backbone
from backbones.weights.key_names import MergeOrder, to_timm
from engine.errors import one_line_errors
from engine.terms import Size

_SHOWN_NAMES = 5


@one_line_errors
def main() -> None:
    """Run the command that the first word names."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    commands = {
        "list": list_backbones,
        "show": show,
        "clusters": clusters,
        "import": import_weights,
        "export": export,
    }
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)


def list_backbones(pattern: Annotated[str | None, tyro.conf.Positional] = None) -> None:
    """List architectures that can be pretrained, with counted sizes.

    Args:
        pattern: Only timm names that match, such as 'swin*'; None shows a choice.
    """
    print_list(pattern)


def show(what: Annotated[str, tyro.conf.Positional], img_size: Size | None = None) -> None:
    """Describe a timm architecture, a backbone folder or a checkpoint file.

    Args:
        what: timm name, backbone folder, checkpoint file or run folder.
        img_size: Height and width in pixels to count an architecture at; None takes its own.
    """
    path = Path(what)
    if (path / CONFIG).is_file():
        _show_folder(path)
    elif path.exists():
        _show_source(path)
    else:
        print_architecture(what, img_size)


def clusters(
    image: Annotated[Path, tyro.conf.Positional],
    backbone: str = "secvit_tiny",
    swin: str = "swin_tiny_patch4_window7_224",
    img_size: Size = (224, 224),
    mask_ratio: float = 0.75,
    seed: int = 0,
    out: Path = Path("clusters.png"),
) -> None:
    """Draw the clusters that SecViT's tokens attend in, and the groups of a masked Swin's windows, on a photograph.

    Args:
        image: Photograph.
        backbone: Backbone folder of a network with SEC attention, or timm's name of one, with random weights.
        swin: timm's name of a network with windows.
        img_size: Height and width in pixels.
        mask_ratio: Share of the mask units that are hidden.
        seed: Of the mask, and of random weights.
        out: File to write; a PNG where its name has no ending.
    """
    out = picture_file(out)
    network = load_network(backbone, img_size=img_size, seed=seed)
    photograph = read_photograph(image, img_size)
    found = clusters_of(network, normalised(photograph, network))
    layout = random_layout(swin, img_size=img_size, mask_ratio=mask_ratio, seed=seed)
    weights = "" if Path(backbone).is_dir() else " with random weights"
    draw(photograph, found, layout, title=f"{backbone}{weights}; {swin}, {mask_ratio:.0%} hidden", path=out)
    Console().print(f"wrote {out}", soft_wrap=True, markup=False)


def import_weights(
    source: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    architecture: str | None = None,
    img_size: Size | None = None,
    window: int | None = None,
    greenmim_merge_order: MergeOrder = "swin",
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    partial: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Make a backbone folder from a checkpoint: GreenMIM, SimMIM, microsoft's Swin, SecViT, timm or one of our runs.

    Args:
        source: .pth, .pt, .bin or .safetensors file, backbone folder, run folder or one of its checkpoints.
        out: Backbone folder to write.
        architecture: timm's name; None tells a Swin or SecViT from the shapes of its weights.
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
