"""Images beside labels, however the folders are called."""

import pytest

from data.sources.trees.pairs import MAP_SUFFIXES, find_pairs


def found(root, **options):
    pairs = find_pairs(root, suffixes=MAP_SUFFIXES, **options)
    return pairs and {
        name: (str(pair.images.relative_to(root)), str(pair.labels.relative_to(root))) for name, pair in pairs.items()
    }


@pytest.mark.parametrize(
    ("files", "pairs"),
    [
        (("images/1.jpg", "masks/1.png"), {"train": ("images", "masks")}),
        (("imgs/1.jpg", "gt/1.png", "docs/x.jpg"), {"train": ("imgs", "gt")}),
        (
            ("images/train/1.jpg", "images/val/1.jpg", "labels/Training/1.png", "labels/val/1.png"),
            {"train": ("images/train", "labels/Training"), "val": ("images/val", "labels/val")},
        ),
        (
            ("train/images/1.jpg", "train/masks/1.png", "valid/images/1.jpg", "valid/masks/1.png", "x/y.jpg"),
            {"train": ("train/images", "train/masks"), "val": ("valid/images", "valid/masks")},
        ),
        (
            ("train/1.png", "train_labels/1.png", "val/2.png", "val_labels/2.png", "test/3.png", "test_labels/3.png"),
            {"train": ("train", "train_labels"), "val": ("val", "val_labels")},
        ),
        (
            ("train/1.png", "trainannot/1.png", "test/3.png", "testannot/3.png"),
            {"train": ("train", "trainannot"), "val": ("test", "testannot")},
        ),
        (
            ("images/1.jpg", "annotations/list.txt", "annotations/trimaps/1.png", "annotations/xmls/1.xml"),
            {"train": ("images", "annotations/trimaps")},
        ),
        (
            ("images/train/1.jpg", "images/val/2.jpg", "masks/1.png", "masks/2.png"),
            {"train": ("images/train", "masks"), "val": ("images/val", "masks")},
        ),
        (("images/1.jpg", "annotations/instances_train.json", "annotations/maps/1.png"), None),
        (("train/1.jpg", "val/1.jpg"), None),
        (("images/1.jpg", "labels/1.txt"), None),
    ],
)
def test_pairs_are_found_by_name(tree, files, pairs):
    assert found(tree(*files)) == pairs


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("images/1.jpg", "masks/1.png", "labels/1.png"), "several folders of labels, labels and masks"),
        (("images/1.jpg", "imgs/1.jpg", "labels/1.png"), "several folders of images, images and imgs"),
        (("val/images/1.jpg", "val/masks/1.png"), "for val, but none to train on"),
        (
            ("train/images/1.jpg", "train/masks/1.png", "more/images/1.jpg", "more/masks/1.png"),
            "for train, and in more, which has no split's name",
        ),
    ],
)
def test_what_is_there_twice_is_named(tree, files, message):
    with pytest.raises(ValueError, match=message):
        found(tree(*files))


def test_lists_of_splits_are_followed(tree):
    lists = {"train": "1\n2\n", "val": "3 1\n"}
    root = tree(*(f"JPEGImages/{n}.jpg" for n in range(4)), *(f"SegmentationClass/{n}.png" for n in range(4)))
    for name, text in lists.items():
        path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    pairs = find_pairs(root, suffixes=MAP_SUFFIXES, lists="Segmentation")
    assert {name: [path.rpartition("/")[2] for path in pair.paths()] for name, pair in pairs.items()} == {
        "train": ["1.jpg", "2.jpg"],
        "val": ["3.jpg"],
    }
