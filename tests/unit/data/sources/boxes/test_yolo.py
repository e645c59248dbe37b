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
        ("0 0.5 0.5 -0.005 0.2", "line 1 of .*1.txt has a box that ends before it begins"),
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


def test_names_of_the_sets_own_folder_go_before_those_of_files_beside_it(boxed, opened):
    root = boxed("images/1.jpg", texts={"labels/1.txt": BOX, "classes.txt": "cat\ndog\n"})
    (root.parent / "another.yaml").write_text("path: x\nnames: [apple, pear, plum]\n")
    (root.parent / "broken.yaml").write_text("a: [\n")
    (root.parent / "list.yaml").write_text("- a\n")
    (root.parent / "many.yaml").write_text("a: 1\n---\nb: 2\n")
    assert opened(root)[1]["train"].classes == ("cat", "dog")
    (root / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"no data.yaml with names"):
        opened(root)
    (root.parent / "mine.yaml").write_text("path: in\ntrain: images\nval: images\nnames: [a, b]\n")
    assert opened(root)[1]["train"].classes == ("a", "b")
    (root.parent / "mine.yaml").write_text("train: images\nnames: [e, f]\n")
    assert opened(root)[1]["train"].classes == ("e", "f")
    (root / "data.yaml").write_text("names: [c, d]\nnc: 3\n")
    with pytest.raises(ValueError, match="nc is 3, but there are 2 names"):
        opened(root)
    (root / "data.yaml").write_text("names: [c, d\n")
    with pytest.raises(ValueError, match=r"data.yaml: .*expected YAML"):
        opened(root)


@pytest.mark.parametrize(
    ("images", "yaml", "texts"),
    [
        (("1", "2", "3"), "train: train.txt\nval: val.txt\n", {"train.txt": "./images/1.jpg\n", "val.txt": "2.jpg"}),
        (("1", "2"), "train: a/t.txt\nval: v.txt\n", {"a/t.txt": "/x/y/images/1.jpg\n", "v.txt": "data/images/2.jpg"}),
        (("set1/1", "set2/2"), "path: /elsewhere\ntrain: images/set1\nval: [images/set2]\n", {}),
        (("set1/1", "set2/2"), "train: /their/images/set1\ntest: ../images/set2\n", {}),
    ],
)
def test_splits_are_those_that_data_yaml_names(boxed, opened, images, yaml, texts):
    texts = {name: text.replace("2.jpg", "images/2.jpg") if text == "2.jpg" else text for name, text in texts.items()}
    boxes = {f"labels/{name}.txt": BOX for name in images}
    root = boxed(*(f"images/{name}.jpg" for name in images), texts=texts | boxes)
    (root / "data.yaml").write_text(f"{yaml}names: [cat, dog]\n")
    found = opened(root)[1]
    assert {split: [path[-5] for path in source.paths] for split, source in found.items()} == {
        "train": ["1"],
        "val": ["2"],
    }
    assert found["val"].beside[0].path.endswith("2.txt")
    assert set(opened(root, splits="none")[1]) == {"train"}


def test_splits_that_lead_to_other_images_are_refused_and_those_that_lead_nowhere_said(boxed, opened, caplog):
    root = boxed("images/a/1.jpg", "images/b/2.jpg", texts={"labels/a/1.txt": BOX, "labels/b/2.txt": BOX})
    (root / "data.yaml").write_text("train: images/a\nval: images/c\nnames: [cat, dog]\n")
    with pytest.raises(ValueError, match=r"data.yaml says val: images/c, which leads to no image"):
        opened(root)
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [cat, dog]\n")
    assert {split: len(source) for split, source in opened(root)[1].items()} == {"train": 2}
    (root / "data.yaml").write_text("train: x\nval: y\nnames: [cat, dog]\n")
    assert {split: len(source) for split, source in opened(root)[1].items()} == {"train": 2}
    assert "train and val lead to no images of their own: folders decide" in caplog.text


@pytest.mark.parametrize("entries", ["train: ../train/images\nval: ../valid/images\n", "train: ../train/images\n"])
def test_entries_of_another_layout_leave_it_to_the_folders(boxed, opened, entries):
    texts = {"labels/train/1.txt": BOX, "labels/val/2.txt": BOX, "data.yaml": f"{entries}names: [cat, dog]\n"}
    found = opened(boxed("images/train/1.jpg", "images/val/2.jpg", texts=texts))[1]
    assert {split: len(source) for split, source in found.items()} == {"train": 1, "val": 1}


@pytest.mark.parametrize("odd", ["1 nan .5 .2 .2", "0,0.5,0.5,0.2,0.2", "cat 0.5 0.5 0.2 0.2"])
def test_odd_lines_do_not_make_boxes_something_else(boxed, opened, objects, odd):
    images = [f"images/{number}.jpg" for number in range(4)]
    texts = {f"labels/{number}.txt": BOX for number in range(1, 4)} | {"labels/0.txt": odd}
    root = boxed(*images, texts=texts | {"classes.txt": "cat\ndog\n"})
    name, found = opened(root)
    assert name == "yolo"
    assert "line 1 of" in objects(found["train"])


@pytest.mark.parametrize("line", ["0,0.5,0.5,0.2,0.2", "cat 0.5 0.5 0.2 0.2"])
def test_where_data_yaml_lies_all_lines_may_be_odd(boxed, opened, objects, line):
    root = boxed("images/1.jpg", texts={"data.yaml": YAML, "labels/1.txt": line})
    name, found = opened(root)
    assert (name, "line 1 of" in objects(found["train"])) == ("yolo", True)
