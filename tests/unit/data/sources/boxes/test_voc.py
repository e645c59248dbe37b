"""Pascal VOC's XML becomes COCO's objects; what cannot be read is left out with the reason."""

import pytest

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><part><name>hand</name></part>"
    "<bndbox><xmin>1</xmin><ymin>11.0</ymin><xmax>{right}</xmax><ymax>40</ymax></bndbox></object>"
)


def xml(*names, width=56, difficult=0, right=28):
    objects = "".join(OBJECT.format(name=name, difficult=difficult, right=right) for name in names)
    size = f"<size><width>{width}</width><height>40</height><depth>3</depth></size>"
    return f'<?xml version="1.0"?>\n<annotation>{size}{objects}</annotation>'


@pytest.mark.parametrize(
    ("images", "texts", "counts"),
    [
        (
            ("JPEGImages/1.jpg", "JPEGImages/2.jpg", "JPEGImages/3.jpg"),
            {f"Annotations/{n}.xml": xml("dog") for n in (1, 2, 3)}
            | {"ImageSets/Main/train.txt": "1\n3\n", "ImageSets/Main/val.txt": "2\n"},
            {"train": 2, "val": 1},
        ),
        (("images/1.jpg",), {"annotations/1.xml": xml("dog")}, {"train": 1}),
        (
            ("train/1.jpg", "valid/2.jpg"),
            {"train/1.xml": xml("dog"), "valid/2.xml": xml("dog")},
            {"train": 1, "val": 1},
        ),
        (("1.jpg",), {"1.xml": xml("dog")}, {"train": 1}),
    ],
)
def test_layouts(boxed, opened, objects, images, texts, counts):
    name, found = opened(boxed(*images, texts=texts))
    assert (name, {split: len(source) for split, source in found.items()}) == ("voc", counts)
    assert found["train"].classes == ("dog",)
    (box,) = objects(found["train"])
    assert (box["category"], box["bbox"], box["iscrowd"]) == (0, [0.0, 10.0, 28.0, 30.0], 0)


def test_classes_are_sorted_names_and_difficult_objects_crowds(boxed, opened, objects):
    texts = {"annotations/1.xml": xml("dog", "A &amp; B"), "annotations/2.xml": xml("cat", difficult=1)}
    root = boxed("images/1.jpg", "images/2.jpg", texts=texts)
    source = opened(root)[1]["train"]
    assert source.classes == ("A & B", "cat", "dog")
    assert [box["category"] for box in objects(source)] == [2, 0]
    assert objects(source, 1)[0]["iscrowd"] == 1
    assert opened(root, names=["dog", "cat", "A & B"])[1]["train"].classes == ("dog", "cat", "A & B")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (xml("dog", width=99), "it is 40x56 pixels upright, its boxes are made for 40x99"),
        (xml("dog", right="x"), "an object 'dog' without a box in numbers"),
        (xml("dog", right="nan"), "object 'dog', has a box with a number that is not finite"),
        (xml("dog", right="-9"), "object 'dog', has a box that ends before it begins: 0, 10, -9, 40"),
        (xml("dog")[:-5], "is no XML"),
        (xml("dog").replace("<annotation>", '<!DOCTYPE x [<!ENTITY a "b">]><annotation>'), "defines entities"),
    ],
)
def test_what_cannot_be_read_is_left_out_with_the_reason(boxed, opened, objects, text, reason):
    root = boxed("images/1.jpg", "images/2.jpg", texts={"annotations/1.xml": text, "annotations/2.xml": xml("dog")})
    assert reason in objects(opened(root, format="voc")[1]["train"])


def test_images_without_a_file_are_left_out_and_named(boxed, opened, caplog):
    root = boxed("images/1.jpg", "images/2.jpg", texts={"annotations/1.xml": xml("dog")})
    assert len(opened(root)[1]["train"]) == 1
    assert "1 of 2 images have no .xml and are left out, for example 2.jpg" in caplog.text
    with pytest.raises(ValueError, match="--size cannot be used with boxes"):
        opened(root, size=64)


def test_voc_with_boxes_and_maps_is_asked_about(boxed, opened):
    root = boxed("JPEGImages/1.jpg", "SegmentationClass/1.png", texts={"Annotations/1.xml": xml("dog")})
    with pytest.raises(ValueError, match=r"label maps \(--format labels\), Pascal VOC's boxes \(--format voc\)"):
        opened(root)


def test_names_are_those_of_objects_not_of_their_parts(boxed, opened, objects):
    part = "<object><part><name>head</name><bndbox/></part><name>dog</name>"
    first = xml("dog").replace("<object><name>dog</name>", part)
    second = xml("cat").replace("<object>", '<object id="1">').replace("cat", "<![CDATA[cat]]>")
    root = boxed("images/1.jpg", "images/2.jpg", texts={"annotations/1.xml": first, "annotations/2.xml": second})
    source = opened(root)[1]["train"]
    assert source.classes == ("cat", "dog")
    assert [objects(source, number)[0]["category"] for number in range(2)] == [1, 0]
