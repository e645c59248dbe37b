"""Are SegViT's heads as big as published? ``python benchmarks/tables/head_tables.py``.

Parameters and multiply-accumulates of one image's scores are counted from the heads and backbones as they are built,
the final product of classes and masks at every pixel included, as published. Beside it stands what
``segmenter.score-stride 4`` takes, which multiplies them at every fourth pixel in either direction. Published figures:
the sizes printed in the paper and counted in its code (heads, shrunk backbones) and the paper's table of whole
networks.
"""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.goals import Goal, finish
from finetune.segmentation.config import SegmenterConfig
from finetune.segmentation.model import build_head
from finetune.segmentation.vit_layers import VitLayers

MOST_OFF = 0.01
CHEAPER_STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published network and what is known of its size."""

    backbone: str
    """timm's name."""
    layers: tuple[int, ...]
    """Blocks, from 0, after which maps are taken."""
    shrunk: bool
    """Whether it is Shrunk."""
    side: int
    """Height and width of the image in pixels."""
    num_classes: int
    """Classes, and so queries."""
    parameters: str | None
    """Of the head, in millions; None where it is not known."""
    head: float
    """Multiply-accumulates of the head in 1e9."""
    features: float
    """Those of the backbone."""
    total: float
    """Those of both, as the paper prints them."""


@dataclass(frozen=True, kw_only=True)
class HeadSize:
    """What was counted."""

    parameters: int
    """Of the head."""
    head: int
    """Multiply-accumulates of the head, the product of classes and masks at every pixel included."""
    product: int
    """Those of that product."""
    cheaper: int
    """Those of the head where the product is taken at every fourth pixel in either direction."""
    features: int
    """Those of the backbone."""


def _large(
    shrunk: bool, side: int, num_classes: int, parameters: str | None, head: float, features: float, total: float
) -> Row:
    return Row(
        backbone="vit_large_patch16_384",
        layers=(7, 23) if shrunk else (7, 15, 23),
        shrunk=shrunk,
        side=side,
        num_classes=num_classes,
        parameters=parameters,
        head=head,
        features=features,
        total=total,
    )


ROWS = (
    Row(
        backbone="vit_base_patch16_384",
        layers=(5, 7, 11),
        shrunk=False,
        side=512,
        num_classes=150,
        parameters="22.3",
        head=13.6,
        features=106.9,
        total=120.9,
    ),
    _large(False, 640, 150, "39.6", 26.7, 610.3, 637.9),
    _large(False, 512, 171, None, 21.7, 361.6, 383.9),
    _large(False, 480, 60, None, 9.0, 312.3, 321.6),
    _large(True, 640, 150, "39.9", 79.2, 293.5, 373.5),
    _large(True, 512, 171, None, 47.5, 176.8, 224.8),
    _large(True, 480, 60, None, 33.4, 153.3, 186.9),
)


def main() -> None:
    """Count all rows, print the table and the figures, and exit with 1 where one differs."""
    sizes = [(row, count(row)) for row in ROWS]
    Console(width=170).print(_table(sizes))
    differing = [_label(row) for row, size in sizes if differences(row, size)]
    figures = {"rows": [_figures(row, size) for row, size in sizes], "differing": differing}
    finish(figures, [Goal(name="rows that differ", value=len(differing), at_most=0)], check=True)


def count(row: Row) -> HeadSize:
    """Count one forward of one image without computing it."""
    with torch.device("meta"):
        network: Any = timm.create_model(row.backbone, num_classes=0, dynamic_img_size=True)
        features = VitLayers(network, layers=row.layers, class_token=False, shrink_block=8 if row.shrunk else None)
        config = SegmenterConfig(layers=row.layers, shrink="qd+qu" if row.shrunk else "none")
        head: Any = build_head(config, features=features, crop=(row.side, row.side), num_classes=row.num_classes)
        images = torch.empty(1, 3, row.side, row.side)
    maps = _maps(features.eval(), row)
    size = (row.side, row.side)
    whole = _macs(head.eval().scores, maps, size)
    product = row.num_classes**2 * row.side**2
    return HeadSize(
        parameters=sum(parameter.numel() for parameter in head.parameters()),
        head=whole,
        product=product,
        cheaper=whole - product + product // CHEAPER_STRIDE**2,
        features=_macs(features, images),
    )


def differences(row: Row, size: HeadSize) -> list[str]:
    """List the published figures that differ from the counted ones: parameters in any digit, products by over 1 %."""
    names = [] if row.parameters in (None, f"{size.parameters / 1e6:.1f}") else ["parameters"]
    pairs = {"head": (row.head, size.head), "features": (row.features, size.features)}
    pairs["total"] = (row.total, size.head + size.features)
    for name, (published, counted) in pairs.items():
        if abs(counted / 1e9 - published) > MOST_OFF * published:
            names.append(name)
    return names


def _maps(features: nn.Module, row: Row) -> list[Tensor]:
    with torch.no_grad():
        return features(torch.empty(1, 3, row.side, row.side, device="meta"))


def _macs(forward: Any, *args: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        forward(*args)
    return counter.get_total_flops() // 2


def _label(row: Row) -> str:
    return f"{row.backbone}{' shrunk' if row.shrunk else ''} {row.side} px, {row.num_classes} classes"


def _table(sizes: list[tuple[Row, HeadSize]]) -> Table:
    columns = (
        "network",
        "head, M",
        "known",
        "GMACs",
        "known",
        f"stride {CHEAPER_STRIDE}",
        "backbone",
        "known",
        "total",
        "known",
        "",
    )
    table = Table(*columns, title="counted, and known")
    for row, size in sizes:
        table.add_row(
            _label(row),
            f"{size.parameters / 1e6:.2f}",
            row.parameters or "",
            f"{size.head / 1e9:.2f}",
            str(row.head),
            f"{size.cheaper / 1e9:.2f}",
            f"{size.features / 1e9:.1f}",
            str(row.features),
            f"{(size.head + size.features) / 1e9:.1f}",
            str(row.total),
            ", ".join(differences(row, size)) or "agrees",
        )
    return table


def _figures(row: Row, size: HeadSize) -> dict[str, Any]:
    published = {
        "parameters_m": row.parameters,
        "head_gmacs": row.head,
        "backbone_gmacs": row.features,
        "total_gmacs": row.total,
    }
    return {"name": _label(row), **vars(size), "known": published}


if __name__ == "__main__":
    main()
