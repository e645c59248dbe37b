"""What is wrong with labels is said with the first class that differs."""

from dataclasses import dataclass

import numpy as np
import pytest

from data.shards.labelled import check_labels, check_same_classes
from engine.errors import UserError


@dataclass
class Labelled:
    classes: tuple[str, ...] | None = None
    numbers: tuple[int, ...] = ()
    folder: str = "some/shards"

    def labels(self):
        return np.array(self.numbers, np.int64)


def refuse(numbers, num_classes):
    check_labels(Labelled(numbers=numbers), num_classes=num_classes, option="x.shards", remedy="do that")


def test_sound_labels_pass():
    refuse((0, 1, 2), 3)
    refuse((0, 7), None)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [((), "holds no samples"), ((0, -1), "1 of 2 samples have no label"), ((0, 3), r"class 3, but .* 0 to 2; do that")],
)
def test_others_are_refused(numbers, words):
    with pytest.raises(UserError, match=rf"x.shards some/shards.*{words}"):
        refuse(numbers, 3)


def test_the_first_class_that_differs_is_shown():
    many = tuple(f"c{i}" for i in range(100))
    other = (*many[:50], "x", *many[51:])
    with pytest.raises(UserError, match=r"a \(100: ..., c50, c51, c52, ...\) .* b \(100: ..., x, c51, c52, ...\)"):
        check_same_classes(Labelled(many), Labelled(other), options=("a", "b"))
    check_same_classes(Labelled(many), Labelled(None), options=("a", "b"))
