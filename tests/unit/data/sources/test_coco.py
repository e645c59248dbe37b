"""COCO's instances files: every annotation arrives with its encoded, as it was."""

import json
from pathlib import Path

import pytest

from data.images.decode import read_header
from data.shards.shard_set import open_shards
from data.sources.coco import find_coco
from data.sources.source import prepared, split_off
from data.writing.journal import Rejected
from data.writing.writer import NewSample, ShardLimits, write_shards
from tests.unit.data.write_options import write_options

COCO = Path(__file__).resolve().parents[5] / "shared" / "data" / "coco_instances"
BOXES = COCO.parent / "bccd_boxes"
needs_coco = pytest.mark.skipif(not COCO.is_dir(), reason="not on this machine: ../shared/data/coco_instances")


def annotation(number, *, image, category=3, **fields):
    polygon = [[1.5, 2, 11, 2, 11, 12.25]]
    box = {"id": number, "image_id": image, "category_id": category, "bbox": [1.5, 2.0, 9.5, 10.25], "iscrowd": 0}
    return {**box, "area": 48.7, "segmentation": polygon, **fields}


@pytest.fixture
def coco(tmp_path, encoded):
    """Write a small data set in COCO's layout; fields change the tree."""

    def coco(split="train2017", **fields):
        folder = tmp_path / "coco"
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / "annotations").mkdir(exist_ok=True)
        for number in (7, 3, 5):
            (folder / split / f"{number:012d}.jpg").write_bytes(encoded(number))
        sizes = {"height": 40, "width": 56, "license": 4}
        rle = {"size": [40, 56], "counts": [30, 10, 2200]}
        tree = {
            "images": [{"id": n, "file_name": f"{n:012d}.jpg", **sizes, "coco_url": "x"} for n in (7, 3, 5)],
            "annotations": [
                annotation(1, image=7, category=90),
                annotation(2, image=3, iscrowd=1, segmentation=rle),
                annotation(3, image=7, category=3, segmentation={"size": [40, 56], "counts": "abc0"}),
            ],
            "categories": [{"id": 90, "name": "zebra"}, {"id": 3, "name": "car"}],
            **fields,
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))
        return folder

    return coco


def find(folder, *, images=None, **options):
    return find_coco(write_options(folder, images=images, **options), folder)


def test_annotations_arrive_as_they_are_with_a_class_number_without_gaps(coco):
    source = find(coco())["train"]
    assert source.classes == ("car", "zebra")
    trees = [json.loads(source.prepare(n).members["json"]) for n in range(3)]
    assert [tree["image_id"] for tree in trees] == [3, 5, 7]
    assert trees[1] == {
        "image_id": 5, "file_name": "000000000005.jpg", "height": 40, "width": 56, "license": 4, "objects": []
    }  # fmt: skip
    first, second = trees[2]["objects"]
    assert (first["category"], first["category_id"], second["category"], second["category_id"]) == (1, 90, 0, 3)
    assert first["segmentation"] == [[1.5, 2, 11, 2, 11, 12.25]]
    assert second["segmentation"] == {"size": [40, 56], "counts": "abc0"}
    assert trees[0]["objects"][0]["iscrowd"] == 1
    assert "image_id" not in first


def test_splits_are_named_and_share_their_classes(coco):
    coco("val2017")
    coco("test-dev")
    assert sorted(find(coco())) == ["test-dev", "train", "val"]
    coco("val2017", categories=[{"id": 90, "name": "zebra"}, {"id": 3, "name": "truck"}])
    with pytest.raises(ValueError, match="have different categories"):
        find(coco())


def test_a_single_file_with_a_folder_of_its_own(coco, tmp_path):
    folder = coco()
    (folder / "train2017").rename(tmp_path / "elsewhere")
    file = folder / "annotations" / "instances_train2017.json"
    with pytest.raises(
        ValueError, match=r"000000000003.jpg of instances_train2017.json is in none of .* --images FOLDER"
    ):
        find(file)
    assert isinstance(find(file, images=tmp_path / "elsewhere")["train"].prepare(0), NewSample)
    coco("val2017")
    with pytest.raises(ValueError, match=r"--images goes with one annotation file, but .* has 2"):
        find(folder, images=tmp_path)


def test_images_of_another_size_than_their_annotations_are_left_out(coco, encoded):
    folder = coco()
    (folder / "train2017" / "000000000003.jpg").write_bytes(encoded(3, height=56, width=40))
    (folder / "train2017" / "000000000005.jpg").unlink()
    found = [find(folder)["train"].prepare(number) for number in range(3)]
    assert [type(item) for item in found] == [Rejected, Rejected, NewSample]
    assert "it is 56x40 pixels upright, its annotations are made for 40x56" in found[0].reason


def test_an_image_that_lies_on_its_side_is_left_out(coco):
    import io

    from PIL import Image

    folder, content, exif = coco(), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (56, 40)).save(content, "JPEG", exif=exif)
    (folder / "train2017" / "000000000003.jpg").write_bytes(content.getvalue())
    reason = find(folder)["train"].prepare(0).reason
    assert "its EXIF orientation 6 makes it 56x40 pixels upright, its annotations are made for 40x56" in reason


def image(number, name, **fields):
    return {"id": number, "file_name": name, "height": 40, "width": 56, **fields}


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "..\\x.jpg", "C:\\x.jpg"])
def test_names_that_lead_out_of_the_folder_are_refused(coco, name):
    with pytest.raises(ValueError, match=r"image 7 has the file_name .* leads out of the folder of images"):
        find(coco(images=[image(7, name)], annotations=[]))


def test_images_that_are_listed_twice_count_once_or_are_refused(coco, caplog):
    name = "000000000007.jpg"
    twice = coco(images=[image(7, name), image(7, name)], annotations=[annotation(1, image=7)])
    assert len(find(twice)["train"]) == 1
    assert "1 entries of images are listed twice and count once" in caplog.text
    with pytest.raises(ValueError, match="two entries of images have the id 7"):
        find(coco(images=[image(7, name), image(7, "other.jpg")], annotations=[]))
    with pytest.raises(ValueError, match=f"{name} is listed under the ids 7 and 8, with objects of their own"):
        find(coco(images=[image(7, name), image(8, f"./{name}")], annotations=[]))


def test_objects_that_training_leaves_out_are_said(coco, caplog):
    bad = [annotation(1, image=7, bbox=[1, 2]), annotation(2, image=3, segmentation=[[1, 2, 3, 4]])]
    source = find(coco(annotations=[*bad, annotation(3, image=5)]))["train"]
    assert (
        "1 objects cannot be learnt from and 1 have no usable mask, only a box: training leaves them out" in caplog.text
    )
    assert "000000000003.jpg, object 2: its mask is empty; 000000000007.jpg, object 1: its box" in caplog.text
    assert all(isinstance(source.prepare(number), NewSample) for number in range(3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"annotations": [annotation(1, image=9)]}, "annotations of image 9, which is not listed"),
        ({"annotations": [annotation(1, image=7, category=8)]}, "annotation 1 has category 8, not listed"),
        (
            {"categories": [{"id": 3, "name": "car"}, {"id": 3, "name": "cat"}]},
            "two entries of categories have the id 3",
        ),
        ({"annotations": [{"id": 1}]}, "'category_id' is missing"),
        ({"images": []}, "annotations of image 3|no images"),
        ({"images": 3}, "expected a list for 'images', got a whole number, 3"),
    ],
)
def test_malformed_files_are_explained(coco, fields, message):
    with pytest.raises(ValueError, match=rf"instances_train2017.json is no COCO instances file: .*({message})"):
        find(coco(**fields))


def test_resizing_and_missing_annotations_are_refused(coco, tmp_path):
    with pytest.raises(ValueError, match="--size cannot be used with boxes and masks"):
        find(coco(), size=64)
    with pytest.raises(ValueError, match=r"expected annotations/instances_\*.json in"):
        find(tmp_path)


@needs_coco
def test_real_coco_arrives_whole(tmp_path):
    """Every image's bytes and every annotation of the 100 images, through shards and back."""
    source = find(COCO, check="header")["train"]
    selection = split_off(source, fraction=0.0, seed=0)[0]
    write_shards(prepared(selection, processes=1), out=tmp_path, classes=source.classes, limits=ShardLimits(samples=40))
    shards = open_shards(tmp_path)
    theirs = json.loads((COCO / "annotations" / "instances_train2017.json").read_text())
    original = {annotation["id"]: annotation for annotation in theirs["annotations"]}
    assert len(shards.classes) == 80
    assert (shards.classes[0], shards.classes[79]) == ("person", "toothbrush")
    numbers = {c["id"]: n for n, c in enumerate(sorted(theirs["categories"], key=lambda c: c["id"]))}
    crowds = empty = 0
    for shard, size in enumerate(shards.sizes):
        for position in range(size):
            image = shards.read(shard, position).image
            tree = json.loads(shards.read_member(shard, position, extension="json"))
            assert image == (COCO / "images" / "train2017" / tree["file_name"]).read_bytes()
            header = read_header(image)
            assert (header.height, header.width) == (tree["height"], tree["width"])
            empty += not tree["objects"]
            for found in tree["objects"]:
                category = found.pop("category")
                annotation = original.pop(found["id"])
                assert category == numbers[annotation["category_id"]]
                assert {**found, "image_id": tree["image_id"]} == annotation
                crowds += found["iscrowd"]
    assert not original
    assert (shards.num_samples, crowds, empty) == (100, 9, 2)


@pytest.mark.skipif(not BOXES.is_dir(), reason="not on this machine: ../shared/data/bccd_boxes")
def test_real_boxes_without_masks_are_read():
    found = find(BOXES, check="header")
    assert {name: len(source) for name, source in found.items()} == {"train": 120, "val": 40}
    assert found["val"].classes == ("RBC", "WBC", "Platelets")
    trees = [json.loads(annotation.text) for annotation in found["train"].beside]
    assert sum(len(tree["objects"]) for tree in trees) == 1627
