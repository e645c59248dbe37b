"""Which folders are splits: by their names, and only where nothing else may be meant."""

import pytest

from data.sources.trees.splits import find_splits, levels_of

AB = ("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg")


def names(splits):
    return None if splits is None else {name: path.name for name, path in splits.items()}


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (("Training/1.jpg", "Testing/1.jpg"), {"train": "Training", "val": "Testing"}),
        ((*AB, "test/1.jpg"), {"train": "train", "val": "val"}),
        ((*AB, "meta/x.txt", "__MACOSX/train/a/1.jpg", "empty/"), {"train": "train", "val": "val"}),
        (
            (
                "seg_train/x/a/1.jpg",
                "seg_train/x/b/1.jpg",
                "seg_test/x/a/1.jpg",
                "seg_test/x/b/1.jpg",
                "seg_pred/1.jpg",
            ),
            {"train": "seg_train", "val": "seg_test"},
        ),
        ((*AB, "docs/x.jpg"), {"train": "train", "val": "val"}),
        (("train/1.jpg", "val/x.txt"), {"train": "train"}),
        (("train/1.jpg", "plane/1.jpg"), None),
        (("test/1.jpg", "plane/1.jpg"), None),
        (("a/1.jpg", "b/1.jpg"), None),
    ],
)
def test_folders_with_images_vote(tree, files, splits):
    assert names(find_splits(tree(*files))) == splits


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((*AB, "more/a/1.jpg"), r"train/, val/ beside more/, which can be 3 classes \(.*--splits none\) or splits"),
        (("train/1.jpg", "val/1.jpg", "dogs/1.jpg"), "can be 3 classes"),
        (("train/a/1.jpg", "docs/x.jpg"), "can be 2 classes"),
        (("train2017/1.jpg", "unlabeled2017/1.jpg"), r"can be 2 classes .* or splits \(.*--splits train2017,"),
        (("train/1.jpg", "seg_pred/1.jpg", "extra_images/1.jpg", "x/1.jpg"), "can be 4 classes"),
        (("train1/1.jpg", "train2/1.jpg", "val/1.jpg"), "can be 3 classes"),
        (("val/1.jpg", "test/1.jpg"), "no folder to train on: choose them with --splits val,test"),
    ],
)
def test_what_can_be_meant_two_ways_is_asked(tree, files, message):
    with pytest.raises(ValueError, match=message):
        find_splits(tree(*files))


def test_the_answer_is_taken(tree):
    root = tree(*AB, "more/a/1.jpg")
    assert names(find_splits(root, choice="more,train")) == {"train": "more", "val": "train"}
    assert names(find_splits(root, choice="val")) == {"train": "val"}
    assert find_splits(root, choice="none") is None
    with pytest.raises(ValueError, match=r"--splits train,x must be the name .* has more/, train/, val/"):
        find_splits(root, choice="train,x")


def test_wrappers_are_looked_through(tree):
    root = tree("read.me", "d/meta/x.txt", *(f"d/e/{name}" for name in AB))
    assert [path.name for path in levels_of(root)] == ["in", "d", "e"]
    assert levels_of(root / "d" / "e" / "train") == [root / "d" / "e" / "train"]
