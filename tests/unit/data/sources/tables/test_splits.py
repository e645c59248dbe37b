"""Columns that say which rows are to train and which to validate on."""

from pathlib import Path

import pytest

from data.sources.tables.splits import rows_by_split, split_column

TABLE = Path("list.csv")


@pytest.mark.parametrize(
    ("column", "values", "rows"),
    [
        ("split", ("train", "val", "test", "Train"), {"train": [0, 3], "val": [1]}),
        ("set", ("training", "testing"), {"train": [0], "val": [1]}),
        ("split", ("trainval", "test"), {"train": [0], "val": [1]}),
        ("split", ("trainval", "trainval"), None),
        ("split", ("test", "test"), None),
        ("is_valid", ("False", "True", "False"), {"train": [0, 2], "val": [1]}),
        ("is_train", ("1", "0"), {"train": [0], "val": [1]}),
        ("Is_Test", ("no", "yes"), {"train": [0], "val": [1]}),
    ],
)
def test_rows_are_divided(column, values, rows):
    assert rows_by_split(values, column=column, table=TABLE) == rows


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("train", "val", ""), r"holds 'train', 'val', '', of which '' is no split .* --split-column none"),
        (("train", "unsupervised"), "of which 'unsupervised' is no split"),
        (("0", "1", "2"), "of which '0', '1', '2' is no split"),
        (("val", "test"), "no row to train on; --split-column none takes all rows"),
    ],
)
def test_what_is_no_split_is_asked(values, message):
    with pytest.raises(ValueError, match=message):
        rows_by_split(values, column="split", table=TABLE)


def test_the_column_is_found_or_given():
    columns = ["path", "label", "Subset", "is_valid"]

    def choose(name=None, others=("path", "label")):
        return split_column(columns, name=name, others=others, table=TABLE)

    assert choose() == "Subset"
    assert choose(others=("path", "Subset")) == "is_valid"
    assert choose("label") == "label"
    assert choose("none") is None
    with pytest.raises(ValueError, match="no column 'x' for --split-column: it has path, label"):
        choose("x")
