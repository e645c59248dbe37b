"""Which folders are classes, what keeps its number, and what is asked."""

import os
from pathlib import Path

import pytest

from data.sources.trees.passed_over import passed_over


def classes(found):
    return {name: (source.classes, len(source)) for name, source in found.items()}


@pytest.mark.parametrize(
    ("files", "sources"),
    [
        (("a/1.jpg", "b/", "c/1.jpg"), {"train": (("a", "b", "c"), 2)}),
        (("a/1.jpg", "b/x.md", "c/1.jpg"), {"train": (("a", "c"), 2)}),
        (("a/1.jpg", "b/1.tif", "c/1.gif"), {"train": (("a", "b", "c"), 1)}),
        (("photos/1.jpg", "out/"), {"train": (None, 1)}),
        (("d/a/1.jpg", "d/b/1.jpg", "meta/x.txt"), {"train": (("a", "b"), 2)}),
        (("train/a/1.jpg", "val/a/1.jpg"), {"train": (None, 1), "val": (None, 1)}),
        (("train/a/1.jpg", "train/b/", "val/a/1.jpg", "val/c/1.jpg"), "not to train on: c"),
        (("train/a/1.jpg", "train/b/", "train/c/1.jpg", "val/b/1.jpg"), {"train": (("a", "b", "c"), 2)}),
        (("train/x/a/1.jpg", "train/x/b/1.jpg", "val/a/1.jpg"), {"train": (("a", "b"), 2)}),
        (("n1/images/1.jpg", "n2/images/2.jpg"), {"train": (("n1", "n2"), 2)}),
        (("dog/in/1.jpg", "dog/out/2.jpg", "cat/1.jpg"), {"train": (("cat", "dog"), 3)}),
        (
            ("bullet_train/1.jpg", "test_tube/1.jpg", "cat/1.jpg", "dog/1.jpg"),
            {"train": (("bullet_train", "cat", "dog", "test_tube"), 4)},
        ),
        (
            tuple(f"{split}/{name}/1.jpg" for split in ("train", "val") for name in ("train", "val")),
            {"train": (("train", "val"), 2), "val": (("train", "val"), 2)},
        ),
    ],
)
def test_what_is_taken_for_a_class(tree, opened, files, sources):
    if isinstance(sources, str):
        with pytest.raises(ValueError, match=sources):
            opened(tree(*files))
        return
    name, found = opened(tree(*files))
    assert name == "folder"
    assert classes(found) | sources == classes(found)


NESTED = ("F/A/1.jpg", "F/B/1.jpg", "G/C/1.jpg", "G/C/2.jpg")


@pytest.mark.parametrize(
    ("depth", "names", "count"),
    [(0, None, 4), (1, ("F", "G"), 4), (2, ("F/A", "F/B", "G/C"), 4)],
)
def test_the_depth_of_classes_is_asked_and_taken(tree, opened, depth, names, count):
    root = tree(*NESTED)
    with pytest.raises(ValueError, match=r"2 \(F, G; --class-depth 1\) or 3 \(F/A, F/B, G/C; --class-depth 2\)"):
        opened(root)
    assert classes(opened(root, class_depth=depth)[1]) == {"train": (names, count)}
    with pytest.raises(ValueError, match="no image as deep as --class-depth 3"):
        opened(root, class_depth=3)


def test_classes_and_labels_belong_together_at_any_depth(tree, opened):
    source = opened(tree("b/x/1.jpg", "b/x/y/2.jpg", "b-c/x/3.jpg", "b/0.jpg"), class_depth=2)[1]["train"]
    named = [(source.classes[label], path[-5]) for path, label in zip(source.paths, source.labels, strict=True)]
    assert named == [("b/x", "1"), ("b/x", "2"), ("b-c/x", "3")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("data/train/1.jpg", "data/val/1.jpg", "docs/x.jpg"), "data has train, val inside: .* --source .*in/data"),
        (("cat/train/1.jpg", "cat/val/1.jpg", "dog/train/1.jpg"), r"put the splits outside \(train/, val/"),
        (
            ("07/JPEGImages/1.jpg", "07/Annotations/1.xml", "12/JPEGImages/1.jpg", "12/Annotations/1.xml"),
            r"2 folders with images \(07, 12\), of which 07 has images beside labels: give it as --source",
        ),
        (("ISIC_Test_Input/1.jpg", "ISIC_Train_Input/1.jpg"), "do not sound like classes .* --splits"),
        (
            ("A/images/x/1.jpg", "A/images/y/1.jpg", "B/images/x/1.jpg"),
            r"2 \(A, B; --class-depth 1\) or 3 \(A/images/x, A/images/y, B/images/x; --class-depth 3\)",
        ),
        (("a/x/1.jpg", "a/y/1.jpg", "b/x/1.jpg", "c/1.jpg"), r"3 \(a, b, c; --class-depth 1\) or 3 \(a/x, a/y, b/x;"),
        (
            ("image_2/1.png", "semantic/1.png", "semantic_rgb/1.png", "instance/1.png"),
            r"do not sound like classes \(image_2, instance",
        ),
        (("rgb/1.jpg", "depth/1.png"), "do not sound like classes"),
        (("PNGImages/1.png", "PedMasks/1.png"), "do not sound like classes .* masks/"),
        (("train/1.jpg", "train/1_mask.png", "train/2.jpg", "train/2_mask.png"), r"side by side \(1, 1_mask\)"),
        (("a/1.jpg", "a/1-gtFine_labelIds.png", "b/2.jpg"), r"side by side \(1, 1-gtFine_labelIds\)"),
    ],
)
def test_folders_of_other_things_are_no_classes(tree, opened, files, message):
    root = tree(*files)
    with pytest.raises(ValueError, match=message):
        opened(root, format="folder")
    assert opened(root, format="folder", class_depth=0)[1]["train"].classes is None


def test_masks_may_be_what_classes_are_about(tree, opened):
    found = opened(tree("with_mask/1.jpg", "without_mask/1.jpg", "with_mask/x_mask.jpg", "with_mask/y.jpg"))[1]
    assert found["train"].classes == ("with_mask", "without_mask")


def test_names_that_are_no_text_are_named(tree, opened):
    root = tree("a/1.jpg")
    (root / os.fsdecode(b"\xff")).mkdir()
    (root / os.fsdecode(b"\xff") / "1.jpg").write_text("")
    with pytest.raises(ValueError, match="not UTF-8: rename it"):
        opened(root)


def test_names_are_the_same_on_all_systems(tree, opened):
    found = opened(tree("train/e\u0301/1.jpg", "train/b/1.jpg", "val/\u00e9/1.jpg", "val/b/1.jpg"))[1]
    assert found["val"].classes == ("b", "\u00e9")


def test_names_that_look_the_same_are_refused(tree, opened):
    with pytest.raises(ValueError, match="two class folders are called"):
        opened(tree("e\u0301/1.jpg", "\u00e9/1.jpg"))


def test_images_above_the_class_folders_are_counted(tree, opened, caplog):
    found = opened(tree("F/A/1.jpg", "F/B/2.jpg", "F/3.jpg", "4.jpg"), format="folder", class_depth=2)[1]
    assert classes(found) == {"train": (("F/A", "F/B"), 2)}
    assert "2 images lie above the class folders, and are left out" in caplog.text


def test_what_was_not_read_is_counted_by_suffix(tree):
    root = tree("a/1.jpg", "a/2.tif", "b/3.tif", "c.csv", "d/5", "docs/x.jpg")
    read = [f"{root}/a/1.jpg", "/elsewhere/y.jpg"]
    assert passed_over(root, read=read) == "1 without suffix (d/), 1 .csv, 1 .jpg (docs/), 2 .tif (a/, b/)"


def test_what_was_read_here_is_not_passed_over(tree, monkeypatch):
    root = tree("a/1.jpg", "b/2.jpg", "3.jpg", "c/4.jpg")
    monkeypatch.chdir(root)
    read = ["a/1.jpg", "./b/2.jpg", "3.jpg", "/c/4.jpg", "../c/4.jpg"]
    assert passed_over(Path(), read=read) == "1 .jpg (c/)"
    monkeypatch.chdir(root.parent)
    assert passed_over(Path("./in"), read=["in/a/1.jpg", "./in/b/2.jpg", "in/3.jpg"]) == "1 .jpg (c/)"
