"""COCO files with objects that cannot be used, images that are no one's, and turned photographs."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.drills.trials.case import Case
from data.shards.shard_set import open_shards
from data.sources.coco import find_coco
from data.sources.config import Write
from data.sources.source import prepared, split_off
from data.writing.writer import ShardLimits, write_shards

WRITE = ["data/main.py", "write", "--source", "in", "--out", "out"]
WIDTH, HEIGHT = 64, 48
MASK = [[4, 4, 30, 4, 30, 30, 4, 30]]


def picture(orientation: int = 1) -> bytes:
    """Encode a photograph, perhaps on its side."""
    content, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "JPEG", exif=exif.tobytes())
    return content.getvalue()


def annotation(number: int, *, image: int = 0, **fields: Any) -> dict[str, Any]:
    """Make a sound annotation, but for ``fields``."""
    box = {"id": number, "image_id": image, "category_id": 1, "bbox": [4, 4, 26, 26], "area": 676, "iscrowd": 0}
    return {**box, "segmentation": MASK, **fields}


def image(number: int, name: str | None = None) -> dict[str, Any]:
    """List an image."""
    return {"id": number, "file_name": name or f"{number}.jpg", "height": HEIGHT, "width": WIDTH}


def coco(
    *, num_images: int = 3, orientation: int = 1, splits: tuple[str, ...] = ("train",), **fields: Any
) -> Callable[[Path], list[str]]:
    """Write images and their annotations; ``fields`` replace those of the tree."""

    def make(folder: Path) -> list[str]:
        for split in splits:
            (folder / "in" / split).mkdir(parents=True)
            (folder / "in" / "annotations").mkdir(exist_ok=True)
            tree = {
                "images": [image(number) for number in range(num_images)],
                "annotations": [annotation(number + 1, image=number) for number in range(num_images)],
                "categories": [{"id": 1, "name": "cell"}],
                **fields,
            }
            for number in range(num_images):
                content = picture(orientation if number == 0 else 1)
                (folder / "in" / split / f"{number}.jpg").write_bytes(content)
            (folder / "in" / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))
        return WRITE

    return make


def samples(count: int) -> Callable[[Path], str | None]:
    """Check how many samples were written."""

    def check(folder: Path) -> str | None:
        found = open_shards(folder / "out").num_samples
        return None if found == count else f"{found} samples"

    return check


def written(folder: Path, **fields: Any) -> Path:
    """Write such a set into shards."""
    coco(**fields)(folder)
    options = Write(source=str(folder / "in"), out=folder / "shards", processes=1)
    source = find_coco(options, folder)["train"]
    new = prepared(split_off(source, fraction=0.0, seed=0)[0], processes=1)
    write_shards(new, out=folder / "shards", classes=source.classes, limits=ShardLimits())
    return folder / "shards"


def verified(**fields: Any) -> Callable[[Path], list[str]]:
    """Check the shards of such a set."""

    def make(folder: Path) -> list[str]:
        return ["data/main.py", "verify", "--shards", str(written(folder, **fields))]

    return make


def trained(kind: str, **fields: Any) -> Callable[[Path], list[str]]:
    """Train a detector of a kind for one step on such a set."""

    def make(folder: Path) -> list[str]:
        (folder / "recipe.yaml").write_text(RECIPE)
        shards = str(written(folder, **fields))
        places = ["--data.shards", shards, "--val-shards", shards, "--run.folder", "run"]
        return ["finetune/main.py", "--recipe", "recipe.yaml", "--detector.kind", kind, *places]

    return make


def left_out(*objects: int) -> Callable[[Path], str | None]:
    """Check which objects the run says it left out."""

    def check(folder: Path) -> str | None:
        path = folder / "run" / "annotation_faults.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        found = sorted({line["object"] for line in lines})
        return None if found == sorted(objects) else f"left out: {lines}"

    return check


RECIPE = """
backbone: {name: swin_tiny_patch4_window7_224, img_size: [64, 64], window: 4, embed_dim: 16,
           depths: [1, 1, 1, 1], num_heads: [1, 2, 4, 8]}
detector: {width: 16, box_width: 32, roi_samples: 16, anchor_samples: 32, proposals: [50, 20]}
resize: {short_sides: [64], long_side: 128, test_short_side: 64}
data: {batch_size: 2, micro_batch_size: 2, workers: 0}
evaluation: {every_steps: 1, micro_batch_size: 2}
optimizer: {base_lr: 1.0e-3, lr_batch_size: 4, steps: 1, warmup_steps: 0}
run: {save_every_steps: 1}
report: {every_steps: 1, tensorboard: false}
distributed: {precision: fp32}
"""
BAD_MASKS = [
    annotation(1, image=0),
    annotation(2, image=0, segmentation=[[4, 4, 26, 26]]),
    annotation(3, image=1, segmentation=[[]]),
    annotation(4, image=1, segmentation=MASK[0]),
    annotation(5, image=2, segmentation=[]),
    annotation(6, image=2),
]
MANY_CORNERS = [[float(4 + number % 2 * 20) for number in range(200_000)]]
CASES = [
    Case(
        name="unusable_objects_are_said_by_write",
        make=coco(annotations=[annotation(1, bbox=[70, 4, 9, 9]), annotation(2, bbox=[1, 2]), *BAD_MASKS[1:4]]),
        says="2 objects cannot be learnt from and 3 have no usable mask, only a box: training leaves them out; 0.jpg",
        check=samples(3),
    ),
    Case(
        name="unusable_objects_are_said_by_verify",
        make=verified(annotations=[annotation(1, bbox=[70, 4, 9, 9]), *BAD_MASKS[1:4]]),
        says="1 objects cannot be learnt from and 3 have no usable mask",
    ),
    Case(
        name="bad_masks_cost_no_box",
        make=trained("retinanet", annotations=BAD_MASKS),
        check=left_out(),
        never_says="Traceback|left out",
    ),
    Case(
        name="bad_masks_are_left_out_where_masks_are_learnt",
        make=trained("mask_rcnn", annotations=BAD_MASKS),
        says="8 annotations cannot be used and are left out",
        check=left_out(2, 3, 4, 5),
    ),
    Case(
        name="no_mask_at_all",
        make=trained("mask_rcnn", annotations=[annotation(1, segmentation=[])]),
        code=1,
        says="none of 1 objects has a usable mask, .* set --detector.masks False",
    ),
    Case(
        name="a_hundred_thousand_corners",
        make=coco(annotations=[annotation(1, segmentation=MANY_CORNERS)]),
        says="a mask with 100000 corners, at most 20000 are filled",
        limit_s=30,
    ),
    Case(
        name="images_listed_twice",
        make=coco(images=[image(0), image(1), image(2), image(1)]),
        says="1 entries of images are listed twice and count once",
        check=samples(3),
    ),
    Case(
        name="one_image_under_two_ids",
        make=coco(images=[image(0), image(1), image(2, "1.jpg")]),
        code=1,
        says="1.jpg is listed under the ids 1 and 2",
    ),
    Case(
        name="two_categories_of_one_id",
        make=coco(categories=[{"id": 1, "name": "cell"}, {"id": 1, "name": "dust"}]),
        code=1,
        says="two entries of categories have the id 1",
    ),
    Case(
        name="a_turned_photograph",
        make=coco(orientation=6),
        says="left out .*its EXIF orientation 6 makes it 64x48 pixels upright, its annotations are made for 48x64",
        check=samples(2),
    ),
    Case(
        name="names_that_lead_out",
        make=coco(images=[image(0, "../../0.jpg")], annotations=[]),
        code=1,
        says="image 0 has the file_name '../../0.jpg', which leads out of the folder of images",
    ),
    Case(
        name="absolute_names",
        make=coco(images=[image(0, "/etc/passwd")], annotations=[]),
        code=1,
        says="which leads out of the folder of images",
    ),
]
