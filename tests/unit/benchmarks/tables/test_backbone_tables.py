"""Every row of the table of sizes, and that a wrong figure would be seen."""

from dataclasses import replace

import pytest

from backbones.weights.model_size import measure
from benchmarks.tables.backbone_tables import ROWS, agrees, differences

QUICK = ("secvit_tiny", "swin_tiny_patch4_window7_224", "xformer", "twins_svt_small", "convnext_tiny")


def case(row):
    marks = () if row.name in QUICK else pytest.mark.slow
    return pytest.param(row, id=" ".join([row.name, row.source]), marks=marks)


@pytest.mark.parametrize("row", [case(row) for row in ROWS])
def test_counted_size_is_the_known_one(row):
    assert differences(row, measure(row.name, img_size=row.img_size, **row.args)) == []


def test_wrong_figures_are_named():
    row = next(row for row in ROWS if row.name == "xformer")
    size = measure("xformer")
    assert differences(replace(row, parameters="5476416"), size) == ["parameters"]
    assert differences(replace(row, macs="1.77", without="1.68"), size) == ["macs"]
    assert differences(replace(row, without="1.75"), size) == ["without"]


@pytest.mark.parametrize(
    ("printed", "counted", "scale", "same"),
    [
        ("14981800", 14_981_800, 0, True),
        ("14981800", 14_981_801, 0, False),
        ("99.2", 99_271_400, 6, True),
        ("99.3", 99_271_400, 6, True),
        ("99.1", 99_271_400, 6, False),
        ("2.50", 2_494_000_000, 9, True),
        ("2.50", 2_511_000_000, 9, False),
    ],
)
def test_few_digits_agree_rounded_either_way(printed, counted, scale, same):
    assert agrees(printed, counted, scale=scale) == same
