"""Boxes as other programs write them: COCO's files in all places, YOLO's text, Pascal VOC's XML."""

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.drills.trials.case import Case
from benchmarks.drills.trials.inputs.trees import case, files, written

BOX = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}

FIFTYONE = "data"
"""Where FiftyOne puts the images."""


def coco(name: str) -> str:
    """Write a COCO file of one image."""
    image = {"id": 1, "file_name": name, "height": 16, "width": 16}
    return json.dumps({"categories": [{"id": 5, "name": "cup"}], "images": [image], "annotations": [BOX]})


COCO_TREES = [
    case(
        "coco_roboflow",
        files(
            *("train/1.jpg", "valid/2.jpg", "test/3.jpg"),
            texts={
                "train/_annotations.coco.json": coco("1.jpg"),
                "valid/_annotations.coco.json": coco("2.jpg"),
                "test/_annotations.coco.json": coco("3.jpg"),
                "README.roboflow.txt": "x",
            },
        ),
        says="--format coco",
        check=written(["cup"], train=1, val=1, test=1),
    ),
    case(
        "coco_plain_names",
        files(
            *("images/1.jpg", "images/2.jpg"),
            texts={"annotations/train.json": coco("1.jpg"), "annotations/val.json": coco("2.jpg")},
        ),
        check=written(["cup"], train=1, val=1),
    ),
    case(
        "coco_at_the_top",
        files(f"{FIFTYONE}/1.jpg", texts={"labels.json": coco("1.jpg")}),
        check=written(["cup"], train=1),
    ),
    case(
        "coco_and_maps",
        files("images/1.jpg", "masks/1.png", maps="masks", texts={"annotations/train.json": coco("1.jpg")}),
        code=1,
        says="--format labels.*--format coco",
    ),
]

LINE = "1 0.5 0.5 0.25 0.5\n"
YAML = "path: /data\ntrain: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n"
XML = (
    "<annotation><size><width>16</width><height>16</height></size><object><name>dog</name><bndbox><xmin>1</xmin>"
    "<ymin>1</ymin><xmax>8</xmax><ymax>8</ymax></bndbox></object></annotation>"
)


def objects(count: int, **counts: int) -> Callable[[Path], str | None]:
    """Check the classes and samples of a set of cats and dogs, and how many objects the first shard holds."""

    def check(folder: Path) -> str | None:
        place = folder / "out" / "train" if len(counts) > 1 else folder / "out"
        found = (place / "shard-000000.tar").read_bytes().count(b'"bbox"')
        return written(["cat", "dog"], **counts)(folder) or (f"{found} objects" if found != count else None)

    return check


BOX_TREES = [
    case(
        "yolo",
        files(
            *("images/train/1.jpg", "images/train/2.jpg", "images/val/3.jpg"),
            texts={
                "labels/train/1.txt": LINE * 2,
                "labels/train/2.txt": "",
                "labels/val/3.txt": LINE,
                "data.yaml": YAML,
            },
        ),
        says="--format yolo.*objects in train",
        check=objects(2, train=2, val=1),
    ),
    case(
        "yolo_roboflow",
        files(
            *("train/images/1.jpg", "valid/images/2.jpg"),
            texts={
                "train/labels/1.txt": LINE,
                "valid/labels/2.txt": LINE,
                "data.yaml": YAML,
                "README.dataset.txt": "x",
            },
        ),
        check=objects(1, train=1, val=1),
    ),
    case(
        "yolo_cvat",
        files(
            "obj_train_data/1.jpg", texts={"obj_train_data/1.txt": LINE, "obj.names": "cat\ndog\n", "train.txt": "x"}
        ),
        check=objects(1, train=1),
    ),
    case(
        "yolo_without_names",
        files("images/1.jpg", texts={"labels/1.txt": LINE}),
        code=1,
        says="give them with --classes FILE",
    ),
    case(
        "yolo_lists",
        files(
            *("images/1.jpg", "images/2.jpg", "images/3.jpg"),
            texts={
                **{f"labels/{number}.txt": LINE for number in (1, 2, 3)},
                "data.yaml": "path: .\ntrain: train.txt\nval: val.txt\nnames: [cat, dog]\n",
                "train.txt": "./images/1.jpg\n./images/2.jpg",
                "val.txt": "./images/3.jpg",
            },
        ),
        check=objects(2, train=2, val=1),
    ),
    case(
        "yolo_beside_another",
        files(
            "set/images/1.jpg",
            texts={
                "set/labels/1.txt": LINE,
                "set/classes.txt": "cat\ndog\n",
                "another.yaml": "path: x\nnames: [apple, pear, plum]\n",
                "broken.yaml": "a: [",
            },
        ),
        check=objects(1, train=1),
    ),
    case(
        "yolo_in_pixels",
        files(
            "images/1.jpg", "images/2.jpg", texts={"labels/1.txt": "0 8 8 4 4", "labels/2.txt": LINE, "data.yaml": YAML}
        ),
        says="line 1 of in/labels/1.txt has 8, expected shares",
        check=objects(1, train=1),
    ),
    case(
        "yolo_with_commas",
        files(
            *("images/1.jpg", "images/2.jpg"),
            texts={"labels/1.txt": "0,0.5,0.5,0.2,0.2\n", "labels/2.txt": LINE, "classes.txt": "cat\ndog\n"},
        ),
        says="taken as --format yolo.*line 1 of in/labels/1.txt is '0,0.5",
        check=objects(1, train=1),
    ),
    case(
        "yolo_empty_box",
        files("images/1.jpg", texts={"labels/1.txt": f"0 0.5 0.5 0 0\n{LINE}", "data.yaml": YAML}),
        says="warning: out: 1 objects cannot be learnt from: training leaves them out; 1.jpg, object 0",
        check=objects(2, train=1),
    ),
    case("captions", files("1.jpg", "2.jpg", texts={"1.txt": "a cat"}), says="1 .txt", check=written(None, train=2)),
    case(
        "voc_boxes",
        files(
            *("VOCdevkit/VOC2012/JPEGImages/1.jpg", "VOCdevkit/VOC2012/JPEGImages/2.jpg"),
            texts={
                **{f"VOCdevkit/VOC2012/Annotations/{number}.xml": XML for number in (1, 2)},
                "VOCdevkit/VOC2012/ImageSets/Main/train.txt": "1\n",
                "VOCdevkit/VOC2012/ImageSets/Main/val.txt": "2\n",
            },
        ),
        says="--format voc",
        check=written(["dog"], train=1, val=1),
    ),
    case(
        "voc_kaggle",
        files("images/1.png", "images/2.png", texts={"annotations/1.xml": XML}),
        says="1 of 2 images have no .xml and are left out.*passed over.*1 .png",
        check=written(["dog"], train=1),
    ),
    case(
        "voc_boxes_that_are_none",
        files(
            *("images/1.jpg", "images/2.jpg", "images/3.jpg"),
            texts={
                "annotations/1.xml": XML,
                "annotations/2.xml": XML.replace(">8<", ">nan<"),
                "annotations/3.xml": XML.replace("<xmin>1<", "<xmin>12<"),
            },
        ),
        says="a number that is not finite.*ends before it begins|ends before it begins.*a number that is not finite",
        check=written(["dog"], train=1),
    ),
    case("voc_beside", files("train/1.jpg", texts={"train/1.xml": XML}), check=written(["dog"], train=1)),
    case(
        "voc_boxes_and_maps",
        files("JPEGImages/1.jpg", "SegmentationClass/1.png", texts={"Annotations/1.xml": XML}),
        code=1,
        says="--format labels.*--format voc",
    ),
]

CASES: list[Case] = [*COCO_TREES, *BOX_TREES]
