"""COCO files are found in the layouts of COCO, Roboflow, FiftyOne and Label Studio."""

import pytest

from data.sources.trees.coco_files import annotation_files, image_folders, split_name

COCO = '{"images": [], "annotations": [], "categories": []}'


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("annotations/instances_train2017.json", "annotations/captions_val2017.json"), ["train"]),
        (("Annotations/train.json", "labels/val.json"), ["train", "val"]),
        (("annotations/train.json", "annotations/val.json"), ["train", "val"]),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), ["train", "val"]),
        (("train.json", "test.json"), ["test", "train"]),
        (("annotations/test-dev.json",), ["test-dev"]),
        (("result.json",), ["result"]),
    ],
)
def test_files_and_their_splits(tree, names, splits):
    root = tree(*names, **dict.fromkeys(names, COCO))
    assert sorted(map(split_name, annotation_files(root))) == splits


def test_other_json_is_none(tree):
    root = tree("labelme.json", **{"labelme.json": '{"shapes": [], "imagePath": "1.jpg"}'})
    assert annotation_files(root) == []
    assert annotation_files(root / "nowhere") == []


def test_images_are_looked_for_in_the_folder_of_the_split_first(tree):
    root = tree("annotations/train.json", "train2017/1.jpg", "images/train/1.jpg")
    places = [str(place.relative_to(root)) for place in image_folders(root / "annotations" / "train.json")]
    assert places[:4] == ["train", "images/train", "train/images", "train2017"]
    assert "images" in places
