"""What people call the splits of a data set, in the names of folders and files."""

from typing import Literal

Split = Literal["train", "val", "test"]

SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation", "holdout"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""Splits by their names in lower case."""
