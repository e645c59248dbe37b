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


OUTSIDE = tuple(
    f"{split}/{part}" for split in ("train", "valid", "test", "more") for part in ("images/1.jpg", "gt/1.png")
)
BESIDE = (
    "train_images/1.jpg",
    "train_gt/1.png",
    "val_images/2.jpg",
    "val_gt/2.png",
    "test_images/3.jpg",
    "test_gt/3.png",
)


@pytest.mark.parametrize(
    ("files", "choice", "images"),
    [
        (OUTSIDE, "train,test", {"train": "train/images", "val": "test/images"}),
        (OUTSIDE, "more, valid", {"train": "more/images", "val": "valid/images"}),
        (OUTSIDE, "val", {"train": "valid/images"}),
        (BESIDE, "train,test", {"train": "train_images", "val": "test_images"}),
        (BESIDE, "test_images", {"train": "test_images"}),
    ],
)
def test_the_splits_that_are_named_are_taken(tree, files, choice, images):
    chosen = found(tree(*files), splits=choice)
    assert {name: pair[0] for name, pair in chosen.items()} == images


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("foo,bar", "--splits foo,bar must be the name .* has train, valid, test, more"),
        ("train,", "--splits train, must be the name"),
        ("none", "--splits none does not say which of train, valid, test, more"),
    ],
)
def test_names_of_no_split_are_refused(tree, choice, message):
    with pytest.raises(ValueError, match=message):
        found(tree(*OUTSIDE), splits=choice)


def test_two_images_never_share_their_labels(tree):
    with pytest.raises(ValueError, match=r"train/1.jpg and .*val/1.jpg would both have the labels .*masks/1\.\*"):
        found(tree("images/train/1.jpg", "images/val/1.jpg", "masks/1.png"))


def test_lists_of_splits_are_followed(tree):
    lists = {"train": "1\n2\n", "val": "3 1\n"}
    root = tree(*(f"JPEGImages/{n}.jpg" for n in range(4)), *(f"SegmentationClass/{n}.png" for n in range(4)))
    for name, text in lists.items():
        path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def listed(choice=None):
        pairs = find_pairs(root, suffixes=MAP_SUFFIXES, lists="Segmentation", splits=choice)
        return {name: [path.rpartition("/")[2] for path in pair.paths()] for name, pair in pairs.items()}

    assert listed() == {"train": ["1.jpg", "2.jpg"], "val": ["3.jpg"]}
    assert listed("val,train") == {"train": ["3.jpg"], "val": ["1.jpg", "2.jpg"]}
    assert listed("none") == {"train": [f"{n}.jpg" for n in range(4)]}
    with pytest.raises(ValueError, match=r"--splits train,foo must be the name .* has train, val"):
        listed("train,foo")
