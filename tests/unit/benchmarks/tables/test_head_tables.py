"""Every published SegViT head and shrunk backbone has the counted size, and a wrong figure would be seen."""

from dataclasses import replace

import pytest

from benchmarks.tables.head_tables import ROWS, count, differences


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.backbone}-{row.side}{'-shrunk' if row.shrunk else ''}")
def test_the_counted_size_is_the_published_one(row):
    assert differences(row, count(row)) == []


def test_wrong_figures_are_named():
    row, size = ROWS[0], count(ROWS[0])
    assert differences(replace(row, parameters="22.4"), size) == ["parameters"]
    assert differences(replace(row, head=13.8, total=122.5), size) == ["head", "total"]


def test_the_final_product_is_part_of_the_head_and_the_cheaper_one_a_sixteenth_of_it():
    row = ROWS[1]
    size = count(row)
    assert size.product == 150 * 150 * 640 * 640
    assert size.head - size.cheaper == size.product - size.product // 16
