"""YOLO's lines become COCO's objects in pixels; faults name file and line."""

import json

import pytest

from data.images.annotations import fault_of_object

YAML = "train: images/train\nval: images/val\nnc: 2\nnames: [cat, dog]\n"
BOX = "1 0.5 0.5 0.25 0.5\n"


@pytest.mark.parametrize(
    ("images", "texts"),
    [
        (("images/train/1.jpg", "images/val/2.jpg"), {"labels/train/1.txt": BOX, "labels/val/2.txt": BOX}),
        (("train/images/1.jpg", "valid/images/2.jpg"), {"train/labels/1.txt": BOX, "valid/labels/2.txt": BOX}),
        (("train/1.jpg", "val/2.jpg"), {"train/1.txt": BOX, "val/2.txt": BOX}),
        (("obj_train_data/1.jpg", "obj_valid_data/2.jpg"), {"obj_train_data/1.txt": BOX, "obj_valid_data/2.txt": BOX}),
    ],
)
def test_layouts(boxed, opened, objects, images, texts):
    name, found = opened(boxed(*images, texts={"data.yaml": YAML, **texts}))
    assert (name, {split: len(source) for split, source in found.items()}) == ("yolo", {"train": 1, "val": 1})
    assert found["train"].classes == ("cat", "dog")
    (box,) = objects(found["train"])
    assert (box["category"], box["bbox"], box["area"]) == (1, [21.0, 10.0, 14.0, 20.0], 280.0)
    assert not fault_of_object(box, size=(40, 56), masks=False)


def test_polygons_and_boxes_at_the_border(boxed, opened, objects):
    root = boxed("images/1.jpg", texts={"data.yaml": YAML, "labels/1.txt": "0 0 0 0.5 0 0.5 0.5\n\n1 0 0.5 0.5 1.0\n"})
    polygon, box = objects(opened(root)[1]["train"])
    assert polygon["segmentation"] == [[0.0, 0.0, 28.0, 0.0, 28.0, 20.0]]
    assert (polygon["bbox"], polygon["area"]) == ([0.0, 0.0, 28.0, 20.0], 280.0)
    assert box["bbox"] == [0.0, 0.0, 14.0, 40.0]


def test_an_image_without_a_file_has_no_objects_and_is_counted(boxed, opened, objects, caplog):
    root = boxed("images/1.jpg", "images/2.jpg", "images/3.jpg", texts={"labels/1.txt": BOX, "labels/2.txt": ""})
    (root / "data.yaml").write_text("names: {0: cat, 1: dog}")
    source = opened(root)[1]["train"]
    assert [len(objects(source, number)) for number in range(3)] == [1, 0, 0]
    assert "1 of 3 images have no file of boxes: no object" in caplog.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2 0.5 0.5 0.2 0.2", "line 1 of .*1.txt has class 2, there are 2, from 0"),
        (f"{BOX}0 34 20 5 5", "line 2 of .*1.txt has 34, expected shares of the image's sides"),
        ("0 0.5 0.5 0.2 0.2 0.9", "has 5 numbers after its class, expected 4 or a polygon's pairs"),
        (f"{BOX}cat 0.5 0.5 0.2 0.2", "line 2 of .*1.txt is 'cat 0.5"),
        (f"{BOX}0 nan 0.5 0.2 0.2", "has nan, expected shares"),
    ],
)
def test_faults_name_file_and_line(boxed, opened, objects, text, reason):
    import re

    root = boxed("images/1.jpg", "images/2.jpg", texts={"data.yaml": YAML, "labels/1.txt": text, "labels/2.txt": BOX})
    assert re.search(reason, objects(opened(root, format="yolo")[1]["train"]))


def test_names_come_from_a_list_and_are_asked_for(boxed, opened):
    root = boxed("images/1.jpg", texts={"labels/1.txt": BOX})
    with pytest.raises(ValueError, match=r"no data.yaml with names, nor obj.names: give them with --classes FILE"):
        opened(root)
    assert opened(root, names=["a", "b"])[1]["train"].classes == ("a", "b")
    (root / "labels" / "classes.txt").write_text("x\ny z\n")
    assert opened(root)[1]["train"].classes == ("x", "y z")
    with pytest.raises(ValueError, match="--size cannot be used with boxes"):
        opened(root, size=64)
    (root / "data.yaml").write_text("names: {1: a, 2: b}")
    with pytest.raises(ValueError, match="names must be a list, or numbers from 0"):
        opened(root)


def test_key_points_are_left_out(boxed, opened, objects):
    root = boxed(
        "images/1.jpg", texts={"data.yaml": YAML + "kpt_shape: [1, 3]\n", "labels/1.txt": BOX[:-1] + " 0.5 0.5 2"}
    )
    (box,) = objects(opened(root)[1]["train"])
    assert "segmentation" not in box


def test_captions_are_no_boxes(boxed, opened):
    root = boxed("1.jpg", "2.jpg", texts={"1.txt": "a cat", "2.txt": "a dog"})
    assert opened(root)[0] == "folder"


def test_the_json_is_that_of_the_image(boxed, opened):
    root = boxed("images/1.jpg", texts={"data.yaml": YAML, "labels/1.txt": BOX})
    tree = json.loads(opened(root)[1]["train"].prepare(0).members["json"])
    assert (tree["file_name"], tree["height"], tree["width"]) == ("1.jpg", 40, 56)
