"""``backbones/main.py list``: architectures that can be pretrained, with counted sizes."""

import importlib

from rich import box
from rich.console import Console
from rich.table import Column, Table

from backbones.commands.config import List
from backbones.commands.counts import Counts, read_counts, sides
from backbones.registry.zoo import ZOO
from engine.errors import UserError


def run_list(options: List) -> None:
    """Print one row for each architecture that can be pretrained and whose name matches.

    Raises:
        UserError: no name matches.
    """
    names = [name for entry in ZOO.values() for name in entry.names]
    if options.pattern is not None:
        names = _matching(options.pattern)
    columns = [
        Column(name, no_wrap=True) for name in ("timm name", "params", "MACs", "px", "strides", "unit", "encoder")
    ]
    table = Table(*columns, title="can be pretrained", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    all_counts = read_counts()
    for name in names:
        counts = all_counts.get(name) or _counted(name)
        if counts is not None:
            table.add_row(name, *_columns(counts))
    console = Console()
    console.print(table)
    console.print(
        "unit: side of a mask unit in pixels; encoder: values of mim.encoder, both are visible and dense\n"
        "list 'PATTERN' looks through all of timm's names; every one of them can be handed off and fine-tuned"
    )


def _columns(counts: Counts) -> tuple[str, ...]:
    return (
        f"{counts.parameters / 1e6:.1f} M",
        f"{counts.macs / 1e9:.2f} G",
        sides(counts.img_size),
        "-".join(map(str, counts.strides)),
        sides(counts.unit),
        "both" if len(counts.encoders) == 2 else counts.encoders[0],
    )


def _matching(pattern: str) -> list[str]:
    timm = importlib.import_module("timm")  # with torch: seconds, which a list of the zoo does without
    names = timm.list_models(pattern)
    if not names:
        raise UserError(f"none of timm's names matches {pattern!r}; * stands for any letters, as in 'swin*'")
    return names


def _counted(name: str) -> Counts | None:
    return importlib.import_module("backbones.commands.counting").count(name)
