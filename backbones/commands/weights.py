"""``backbones/main.py import|export``: weights from other code bases, and for them."""

import logging

from rich.console import Console
from rich.table import Table

from backbones.commands.config import Export, Import
from backbones.weights.exporting import export_weights
from backbones.weights.importing import Imported, import_backbone

_SHOWN_NAMES = 5


def run_import(options: Import) -> None:
    """Make a backbone folder, and say what became of the file's tensors."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    imported = import_backbone(
        options.source,
        options.out,
        architecture=options.architecture,
        sizes={"img_size": options.img_size, "window_size": options.window},
        merge_order=options.greenmim_merge_order,
        mean=options.mean,
        std=options.std,
        partial=options.partial,
    )
    console = Console()
    console.print(_report(imported))
    if imported.assumed_size is not None:
        height, width = imported.assumed_size
        console.print(
            f"the file does not say for which images its weights were made: {height}x{width} px is assumed; "
            "--img-size HEIGHT WIDTH says another size",
            soft_wrap=True,
            markup=False,
        )
    console.print(
        f'wrote {options.out}: timm.create_model("local-dir:{options.out}", pretrained=True)',
        soft_wrap=True,
        markup=False,
    )


def run_export(options: Export) -> None:
    """Write a file with the weights."""
    count = export_weights(options.source, options.out, naming=options.layout)
    Console().print(f"wrote {count} tensors in {options.layout}'s layout: {options.out}", soft_wrap=True, markup=False)


def listed(names: list[str]) -> str:
    """Join the first names, and count the others."""
    others = f", and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + others


def _report(imported: Imported) -> Table:
    table = Table("tensors", "number", "which", title=f"{imported.architecture} {imported.model_args}")
    table.add_row("taken", str(imported.num_taken), "")
    rows = {
        "resized": list(map(str, imported.resized)),
        "missing, random now": imported.missing,
        "unexpected, dropped": imported.unexpected,
        **{f"left out: {reason}": names for reason, names in imported.left_out.items()},
    }
    for kind, names in rows.items():
        table.add_row(kind, str(len(names)), listed(names))
    return table
