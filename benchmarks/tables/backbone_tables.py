"""Are the backbones as big as the papers say? ``python benchmarks/tables/backbone_tables.py``.

Parameters and multiply-accumulates are counted from the networks as they are built, and compared with figures that were
counted in the official code or printed in the papers: a known figure with few digits has to be less than one away in
its last. Papers call multiply-accumulates FLOPs, some without the products between activations (queries, keys, values):
both are counted.
"""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table

from backbones.weights.model_size import ModelSize, measure
from benchmarks.goals import Goal, finish
from engine.terms import Size

ENCODER = {"num_classes": 0}
PATCHES_ONLY = {"num_classes": 0, "class_token": False, "global_pool": "avg"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """An architecture and what is known of its size, as it was printed; None where nothing is."""

    name: str
    """timm's name."""
    args: dict[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of the architecture."""
    img_size: Size | None = None
    """Height and width in pixels; None is the architecture's own."""
    parameters: str | None = None
    """Parameters, in full or in millions with as many digits as are known."""
    macs: str | None = None
    """Multiply-accumulates in 1e9."""
    without: str | None = None
    """The same without products between activations."""
    elementwise: int = 0
    """Products that the source has as a matrix product and ours element by element, where they are not counted."""
    source: str
    """Who says so."""


def _row(name: str, source: str, parameters: str | None, macs: str | None = None, **rest: Any) -> Row:
    return Row(name=name, source=source, parameters=parameters, macs=macs, **rest)


_V2 = "SecViT's official code, version 2"
_V1 = "SecViT's official code, version 1"
_SEC_SWIN = "timm's Swin minus its bias tables"
_SEC_FASTER_VIT = "a reconstruction: counted, nothing is published"
_GREEN = "GreenMIM's official encoder"
_SEGVIT = "ViT in SegViT's code, without class token"
_XFORMER = "the reconstruction of XFormer; the article prints 5.5 M"


def _secvit(size: str, source: str, parameters: str, macs: str, **rest: Any) -> Row:
    """SecViT's row; keys times the mean key, in the three stages with clusters, are products of elements here."""
    depths, widths = _SECVIT_STAGES[size]
    similarity = sum(
        depth * tokens * width for depth, tokens, width in zip(depths, (3136, 784, 196), widths, strict=True)
    )
    return _row(f"secvit_{size}", source, parameters, macs, elementwise=similarity, **rest)


_SECVIT_STAGES = {
    "tiny": ((2, 2, 9), (64, 128, 256)),
    "small": ((3, 4, 18), (64, 128, 256)),
    "base": ((4, 8, 26), (80, 160, 320)),
    "large": ((4, 8, 26), (112, 224, 448)),
}

ROWS = (
    _secvit("tiny", _V2, "14981800", "2.707", without="2.494"),
    _secvit("small", _V2, "26776104", "4.733", without="4.347"),
    _secvit("base", _V2, "54682776", "10.370", without="9.633"),
    _secvit("large", _V2, "96495096", "19.326", without="18.298"),
    _secvit("tiny", _V1, "13832104", "2.651", args={"version": 1}),
    _secvit("small", _V1, "25516968", "4.653", args={"version": 1}),
    _secvit("base", _V1, "53223960", "10.240", args={"version": 1}),
    _secvit("large", _V1, "94883704", "19.149", args={"version": 1}),
    _row("sec_swin_tiny", _SEC_SWIN, "28265032"),
    _row("sec_swin_small", _SEC_SWIN, "49558600"),
    _row("sec_faster_vit_0", _SEC_FASTER_VIT, None),
    _row("sec_faster_vit_1", _SEC_FASTER_VIT, None),
    _row("sec_faster_vit_2", _SEC_FASTER_VIT, None),
    _row("swin_base_patch4_window7_224", _GREEN, "86743224", "15.43", args=ENCODER),
    _row("swin_base_patch4_window7_224", _GREEN, "86917944", "16.32", args={**ENCODER, "window_size": 14}),
    _row("swin_large_patch4_window7_224", _GREEN, "195257556", "35.80", args={**ENCODER, "window_size": 14}),
    _row("swin_tiny_patch4_window7_224", "Swin's paper", "28", "4.5"),
    _row("swin_small_patch4_window7_224", "Swin's paper", "50", "8.7"),
    _row("xformer", _XFORMER, "5476417", "1.75"),
    _row("xformer", "the same with softmax attention", "5.473", args={"attention": "softmax"}),
    _row("vit_base_patch16_224", _SEGVIT, None, "106.9", args=PATCHES_ONLY, img_size=(512, 512)),
    _row("vit_large_patch16_224", _SEGVIT, None, "312.3", args=PATCHES_ONLY, img_size=(480, 480)),
    _row("vit_large_patch16_224", _SEGVIT, None, "361.6", args=PATCHES_ONLY, img_size=(512, 512)),
    _row("vit_large_patch16_224", _SEGVIT, None, "610.3", args=PATCHES_ONLY, img_size=(640, 640)),
    _row("twins_svt_small", "Twins' paper", "24", "2.9"),
    _row("twins_svt_base", "Twins' paper", "56", "8.6"),
    _row("twins_svt_large", "Twins' paper", "99.2", "15.1"),
    _row("convnext_tiny", "ConvNeXt's paper", "29", "4.5"),
    _row("convnext_small", "ConvNeXt's paper", "50", "8.7"),
    _row("convnext_base", "ConvNeXt's paper", "89", "15.4"),
    _row("convnext_large", "ConvNeXt's paper", "198", "34.4"),
)


def main() -> None:
    """Count all rows, print the table and the figures, and exit with 1 where one differs."""
    sizes = [(row, measure(row.name, img_size=row.img_size, **row.args)) for row in ROWS]
    Console(width=170).print(_table(sizes))
    differing = [_label(row) for row, size in sizes if differences(row, size)]
    figures = {"rows": [_figures(row, size) for row, size in sizes], "differing": differing}
    finish(figures, [Goal(name="rows that differ", value=len(differing), at_most=0)], check=True)


def differences(row: Row, size: ModelSize) -> list[str]:
    """List the published figures that differ from the counted ones."""
    pairs = {
        "parameters": (row.parameters, size.parameters),
        "macs": (row.macs, size.macs + row.elementwise),
        "without": (row.without, size.macs - size.attention_macs),
    }
    scales = {"macs": 9, "without": 9, "parameters": 0 if row.parameters and len(row.parameters) > 6 else 6}
    return [
        name
        for name, (printed, counted) in pairs.items()
        if printed is not None and not agrees(printed, counted, scale=scales[name])
    ]


def agrees(printed: str, counted: int, *, scale: int) -> bool:
    """Whether ``counted``, in units of 10 to the ``scale``, is ``printed``, rounded either way."""
    exact, published = Decimal(counted).scaleb(-scale), Decimal(printed)
    return abs(exact - published) < Decimal(1).scaleb(int(published.as_tuple().exponent))


def _label(row: Row) -> str:
    args = [f"{key}={value}" for key, value in row.args.items() if key not in PATCHES_ONLY]
    return " ".join([row.name, *args])


def _table(sizes: list[tuple[Row, ModelSize]]) -> Table:
    columns = ("network", "px", "parameters", "known", "GMACs", "known", "without attention", "known", "known from", "")
    table = Table(*columns, title="counted, and known")
    for row, size in sizes:
        table.add_row(
            _label(row),
            str(size.img_size[0]),
            f"{size.parameters:,}",
            row.parameters or "",
            f"{(size.macs + row.elementwise) / 1e9:.3f}",
            row.macs or "",
            f"{(size.macs - size.attention_macs) / 1e9:.3f}",
            row.without or "",
            row.source,
            ", ".join(differences(row, size)) or ("agrees" if row.parameters or row.macs else "counted"),
        )
    return table


def _figures(row: Row, size: ModelSize) -> dict[str, Any]:
    return {
        "name": row.name,
        "args": row.args,
        "img_size": size.img_size,
        "parameters": size.parameters,
        "macs": size.macs,
        "attention_macs": size.attention_macs,
        "elementwise_products": row.elementwise,
        "known": {"parameters": row.parameters, "gmacs": row.macs, "gmacs_without_attention": row.without},
        "source": row.source,
    }


if __name__ == "__main__":
    main()
