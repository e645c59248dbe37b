"""Usual spellings are known, and names of classes are none of them."""

import pytest

from data.sources.trees.names import is_hidden, parse_name


@pytest.mark.parametrize(
    ("name", "split", "role"),
    [
        ("train", "train", None),
        ("Training", "train", None),
        ("val2017", "val", None),
        ("TEST", "test", None),
        ("test_set", "test", None),
        ("trainset", "train", None),
        ("seg_train", "train", None),
        ("train_images", "train", "images"),
        ("trainannot", "train", "labels"),
        ("val_labels", "val", "labels"),
        ("JPEGImages", None, "images"),
        ("leftImg8bit", None, "images"),
        ("gtFine", None, "labels"),
        ("ground_truth", None, "labels"),
        ("SegmentationClass", None, "labels"),
        ("label_images", None, "labels"),
        ("Annotations", None, "labels"),
        ("trains", None, None),
        ("train station", None, None),
        ("validus", None, None),
        ("SegmentationObject", None, None),
        ("2017", None, None),
        ("さくら", None, None),
    ],
)
def test_names_say_split_and_role(name, split, role):
    parts = parse_name(name)
    assert (parts.split, parts.role) == (split, role)


def test_what_systems_leave_behind_is_hidden():
    assert all(map(is_hidden, (".git", "__MACOSX", "._x.jpg")))
    assert not is_hidden("x")
